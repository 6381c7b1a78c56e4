"""The boundary condition at the first noise level: how `DiffusionSampler(..., start=...)` begins.

`PriorDraw` by default; `WarmStart` from an estimate; `teleport.GaussianTeleport` from a higher level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.prior.prior import Prior, PriorCard
from invdiff.sampler.keys import ParticleNoise


def prior_marginal(
    card: PriorCard, sigma: float, normal: Float[Tensor, "particles *event"]
) -> Float[Tensor, "particles *event"]:
    """`m + sqrt(sigma^2 + v) n` with mean m and variance v of the prior's card.

    Not N(0, sigma^2): at a first level that does not dwarf the data the mean and the variance of the
    data are part of the marginal.
    """
    return card.mean + math.sqrt(sigma**2 + card.std**2) * normal


def first_particles(
    prior: Prior,
    sigma: float,
    shape: tuple[int, ...],
    count: int,
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
) -> Float[Tensor, "particles *event"]:
    """Particles at the first level: exact where the prior can be drawn from, else `prior_marginal`.

    A prior known in closed form has `sample(count, generator)`; then the start adds no error at any
    first level.
    """
    white = torch.randn((count, *shape), generator=generator, dtype=dtype)
    draw = getattr(prior, "sample", None)
    if draw is None:
        return prior_marginal(prior.card, sigma, white.to(device))
    clean: Tensor = draw(count, generator)
    return (clean.to(dtype).reshape(white.shape) + sigma * white).to(device)


@dataclass(frozen=True)
class PriorDraw:
    """A draw from the prior's marginal at the first level, see `prior_marginal`."""

    def __call__(
        self, card: PriorCard, shape: tuple[int, ...], sigma: float, noise: ParticleNoise
    ) -> Float[Tensor, "particles *event"]:
        return prior_marginal(card, sigma, noise.normal(shape))


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
