"""`grf`: an image-size Gaussian field whose posterior is known mode by mode.

    spectrum   S(k) ~ (1 + |k|^2 / k0^2)^(-3/2), k in cycles per field of view, k0 = 3, mean 1
    mri        k-space rows of a complex field (two real channels):  y = M F x + sigma_y e
    blur       a periodic Gaussian blur of a real field:             y = h * x + sigma_y e

Both operators are diagonal where the prior is (the Fourier, respectively Hartley basis), so that with
gain a(k) in {0, 1} or h(k)

    P(k) = S sigma_y^2 / (a^2 S + sigma_y^2),     mean(k) = a S y(k) / (a^2 S + sigma_y^2)
    log p(y) = sum over measured modes of log N(y; 0, a^2 S + sigma_y^2)

and every mode of a draw, standardised, is N(0, 1): the distance of a set of draws is read off in eight radial
bands of measured and of unmeasured modes, where a wrong spread has nowhere to hide.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import LinearOperator
from invdiff.prior.gaussian import GaussianPrior, hartley

BANDS = 8


def power_spectrum(side: int, corner: float = 3.0) -> Float[Tensor, "side side"]:
    """S(k) with mean 1, so that every pixel has variance 1."""
    k = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    radius = (k[:, None] ** 2 + k[None, :] ** 2).sqrt()
    spectrum = (1 + radius**2 / corner**2) ** -1.5
    normalised: Tensor = spectrum / spectrum.mean()
    return normalised


def to_fourier(x: Float[Tensor, "batch 2 y x"]) -> Float[Tensor, "batch 2 y x"]:
    """The orthonormal DFT of a complex field held as two channels."""
    return _pair(torch.fft.fft2(torch.complex(x[:, 0], x[:, 1]), norm="ortho"))


def from_fourier(c: Float[Tensor, "batch 2 y x"]) -> Float[Tensor, "batch 2 y x"]:
    """Its inverse and adjoint."""
    return _pair(torch.fft.ifft2(torch.complex(c[:, 0], c[:, 1]), norm="ortho"))


def _pair(values: Tensor) -> Tensor:
    return torch.stack([values.real, values.imag], dim=1)


class DiagonalInModes(LinearOperator):
    """`y = a(k) (T x)(k)` for T the DFT of a complex field or the Hartley transform of a real one."""

    def __init__(self, gain: Float[Tensor, "y x"], complex_field: bool) -> None:
        self.gain, self.complex_field = gain, complex_field
        self.channels = 2 if complex_field else 1
        self.event_shape = (self.channels, *gain.shape)

    def modes(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """T x."""
        return to_fourier(x) if self.complex_field else hartley(x)

    def image(self, c: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """T^-1 c."""
        return from_fourier(c) if self.complex_field else hartley(c)

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        return self.gain.to(x) * self.modes(x)

    def adjoint(self, y: Float[Tensor, "batch *data"]) -> Float[Tensor, "batch *event"]:
        return self.image(self.gain.to(y) * y)

    def resolvent(self, rhs: Float[Tensor, "batch *event"], gamma: float) -> Float[Tensor, "batch *event"]:
        return self.image(self.modes(rhs) / (1 + gamma * self.gain.to(rhs) ** 2))

    def data_size(self, y: Float[Tensor, "*data"]) -> int:
        return int((self.gain > 0).sum()) * self.channels


@dataclass(frozen=True)
class Grf:
    """A field problem with its posterior, mode by mode.

    Attributes:
        mean, variance: of every mode's posterior.
        spectrum: of the prior.
    """

    prior: GaussianPrior
    measurement: Measurement
    operator: DiagonalInModes
    spectrum: Float[Tensor, "y x"]
    mean: Float[Tensor, "channels y x"]
    variance: Float[Tensor, "y x"]
    log_evidence: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count channels y x"]:
        """Exact draws."""
        white = torch.randn((count, *self.shape), generator=generator, dtype=torch.float64)
        return self.operator.image(self.mean + self.variance.sqrt() * white)

    def standardised(self, x: Float[Tensor, "count channels y x"]) -> Float[Tensor, "count channels y x"]:
        """Modes of the draws in units of their posterior: independent N(0, 1) for exact draws."""
        return (self.operator.modes(x.double()) - self.mean) / self.variance.sqrt()

    def bands(self) -> list[Tensor]:
        """Masks of radial bands of measured and of unmeasured modes, empty ones left out."""
        side = self.spectrum.shape[0]
        k = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
        radius = (k[:, None] ** 2 + k[None, :] ** 2).sqrt()
        edge = torch.quantile(radius.flatten(), torch.linspace(0, 1, BANDS + 1, dtype=torch.float64))
        edge[-1] += 1
        seen = self.operator.gain > 0
        found = []
        for a, b in itertools.pairwise(edge.tolist()):
            ring = (radius >= a) & (radius < b)
            found += [part for part in (ring & seen, ring & ~seen) if int(part.sum()) >= 8]
        return found

    def band_errors(self, x: Float[Tensor, "count channels y x"]) -> Float[Tensor, "bands 2"]:
        """Of each band, the root mean squared error of the mean (less its noise) and std / exact - 1."""
        z = self.standardised(x)
        count = len(z)
        rows = []
        for band in self.bands():
            part = z[:, :, band]
            center = part.mean(dim=0)
            bias2 = center.square().mean() - 1 / count
            spread2 = (part - center).square().sum() / ((count - 1) * center.numel())
            rows.append(torch.stack([bias2.clamp_min(0).sqrt(), spread2.sqrt() - 1]))
        return torch.stack(rows)

    def distance(self, x: Float[Tensor, "count channels y x"], other: Tensor | None = None) -> float:
        """Root mean square over the bands of bias and spread error, in exact stds."""
        return float(self.band_errors(x).square().sum(dim=1).mean().sqrt())


def mask_columns(side: int, acceleration: int, seed: int) -> Float[Tensor, "side side"]:
    """Random columns with the central 8 % always measured, as an MR scan would."""
    generator = torch.Generator().manual_seed(seed)
    center = max(2, round(0.08 * side))
    keep = torch.zeros(side)
    order = torch.fft.fftfreq(side, 1 / side).abs().argsort()
    keep[order[:center]] = 1
    rest = order[center:]
    more = max(0, side // acceleration - center)
    keep[rest[torch.randperm(len(rest), generator=generator)[:more]]] = 1
    return keep.double().expand(side, side).clone()


def blur_gain(side: int, width: float) -> Float[Tensor, "side side"]:
    """Transfer function of a periodic Gaussian blur of std `width` pixels."""
    k = torch.fft.fftfreq(side, dtype=torch.float64)
    square = k[:, None] ** 2 + k[None, :] ** 2
    return torch.exp(-2 * (math.pi * width) ** 2 * square)


def grf(kind: str = "mri", side: int = 32, sigma: float = 0.1, seed: int = 0) -> Grf:
    """The problem of `seed`: `mri` (4x random columns) or `blur` (Gaussian, 1.2 pixels)."""
    if kind == "mri":
        gain, channels = mask_columns(side, 4, seed), 2
    elif kind == "blur":
        gain, channels = blur_gain(side, 1.2), 1
    else:
        raise InputError(f"grf knows mri and blur; found {kind!r}")
    spectrum = power_spectrum(side)
    operator = DiagonalInModes(gain, kind == "mri")
    zero = torch.zeros((channels, side, side), dtype=torch.float64)
    prior = GaussianPrior.circulant(zero, spectrum)
    g = torch.Generator().manual_seed(seed)
    truth = prior.sample(1, g)
    noise = torch.randn(truth.shape, generator=g, dtype=torch.float64)
    y = (operator.forward(truth) + sigma * noise * (gain > 0))[0]
    total = gain**2 * spectrum + sigma**2
    seen = gain > 0
    log_evidence = -0.5 * float((y**2 / total + torch.log(2 * math.pi * total))[:, seen].sum())
    return Grf(
        prior,
        Measurement(operator, GaussianNoise(sigma), y),
        operator,
        spectrum,
        gain * spectrum * y / total,
        spectrum * sigma**2 / total,
        log_evidence,
    )
