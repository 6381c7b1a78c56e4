"""Noise that is not Gaussian: counts, magnitudes, heavy tails, rounding.

With c a component of the clean data A(x) and y of the measured ones, all independent:

    Poisson           y ~ Poisson(rate),   rate = gain max(c, 0) + background
    Poisson-Gaussian  y = k + sigma e,     k ~ Poisson(rate)
    Rician            y = | |c| + sigma (e1 + i e2) |
    Laplace           p(y | c) = exp(-|y - c| / scale) / (2 scale)
    quantised         y = step round((c + sigma e) / step)

`mean_at` and `variance_at` are the moments of y given c, what a Gaussian approximation of its law
needs. (The variance is the inverse Fisher information about the mean for Gaussians and counts,
and lies above it elsewhere.) Masked components, zero in c and in y, count for nothing.

Sources: Foi et al., IEEE TIP 17(10), 2008 (Poisson-Gaussian); Gudbjartsson & Patz, MRM 34(6), 1995
(Rician); Widrow & Kollar, Quantization Noise, 2008 (Sheppard's variance). The Poisson-Gaussian sum
about its largest term is ours.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from invdiff.errors import InputError

DARK = 1e-300  # stands for a rate of zero: a count under it is refuted by a finite number
REACH = 8.5  # half-width in sigma of the Poisson-Gaussian sum: relative error below 1e-15
NODES, WEIGHTS = (torch.from_numpy(row) for row in leggauss(12))


def positive(**values: float) -> None:
    """Refuse parameters that are not finite numbers above zero."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise InputError(f"noise parameter {name} is {value}; give a finite number above zero")


def refuse(y: Tensor, bad: Tensor, law: str, mend: str) -> None:
    """Refuse data whose `bad` components cannot occur."""
    if bool(bad.any()):
        first = float(y[bad].flatten()[0])
        found = f"{int(bad.sum())} of the data are impossible under {law}, the first {first:g}"
        raise InputError(f"{found}; {mend}")


class Independent(ABC):
    """A noise model given by the density of one component, unbiased with one variance unless it says so."""

    @abstractmethod
    def log_density(self, clean: Float[Tensor, "*data"], y: Tensor) -> Float[Tensor, "*data"]:
        """`log p(y | clean)` of every component; both float64, y broadcasts."""

    @abstractmethod
    def variance(self) -> float:
        """See `Noise`."""

    def log_likelihood(
        self, clean: Float[Tensor, "batch *data"], y: Float[Tensor, "*data"], size: int
    ) -> Float[Tensor, "batch"]:
        """`log p(y | clean)`; a masked component adds log p(0 | 0), which is taken off again."""
        total = self.log_density(clean.double(), y.double()).flatten(1).sum(dim=1)
        if size == y.numel():
            return total
        zero = torch.zeros((), dtype=torch.float64)
        return total - (y.numel() - size) * float(self.log_density(zero, zero))

    def mean_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return clean

    def variance_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return clean.new_tensor(self.variance()).expand(clean.shape)

    def check(self, y: Float[Tensor, "*data"]) -> None:  # noqa: B027 (any finite y is possible)
        """See `Noise`."""


@dataclass(frozen=True)
class PoissonNoise(Independent):
    """Counts `y ~ Poisson(gain max(clean, 0) + background)`.

    Attributes:
        gain: counts per unit of clean.
        background: counts where nothing is; above zero where a sampler may visit clean <= 0, since
            a count there is then unlikely instead of impossible (and has a gradient).
        typical: value of clean at which the one number `variance()` is quoted.
    """

    gain: float
    background: float = field(default=0.0, kw_only=True)
    typical: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        positive(gain=self.gain, typical=self.typical)
        if not (self.background >= 0 and math.isfinite(self.background)):
            raise InputError(
                f"noise parameter background is {self.background}; give a finite number, 0 or more"
            )

    def log_density(self, clean: Float[Tensor, "*data"], y: Tensor) -> Float[Tensor, "*data"]:
        rate = self.mean_at(clean).clamp_min(DARK)
        return y * rate.log() - rate - torch.lgamma(y + 1)

    def mean_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return self.gain * clean.clamp_min(0) + self.background

    def variance_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return self.mean_at(clean).clamp_min(torch.finfo(clean.dtype).tiny)

    def variance(self) -> float:
        return self.gain * self.typical + self.background

    def sample(self, clean: Float[Tensor, "*data"], generator: torch.Generator) -> Float[Tensor, "*data"]:
        return torch.poisson(self.mean_at(clean).cpu(), generator=generator).to(clean)

    def check(self, y: Float[Tensor, "*data"]) -> None:
        refuse(y, (y < 0) | (y != y.round()), "Poisson noise", "give counts, whole numbers from zero on")


@dataclass(frozen=True)
class PoissonGaussianNoise(PoissonNoise):
    """Counts with read noise, `y = Poisson(gain max(clean, 0) + background) + sigma e`.

    The density is a sum over the count k whose terms are log-concave in k, with a curvature of at
    least 1 / sigma^2: 8.5 sigma to either side of the largest term (+ 1) leave out less than 1e-15
    of it. It costs 17 sigma + 3 terms a component; far above sigma = 10 a Gaussian will do.

    Attributes:
        sigma: of the read noise, in counts.
    """

    sigma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(sigma=self.sigma)

    def log_density(self, clean: Float[Tensor, "*data"], y: Tensor) -> Float[Tensor, "*data"]:
        rate, square = self.mean_at(clean).clamp_min(DARK), self.sigma**2
        # The largest term solves k + sigma^2 log k = y + sigma^2 log rate: Newton in log k.
        with torch.no_grad():
            goal = y + square * rate.log()
            log_k = torch.where(goal > 1, goal.clamp_min(1).log(), goal.clamp_max(0) / square)
            for _ in range(30):
                k = log_k.exp()
                log_k = log_k - (k + square * log_k - goal) / (k + square)
            half = math.ceil(REACH * self.sigma) + 1
            offsets = torch.arange(-half, half + 1, dtype=torch.float64, device=clean.device)
            count = log_k.exp().round()[..., None] + offsets
        known, rates = count.clamp_min(0), rate[..., None]
        read = (y[..., None] - known) ** 2 / (2 * square)
        term = known * rates.log() - rates - torch.lgamma(known + 1) - read
        total = term.masked_fill(count < 0, -math.inf).logsumexp(dim=-1)
        return total - math.log(self.sigma) - 0.5 * math.log(2 * math.pi)

    def variance_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return self.mean_at(clean) + self.sigma**2

    def variance(self) -> float:
        return super().variance() + self.sigma**2

    def sample(self, clean: Float[Tensor, "*data"], generator: torch.Generator) -> Float[Tensor, "*data"]:
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        return super().sample(clean, generator) + self.sigma * noise.to(clean.device)

    def check(self, y: Float[Tensor, "*data"]) -> None:
        """Any finite y is possible."""


@dataclass(frozen=True)
class RicianNoise(Independent):
    """Magnitudes of complex data with Gaussian noise, `y = | |clean| + sigma (e1 + i e2) |`.

    Attributes:
        sigma: per real component of the complex data.
    """

    sigma: float

    def __post_init__(self) -> None:
        positive(sigma=self.sigma)

    def log_density(self, clean: Float[Tensor, "*data"], y: Tensor) -> Float[Tensor, "*data"]:
        size, square = clean.abs(), self.sigma**2
        bessel: Tensor = torch.special.i0e(y * size / square).log()  # log I0(z) - z
        return (y / square).log() - (y - size) ** 2 / (2 * square) + bessel

    def mean_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        half = clean**2 / (4 * self.sigma**2)
        laguerre: Tensor = (1 + 2 * half) * torch.special.i0e(half) + 2 * half * torch.special.i1e(half)
        return self.sigma * math.sqrt(math.pi / 2) * laguerre

    def variance_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        """From (2 - pi/2) sigma^2 at zero to sigma^2; the clamp removes what cancels at high signal."""
        wide = clean.double()
        found = 2 * self.sigma**2 + wide**2 - self.mean_at(wide) ** 2
        return found.clamp((2 - math.pi / 2) * self.sigma**2, self.sigma**2).to(clean)

    def variance(self) -> float:
        return self.sigma**2

    def sample(self, clean: Float[Tensor, "*data"], generator: torch.Generator) -> Float[Tensor, "*data"]:
        noise = torch.randn((2, *clean.shape), generator=generator, dtype=clean.dtype).to(clean.device)
        return torch.hypot(clean + self.sigma * noise[0], self.sigma * noise[1])

    def check(self, y: Float[Tensor, "*data"]) -> None:
        mend = "give magnitudes above zero and leave masked components out"
        refuse(y, y <= 0, "Rician noise", mend)


@dataclass(frozen=True)
class LaplaceNoise(Independent):
    """Heavy-tailed noise, `p(y | clean) = exp(-|y - clean| / scale) / (2 scale)`.

    Attributes:
        scale: mean absolute error; the variance is 2 scale^2.
    """

    scale: float

    def __post_init__(self) -> None:
        positive(scale=self.scale)

    def log_density(self, clean: Float[Tensor, "*data"], y: Tensor) -> Float[Tensor, "*data"]:
        return -(y - clean).abs() / self.scale - math.log(2 * self.scale)

    def variance(self) -> float:
        return 2 * self.scale**2

    def sample(self, clean: Float[Tensor, "*data"], generator: torch.Generator) -> Float[Tensor, "*data"]:
        two = torch.empty((2, *clean.shape), dtype=clean.dtype).exponential_(generator=generator)
        return clean + self.scale * (two[0] - two[1]).to(clean.device)


@dataclass(frozen=True)
class QuantisedNoise(Independent):
    """Gaussian noise, then rounding: `y = step round((clean + sigma e) / step)`.

    Attributes:
        sigma: of the noise before rounding.
        step: of the quantiser. The moments are Sheppard's, c and sigma^2 + step^2 / 12: wrong by
            less than 1 % of step^2 for sigma above step / 2, the dither average below it.
    """

    sigma: float
    step: float

    def __post_init__(self) -> None:
        positive(sigma=self.sigma, step=self.step)

    def log_density(self, clean: Float[Tensor, "*data"], y: Tensor) -> Float[Tensor, "*data"]:
        """`log [Phi(m + w) - Phi(m - w)]`, m = |y - c| / sigma and w = step / (2 sigma)."""
        middle = (y - clean).abs() / self.sigma
        width = self.step / (2 * self.sigma)
        flat = width * (middle + width) < 2
        # Where the density hardly varies over the cell the difference cancels: Gauss-Legendre there.
        m = torch.where(flat, middle, 0.0)[..., None] + width * NODES.to(middle) * flat[..., None]
        inside = (WEIGHTS.to(middle).log() - 0.5 * m**2).logsumexp(dim=-1)
        inside = inside + math.log(width) - 0.5 * math.log(2 * math.pi)
        far = torch.where(flat, width + 2.0, middle)
        upper = torch.special.log_ndtr(width - far)
        lower = torch.special.log_ndtr(-width - far)
        outside = upper + torch.log1p(-(lower - upper).exp())
        return torch.where(flat, inside, outside)

    def variance(self) -> float:
        return self.sigma**2 + self.step**2 / 12

    def sample(self, clean: Float[Tensor, "*data"], generator: torch.Generator) -> Float[Tensor, "*data"]:
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype).to(clean.device)
        return self.step * ((clean + self.sigma * noise) / self.step).round()

    def check(self, y: Float[Tensor, "*data"]) -> None:
        cells = y.double() / self.step
        off = (cells - cells.round()).abs() > 1e-9 + 4 * torch.finfo(y.dtype).eps * cells.abs()
        refuse(y, off, "this quantiser", f"give multiples of step = {self.step:g}, or the step of the data")
