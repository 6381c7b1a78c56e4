"""Receiver noise: its covariance per real component, and prewhitening.

Psi = E[n n^H] / 2 over the coils, from a noise scan, the user, or the k-space
periphery. With the Cholesky factor Psi = L L^H, y <- L^-1 y has white noise of
standard deviation 1 per real component.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from invdiff import InputError


@dataclass(frozen=True)
class NoiseCovariance:
    """Psi per real component, and where it came from in words."""

    matrix: Complex[Tensor, "coil coil"]
    source: str

    def level(self) -> float:
        """Root mean variance per real component and coil."""
        return float(self.matrix.diagonal().real.mean().sqrt())


def _radius(shape: tuple[int, int]) -> Float[Tensor, "y x"]:
    height, width = shape
    v = (torch.arange(height) - height // 2)[:, None] / (height / 2)
    u = (torch.arange(width) - width // 2)[None, :] / (width / 2)
    return torch.sqrt(u**2 + v**2)


def from_samples(samples: Complex[Tensor, "coil count"], source: str) -> NoiseCovariance:
    """Covariance of noise-only samples."""
    samples = samples.to(torch.complex128)
    matrix = samples @ samples.mH / (2 * samples.shape[1])
    return NoiseCovariance(matrix, source)


def from_periphery(
    kspace: Complex[Tensor, "coil y x"], mask: Bool[Tensor, "y x"], least: int = 200
) -> NoiseCovariance:
    """Covariance of the measured samples farthest from the centre of k-space.

    Samples beyond .9 of the largest measured radius, or the `least` farthest ones
    where those are fewer: there the signal of most images is below the noise. An
    upper estimate: what signal is left there counts.

    Raises:
        InputError: where `least` samples are more than a quarter of the measured ones, or
            where they are all zero.
    """
    radius = _radius((kspace.shape[1], kspace.shape[2]))
    measured = radius[mask]
    if 4 * least > len(measured):
        raise InputError(
            f"the noise level cannot be estimated: {len(measured)} measured samples a coil leave too "
            "few at the k-space periphery; give noise.sigma= per real component"
        )
    farthest = float(measured.sort().values[-least])
    outer = mask & (radius >= min(0.9 * float(measured.max()), farthest))
    covariance = from_samples(kspace[:, outer], f"k-space periphery ({int(outer.sum())} samples)")
    if covariance.level() == 0:
        raise InputError(
            "the k-space periphery is exactly zero (zero-filled data?), so the noise level cannot "
            "be estimated; crop the k-space to the measured part or give noise.sigma="
        )
    return covariance


def whitening(covariance: NoiseCovariance) -> Complex[Tensor, "coil coil"]:
    """`L^-1` with Psi = L L^H.

    Raises:
        InputError: where Psi is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance.matrix)
    if int(failed):
        raise InputError(
            f"the noise covariance ({covariance.source}) is not positive definite; "
            "give one measured from at least four samples a coil"
        )
    eye = torch.eye(len(factor), dtype=factor.dtype)
    return torch.linalg.solve_triangular(factor, eye, upper=False)
