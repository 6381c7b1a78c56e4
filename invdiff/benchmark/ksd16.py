"""`ksd16`: two modes times a Gaussian in 16 dimensions, judged by the kernel Stein discrepancy.

    prior    (x_1, x_2) ~ .8 N((0, 0), I) + .2 N((3, 3), 2 I),   x_3 .. x_16 ~ N(0, 1)
    A1       y_i = s_i x_{i+2},  s = .1, .15, ..., .75           (14 weak observations)
    A2       y_i = 3 x_i,  i <= 4                                (4 strong ones)
    noise    sigma_y in {.2, .5}; x* as below, one noise draw a seed

With s(x) the score of the posterior, k = (c^2 + |x - x'|^2)^(-1/2), c = 1 / (median singular value of A + 1),

    KSD^2 = sum_ij u(x_i, x_j) / (N^2 d)
    u     = s_i . s_j k + s_i . grad_j k + s_j . grad_i k + tr grad_i grad_j k

For N independent exact draws E KSD^2 = E(|s|^2 / c + d / c^3) / (N d), from the diagonal i = j alone. A set
is as wrong when it scores too low (draws that repel each other, or shrink to a mode) as when it scores too
high: the test is two-sided, against exact sets of the same size.

Source: arXiv 2602.04189, appendices A and B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import MatrixOperator
from invdiff.prior.mixture import GaussianMixture, MixturePosterior

DIM = 16
TRUTH = (3, 2, 0.5, -0.5, 1, 0.8, -0.6, 1.1, -0.9, 0.4, 0, -1.2, 0.7, -0.3, 0.5, -0.8)
BLOCK = 500  # rows of the kernel matrix held at once


def two_modes() -> GaussianMixture:
    """The prior."""
    means = torch.zeros(2, DIM, dtype=torch.float64)
    variances = torch.ones(2, DIM, dtype=torch.float64)
    means[1, :2], variances[1, :2] = 3.0, 2.0
    return GaussianMixture(torch.tensor([0.8, 0.2], dtype=torch.float64), means, variances)


def matrix_of(kind: str) -> Float[Tensor, "data 16"]:
    """A1 or A2.

    Raises:
        InputError: for another.
    """
    if kind == "A1":
        matrix = torch.zeros(14, DIM, dtype=torch.float64)
        matrix[:, 2:] = torch.diag(torch.linspace(0.1, 0.75, 14, dtype=torch.float64))
        return matrix
    if kind == "A2":
        return 3 * torch.eye(4, DIM, dtype=torch.float64)
    raise InputError(f"ksd16 knows A1 and A2; found {kind!r}")


@dataclass(frozen=True)
class Ksd16:
    """A problem with its posterior.

    Attributes:
        posterior: two modes times a Gaussian.
        bandwidth: c of the kernel.
    """

    prior: GaussianMixture
    measurement: Measurement
    matrix: Float[Tensor, "data 16"]
    posterior: MixturePosterior
    bandwidth: float

    @property
    def log_evidence(self) -> float:
        """log p(y)."""
        return self.posterior.log_evidence

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 16"]:
        """Exact draws."""
        return self.posterior.sample(count, generator)

    def score(self, x: Float[Tensor, "count 16"]) -> Float[Tensor, "count 16"]:
        """grad log p(x | y) = sum_k r_k(x) (mu_k - x) / v_k + A^T (y - A x) / sigma_y^2."""
        pulls = (self.prior.means - x[:, None]) / self.prior.variances
        prior = torch.einsum("bk,bkd->bd", self.prior.responsibilities(x), pulls)
        return prior + self.measurement.residual(x) @ self.matrix / self.measurement.noise.variance()

    def ksd(self, x: Float[Tensor, "count 16"]) -> float:
        """The kernel Stein discrepancy of a set of draws to the posterior."""
        wide = x.double()
        return stein_discrepancy(wide, self.score(wide), self.bandwidth)

    def expected_square(self, draws: Float[Tensor, "count 16"], count: int) -> float:
        """E KSD^2 of `count` independent exact draws, with E |s|^2 over the exact `draws`."""
        square = float(self.score(draws).square().sum(1).mean())
        return (square / self.bandwidth + DIM / self.bandwidth**3) / (count * DIM)

    def limits(
        self, count: int, generator: torch.Generator, sets: int = 1000, alpha: float = 1e-2
    ) -> tuple[float, float]:
        """KSD below and above which `sets` exact sets of `count` draws lie with frequency alpha / 2 each."""
        values = torch.tensor([self.ksd(self.sample(count, generator)) for _ in range(sets)])
        low, high = torch.quantile(values, torch.tensor([alpha / 2, 1 - alpha / 2])).tolist()
        return low, high


def stein_discrepancy(
    x: Float[Tensor, "count dim"], score: Float[Tensor, "count dim"], bandwidth: float
) -> float:
    """sqrt(sum_ij u(x_i, x_j) / dim) / N with the inverse multiquadric kernel, in blocks of rows."""
    count, dim = x.shape
    own, square = (score * x).sum(1), x.square().sum(1)
    total = 0.0
    for start in range(0, count, BLOCK):
        rows = slice(start, start + BLOCK)
        distance = (square[rows, None] + square - 2 * x[rows] @ x.T).clamp_min(0)
        slope = own[rows, None] + own - score[rows] @ x.T - x[rows] @ score.T  # (s_i - s_j) . (x_i - x_j)
        kernel = (bandwidth**2 + distance).rsqrt()
        cubed = kernel**3
        terms = score[rows] @ score.T * kernel + (slope + dim) * cubed - 3 * distance * cubed * kernel**2
        total += float(terms.sum())
    return math.sqrt(max(total, 0.0) / dim) / count


def ksd16(kind: str = "A1", sigma: float = 0.2, seed: int = 0) -> Ksd16:
    """The problem of the operator `kind`, noise level `sigma` and noise draw `seed`."""
    matrix, prior = matrix_of(kind), two_modes()
    truth = torch.tensor(TRUTH, dtype=torch.float64)
    noise = torch.randn(len(matrix), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = matrix @ truth + sigma * noise
    singular = torch.linalg.svdvals(matrix)
    return Ksd16(
        prior,
        Measurement(MatrixOperator(matrix), GaussianNoise(sigma), y),
        matrix,
        prior.posterior(lambda x: x @ matrix.mT, y, sigma),
        1 / (float(singular.quantile(0.5)) + 1),
    )
