"""Where a filter starts and where its levels go, read off the prior and a pilot run."""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.sampler.weighting.few_data import FewData


def prior_scale(
    problem: FewData, generator: torch.Generator, iterations: int = 12
) -> tuple[Float[Tensor, "size"], float]:
    """The prior's mean and largest standard deviation, read off D at a huge level.

    `D(m + s v; s) - m` tends to `Cov v / s`; power iterations on it. A network is asked at the
    top of its range, an exact prior at 1e5.
    """
    big = min(1e5, problem.target.prior.card.sigma_range[1])
    origin = torch.zeros(1, problem.size, dtype=problem.target.dtype, device=problem.target.device)
    mean = problem.denoise(origin, big)
    center = problem.denoise(mean, big)
    vector = problem.normal((1, problem.size), generator)
    variance = 0.0
    for _ in range(iterations):
        vector = vector / vector.norm()
        vector = (problem.denoise(mean + big * vector, big) - center) * big
        variance = float(vector.norm())
    # D at a finite level shrinks by var / (var + s^2).
    variance = variance / max(1e-12, 1 - variance / big**2)
    return mean[0], math.sqrt(variance)


def placed(levels: list[float], curvature: list[float], steps: int) -> tuple[float, ...]:
    """`steps` + 1 levels whose density per unit of log sigma follows the cube root of the curvature."""
    # Below 1e-6 the curvature is rounding: an isotropic Gaussian gets a geometric grid.
    top = max(curvature) + 1e-6
    density = [max(0.2, ((value + 1e-6) / top) ** (1 / 3)) for value in curvature]
    logs = [-math.log(level) for level in levels]
    total = [0.0]
    for (a, b), weight in zip(itertools.pairwise(logs), density, strict=True):
        total.append(total[-1] + weight * (b - a))
    found, k = [], 0
    for i in range(steps + 1):
        goal = total[-1] * i / steps
        while k < len(density) - 1 and total[k + 1] < goal:
            k += 1
        found.append(logs[k] + (goal - total[k]) / density[k])
    return (levels[0], *(math.exp(-value) for value in found[1:-1]), levels[-1])
