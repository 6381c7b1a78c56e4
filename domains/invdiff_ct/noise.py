"""Photon noise: counts, their logarithm, and how noisy that is.

    N_i ~ Poisson(I0 exp(-p_i) + b),     p_i = mu_scale (A x)_i

`auto` takes the logarithm, p = -ln((N - b) / I0), as Gaussian with variance
N / (N - b)^2 (1 / N without background), one level per ray; rows of A and p are
divided by their std, so that every Gaussian sampler sees white noise of one
level. `poisson` keeps the counts and their exact likelihood behind the nonlinear
operator exp(-p). It leaves no room for the error of the projector itself, which
`auto` adds to the variance and which is of the size of the noise from some ten
thousand photons on. The logarithm fails where counts are few: above 1 % of rays
with fewer than ten, use the counts.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import InputError, Operator
from invdiff_ct.projector import Projector

# Rms error of Joseph's line integrals, in pixels times the unit of x, on training patients: against pixels
# that were split in four, and against an image with detail below the pixel (as real objects have).
SPLIT_PIXELS, FINER_DETAIL = 0.08, 0.2
FEW = 10  # counts below which a logarithm is far from Gaussian


def logarithm(
    counts: Float[np.ndarray, "*rows detector"], flux: float, background: float = 0.0
) -> tuple[Float[np.ndarray, "*rows detector"], Float[np.ndarray, "*rows detector"], float]:
    """Line integrals, their std, and the share of rays with fewer than ten counts.

    Raises:
        InputError: where the flux is not positive, or nearly no ray has a photon.
    """
    if not flux > 0:
        raise InputError(f"the flux is {flux:g} photons; give operator.flux= above zero")
    few = float((counts < FEW).mean())
    if float((counts - background).max()) < 1:
        raise InputError("no ray has a photon: the counts are zero; check the file and operator.flux")
    net = np.maximum(counts - background, 1.0)
    return -np.log(net / flux), np.sqrt(np.maximum(counts, 1.0)) / net, few


def sinogram_noise(sinogram: Float[np.ndarray, "*rows detector"]) -> float:
    """Std of white noise by the median absolute second difference along the detector.

    An object whose second differences are as large as the noise adds to it.
    """
    second = sinogram[..., 2:] - 2 * sinogram[..., 1:-1] + sinogram[..., :-2]
    second = second[np.abs(sinogram[..., 1:-1]) > 1e-12]
    if second.size == 0:
        raise InputError("the sinogram is zero everywhere; check the file")
    return float(1.4826 * np.median(np.abs(second)) / 6**0.5)


class Transmission(Operator):
    """exp(-mu (A x)): the share of photons that a ray lets through; nonlinear.

    Args:
        projector: line integrals in mm, unweighted.
        mu: attenuation of x = 1, in 1/mm.
    """

    def __init__(self, projector: Projector, mu: float) -> None:
        self.projector, self.mu = projector, mu
        self.event_shape = projector.event_shape

    def forward(self, x: Float[Tensor, "batch *slice 1 y x"]) -> Float[Tensor, "batch *slice view detector"]:
        return torch.exp(-self.mu * self.projector(x))

    def data_size(self, y: Float[Tensor, "*data"]) -> int:
        return y.numel()
