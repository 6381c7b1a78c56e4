"""One- and two-dimensional Feynman-Kac targets whose moments are known.

Mixtures of Gaussians observed through one number, and compositions of them (annealed, products,
classifier-free) with no data, whose moments come from quadrature. Each is given with the law at the
last level sigma = .01, where the path ends.

The levels are K values from `sigma_max` to .01, uniform in log(sigma^2 + .05).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import MatrixOperator
from invdiff.prior.compose import Composition
from invdiff.prior.mixture import GaussianMixture
from invdiff.prior.prior import Prior

LAST = 0.01


def mixture(weights: list[float], means: list[list[float]], variances: list[list[float]]) -> GaussianMixture:
    """A float64 mixture from lists, one row a component."""
    parts = (torch.tensor(rows, dtype=torch.float64) for rows in (weights, means, variances))
    return GaussianMixture(*parts)


def three_modes() -> GaussianMixture:
    """P1: three modes in one dimension."""
    return mixture([0.5, 0.3, 0.2], [[-2], [1], [2.5]], [[0.16], [0.25], [0.09]])


def first_factor() -> GaussianMixture:
    """Q1."""
    return mixture([0.6, 0.4], [[-1.5], [1.2]], [[0.3], [0.4]])


def second_factor() -> GaussianMixture:
    """Q2."""
    return mixture([0.3, 0.7], [[-0.8], [1.6]], [[0.5], [0.25]])


def plane() -> GaussianMixture:
    """P2: three modes in two dimensions."""
    means = [[-1.5, 0.0], [1.0, 1.5], [1.2, -1.4]]
    return mixture([0.4, 0.35, 0.25], means, [[0.2, 0.3], [0.25, 0.15], [0.12, 0.3]])


def levels(sigma_max: float = 4.0, steps: int = 250) -> tuple[float, ...]:
    """`steps` + 1 levels, uniform in log(sigma^2 + .05)."""
    top, bottom = math.log(sigma_max**2 + 0.05), math.log(LAST**2 + 0.05)
    return tuple(
        math.sqrt(max(math.exp(top + i / steps * (bottom - top)) - 0.05, LAST**2)) for i in range(steps + 1)
    )


def no_data(size: int) -> Measurement:
    """A measurement of nothing: the likelihood is 1."""
    empty = torch.zeros(0, size, dtype=torch.float64)
    return Measurement(MatrixOperator(empty), GaussianNoise(1.0), torch.zeros(0, dtype=torch.float64))


@dataclass(frozen=True)
class Toy:
    """A problem with the exact mean and variance of every component at sigma = .01.

    `log_prior` is the log density of x at that level, up to a constant.
    """

    prior: Prior
    log_prior: Callable[[Tensor], Tensor]
    measurement: Measurement
    mean: Float[Tensor, "dim"]
    variance: Float[Tensor, "dim"]
    log_evidence: float | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)


def observed(prior: GaussianMixture, matrix: list[float], y: float, sigma: float) -> Toy:
    """A mixture observed through one row; moments by conjugacy."""
    row = torch.tensor([matrix], dtype=torch.float64)
    data = torch.tensor([y], dtype=torch.float64)
    widened = GaussianMixture(prior.weights, prior.means, prior.variances + LAST**2)
    exact = widened.posterior(lambda x: x @ row.mT, data, sigma)
    mean = exact.mean()
    second = torch.diagonal(exact.covariances, dim1=1, dim2=2) + (exact.means - mean) ** 2
    measurement = Measurement(MatrixOperator(row), GaussianNoise(sigma), data)
    return Toy(prior, widened.log_density, measurement, mean, exact.weights @ second, exact.log_evidence)


def composed(*parts: tuple[GaussianMixture, float]) -> Toy:
    """A composition in one dimension with no data; moments by quadrature at the last level."""
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)[:, None]

    def log_prior(x: Tensor) -> Tensor:
        return torch.stack([power * prior.log_density(x, LAST) for prior, power in parts]).sum(dim=0)

    weights = torch.softmax(log_prior(grid), dim=0)
    mean = (weights[:, None] * grid).sum(0)
    variance = (weights[:, None] * (grid - mean) ** 2).sum(0)
    return Toy(Composition(tuple(parts)), log_prior, no_data(1), mean, variance, None)


def fk1d() -> Toy:
    """P1 with y = .4, sigma_y = .8: the wide regime, where weight variance shows."""
    return observed(three_modes(), [1.0], 0.4, 0.8)


def fk1d_clean() -> Toy:
    """P1 with sigma_y = 2: the gentle regime, where only a wrong formula shows (use sigma_max = 1)."""
    return observed(three_modes(), [1.0], 0.4, 2.0)


def fk2d() -> Toy:
    """P2 seen through (1, .5), y = .7, sigma_y = .6 (use sigma_max = 1.5)."""
    return observed(plane(), [1.0, 0.5], 0.7, 0.6)
