"""The boundary condition at the first noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from invdiff.prior.prior import PriorCard
from invdiff.sampler.keys import ParticleNoise


@dataclass(frozen=True)
class PriorDraw:
    """`x = m + sqrt(sigma^2 + v) n` with mean m and variance v of the prior's card.

    Not N(0, sigma^2): at a first level that does not dwarf the data the mean and
    the variance of the data are part of the marginal.
    """

    def __call__(
        self, card: PriorCard, shape: tuple[int, ...], sigma: float, noise: ParticleNoise
    ) -> Float[Tensor, "particles *event"]:
        return card.mean + math.sqrt(sigma**2 + card.std**2) * noise.normal(shape)


@dataclass(frozen=True)
class WarmStart:
    """`x = x_init + sigma n`: start from an estimate, at the level it is trusted to.

    The start law is then part of the answer: a posterior from a warm start is
    one only if sigma covers the error of `x_init`.
    """

    x_init: Float[Tensor, "*event"]

    def __call__(
        self, card: PriorCard, shape: tuple[int, ...], sigma: float, noise: ParticleNoise
    ) -> Float[Tensor, "particles *event"]:
        return self.x_init.to(noise.device, noise.dtype) + sigma * noise.normal(shape)
