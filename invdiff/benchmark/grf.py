"""`grf`: an image-size Gaussian field whose posterior is known, coordinate by coordinate.

    spectrum   S(k) ~ (1 + |k|^2 / k0^2)^(-3/2), k in cycles per field of view, k0 = 3, mean 1
    mri        k-space columns of a complex field (two real channels)   y = M F x + sigma_y e
    ct         Fourier slices of a real field, in the Hartley basis      y = M H x + sigma_y e
    blur       Gaussian blur of a real field, in the Hartley basis       y = h H x + sigma_y e
    superres   blur, then every s-th pixel: with h even, the s^2 aliases k_j of a low-resolution mode q
               add up,  y(q) = (1/s) sum_j h(k_j) (H x)(k_j) + sigma_y e
    landmarks  a velocity field (two channels) at points between its pixels, y = R x + sigma_y e

Each has real coordinates c of the field that are independent, N(0, v), and are measured one by one,
d = a c + sigma_y e, or not at all (a = 0), so that the posterior is independent as well:

    P = v sigma_y^2 / (a^2 v + sigma_y^2),     mean = a v d / (a^2 v + sigma_y^2)
    log p(y) = sum over measured coordinates of log N(d; 0, a^2 v + sigma_y^2)

For the first three they are the modes themselves, v = S. For super-resolution they are the aliases of q in
units of sqrt(S), reflected so that the one combination that is measured is a coordinate; for landmarks the
right singular vectors of R on white modes.

Every coordinate of a draw, standardised, is N(0, 1). Draws are judged in eight radial bands of measured and
of unmeasured coordinates, where a wrong spread has nowhere to hide.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invdiff.benchmark.fields import (
    Coordinates,
    DiagonalInModes,
    Landmarks,
    SuperResolution,
    blur_gain,
    column_mask,
    power_spectrum,
    radius,
    slice_mask,
)
from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.prior.gaussian import GaussianPrior

BANDS = 8
NOISE = 4.0  # standard errors
FieldOperator: TypeAlias = DiagonalInModes | SuperResolution | Landmarks
FACTORS = {"mri": 4, "ct": 4, "blur": 1, "superres": 2, "landmarks": 1}


@dataclass(frozen=True)
class Posterior:
    """Independent coordinates under prior and data.

    Attributes:
        mean, variance: of every coordinate given y.
        log_evidence: log p(y).
        chi2: posterior expectation of |y - A x|^2 / sigma_y^2 per measured component.
    """

    mean: Float[Tensor, "channels y x"]
    variance: Float[Tensor, "y x"]
    log_evidence: float
    chi2: float


def conditioned(
    coordinates: Coordinates,
    data: Float[Tensor, "channels y x"],
    sigma: float,
    mean: Float[Tensor, "channels y x"] | float = 0.0,
) -> Posterior:
    """The posterior of coordinates N(mean, v) given `data` = a c + sigma e."""
    gain, prior = coordinates.gain, coordinates.variance
    total = gain**2 * prior + sigma**2
    gap = data - gain * mean
    variance = prior * sigma**2 / total
    seen = gain != 0
    logs = (gap**2 / total + torch.log(2 * math.pi * total))[:, seen]
    square = (gap * sigma / total) ** 2 + gain**2 * variance / sigma**2
    return Posterior(
        mean + gain * prior * gap / total, variance, -0.5 * float(logs.sum()), float(square[:, seen].mean())
    )


@dataclass(frozen=True)
class Grf:
    """A field problem with its posterior.

    Attributes:
        spectrum: of the prior.
        coordinates: in which everything is independent.
        law: the posterior of the coordinates.
    """

    prior: GaussianPrior
    measurement: Measurement
    operator: FieldOperator
    spectrum: Float[Tensor, "y x"]
    coordinates: Coordinates
    law: Posterior

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.law.mean.shape)

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count channels y x"]:
        """Exact draws."""
        white = torch.randn((count, *self.shape), generator=generator, dtype=torch.float64)
        return self.coordinates.back(self.law.mean + self.law.variance.sqrt() * white)

    def standardised(self, x: Float[Tensor, "count channels y x"]) -> Float[Tensor, "count channels y x"]:
        """Coordinates of the draws in units of their posterior: independent N(0, 1) for exact draws."""
        return (self.coordinates.to(x.double()) - self.law.mean) / self.law.variance.sqrt()

    def bands(self) -> list[Bool[Tensor, "y x"]]:
        """Masks of radial bands of measured and of unmeasured coordinates."""
        return bands(self.coordinates.gain != 0)

    def distance(self, x: Float[Tensor, "count channels y x"], other: Tensor | None = None) -> float:
        """Root mean square over the bands of bias and spread error, in exact stds."""
        return band_distance(self.standardised(x), self.bands())

    def pixel_variance(self) -> float:
        """Of the posterior, mean over the pixels: the mean of its variances mode by mode."""
        variance = self.operator.modal_variance(self.spectrum, self.measurement.noise.variance())
        return float(variance.mean())


def bands(seen: Bool[Tensor, "y x"]) -> list[Bool[Tensor, "y x"]]:
    """Masks of radial bands (eight, on a small field one for four pixels of side), of seen and of unseen
    coordinates each; those of fewer than 8 are left out."""
    distance = radius(len(seen))
    count = min(BANDS, len(seen) // 4)
    edge = torch.quantile(distance.flatten(), torch.linspace(0, 1, count + 1, dtype=torch.float64))
    edge[-1] += 1
    found = []
    for a, b in itertools.pairwise(edge.tolist()):
        ring = (distance >= a) & (distance < b)
        found += [part for part in (ring & seen, ring & ~seen) if int(part.sum()) >= 8]
    return found


def band_distance(z: Float[Tensor, "count channels y x"], masks: list[Bool[Tensor, "y x"]]) -> float:
    """Root mean square over bands of the bias of the mean (less its noise) and of std / exact - 1."""
    count, rows = len(z), []
    for band in masks:
        part = z[:, :, band]
        center = part.mean(dim=0)
        bias2 = center.square().mean() - 1 / count
        spread2 = (part - center).square().sum() / ((count - 1) * center.numel())
        rows.append(bias2.clamp_min(0) + (spread2.sqrt() - 1) ** 2)
    return float(torch.stack(rows).mean().sqrt())


def worst_mean(z: Float[Tensor, "count channels y x"], masks: list[Bool[Tensor, "y x"]]) -> float:
    """1 + the largest |mean of z| over the bands beyond its noise: a coherent shift, in exact stds."""
    return 1 + worst(z, masks, 1.0)


def worst_variance(z: Float[Tensor, "count channels y x"], masks: list[Bool[Tensor, "y x"]]) -> float:
    """1 + the largest |mean of z^2 - 1| beyond its noise: a wrong spread, or a bias of any sign."""
    return 1 + worst(z.square() - 1, masks, 2.0)


def worst(
    values: Float[Tensor, "count channels y x"], masks: list[Bool[Tensor, "y x"]], variance: float
) -> float:
    """Largest |mean| over the bands, less `NOISE` standard errors; exact sets have 0.

    Bands differ in size, and the noise of the smallest would hide what is wrong in the others.
    """
    parts = [values[:, :, band] for band in masks]
    return max(0.0, *(abs(float(p.mean())) - NOISE * math.sqrt(variance / p.numel()) for p in parts))


def grf(
    kind: str = "mri", side: int = 32, sigma: float = 0.1, seed: int = 0, factor: int | None = None
) -> Grf:
    """The problem of `seed`.

    Args:
        kind: `mri` (random columns), `ct` (slices at equal angles), `blur` (Gaussian, 1.2 pixels),
            `superres` (Gaussian of half a low-resolution pixel, then decimation) or `landmarks` (points
            drawn at random).
        side: pixels of a side.
        sigma: noise level per real component.
        seed: of mask, truth and noise.
        factor: acceleration of `mri` (4) and `ct` (4: side / 4 views), decimation of `superres` (2); there
            are side / factor `landmarks` (1).

    Raises:
        InputError: for another kind.
    """
    if kind not in FACTORS:
        raise InputError(f"grf knows {', '.join(FACTORS)}; found {kind!r}")
    spectrum = power_spectrum(side)
    operator = field_operator(kind, side, factor or FACTORS[kind], seed)
    assert operator.event_shape is not None
    zero = torch.zeros(operator.event_shape, dtype=torch.float64)
    prior = GaussianPrior.circulant(zero, spectrum)
    g = torch.Generator().manual_seed(seed)
    clean = operator.forward(prior.sample(1, g))
    noise = torch.randn(clean.shape, generator=g, dtype=torch.float64)
    coordinates = operator.coordinates(spectrum)
    if isinstance(operator, DiagonalInModes):
        noise = noise * (operator.gain > 0)
    y = (clean + sigma * noise)[0]
    law = conditioned(coordinates, coordinates.data(y), sigma)
    measurement = Measurement(operator, GaussianNoise(sigma), y)
    return Grf(prior, measurement, operator, spectrum, coordinates, law)


def field_operator(kind: str, side: int, factor: int, seed: int) -> FieldOperator:
    """The forward model of a kind."""
    if kind == "superres":
        return SuperResolution(blur_gain(side, factor / 2), factor)
    if kind == "landmarks":
        g = torch.Generator().manual_seed(seed)
        return Landmarks(side * torch.rand(side // factor, 2, generator=g, dtype=torch.float64), side)
    if kind == "mri":
        return DiagonalInModes(column_mask(side, factor, seed), complex_field=True)
    gain = slice_mask(side, side // factor) if kind == "ct" else blur_gain(side, 1.2)
    return DiagonalInModes(gain, complex_field=False)
