"""Draws from a prior alone: exact where it is known in closed form, else by its reverse SDE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.prior.prior import Prior
from invdiff.sampler.integrator import named
from invdiff.sampler.keys import ParticleNoise, stream
from invdiff.sampler.loop import reverse
from invdiff.sampler.schedule import karras
from invdiff.sampler.start import PriorDraw

PRIOR = 3  # end of the keys of exact draws


def sample_prior(
    prior: Prior,
    shape: tuple[int, ...],
    particles: Sequence[int],
    *,
    seed: int = 0,
    steps: int = 64,
    sigma_max: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "particles *event"]:
    """Samples of the given numbers: exact from a closed form, else by the 2M SDE in `steps` calls.

    `sigma_max` defaults to the top of the prior's range, at most 80.
    """
    exact = getattr(prior, "sample", None)
    if exact is not None:
        rows = [exact(1, stream(seed, 0, number, PRIOR)) for number in particles]
        return torch.cat(rows).reshape(-1, *shape).to(device=device, dtype=dtype)
    low, high = prior.card.sigma_range
    first = min(80.0, high) if sigma_max is None else sigma_max
    levels = (*karras(steps, first, max(0.003, low)), 0.0)
    noise = ParticleNoise(seed, particles, device=device, dtype=dtype)
    start = PriorDraw()(prior.card, shape, levels[0], noise)
    return reverse(prior, start, levels, named("2m_sde"), noise.normal)
