"""What a Feynman-Kac method is built for: a prior and a measurement, on events of one shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.measurement.measurement import Measurement
from invdiff.measurement.operator import LinearOperator
from invdiff.prior.prior import Prior
from invdiff.sampler.integrator import named
from invdiff.sampler.start import first_particles

ANCESTRAL = named("ddpm")


@dataclass(frozen=True)
class Target:
    """p(x0) p(y | x0) as filters see it.

    Attributes:
        prior, measurement: the two factors.
        shape: of an event.
        device, dtype: of the particles.
    """

    prior: Prior
    measurement: Measurement
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    def normal(self, count: int, generator: torch.Generator) -> Float[Tensor, "n *event"]:
        """Standard normal noise for `count` particles."""
        return torch.randn((count, *self.shape), generator=generator, dtype=self.dtype).to(self.device)

    def first(self, sigma: float, count: int, generator: torch.Generator) -> Float[Tensor, "n *event"]:
        """Particles at the first level, see `start.first_particles`."""
        return first_particles(self.prior, sigma, self.shape, count, generator, self.device, self.dtype)

    def denoise(self, x: Float[Tensor, "n *event"], sigma: float) -> Float[Tensor, "n *event"]:
        """D(x; sigma), with a graph only where x asks for one.

        Raises:
            FloatingPointError: where it is not finite, naming the level.
        """
        with torch.set_grad_enabled(x.requires_grad):
            denoised = self.prior.denoise(x, sigma)
        if not bool(torch.isfinite(denoised).all()):
            raise FloatingPointError(f"the prior returned values that are not finite at sigma = {sigma:.4g}")
        return denoised

    @property
    def norm(self) -> float:
        """|A| of a linear operator; 1 for others."""
        operator = self.measurement.operator
        if not isinstance(operator, LinearOperator):
            return 1.0
        return operator.norm(self.shape, self.device, self.dtype)

    def bounds(self, sigma_max: float, sigma_min: float, resolve: bool = False) -> tuple[float, float]:
        """First and last level within the prior's range.

        With `resolve` the last is at most sigma_y / (3 |A|): what stands for a law of that width (x0 = D,
        or a likelihood at the noisy x) must not be wider than the data.
        """
        low, high = self.prior.card.sigma_range
        if resolve and (norm := self.norm) > 0:
            sigma_min = min(sigma_min, self.measurement.noise.variance() ** 0.5 / (3 * norm))
        return min(sigma_max, high), max(sigma_min, low)
