"""The problems of `invdiff verify`, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from invdiff.benchmark.gmm25 import gmm25
from invdiff.benchmark.grf import grf, worst_mean, worst_variance
from invdiff.benchmark.grf2 import grf2
from invdiff.benchmark.known import Known
from invdiff.benchmark.ksd16 import ksd16
from invdiff.benchmark.toys import Toy, composed, first_factor, fk1d, fk2d, second_factor
from invdiff.diagnostics.distances import sliced_wasserstein
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import MatrixOperator
from invdiff.prior.gaussian import GaussianPrior
from invdiff.prior.masked import TabulatedPrior

SIZES = {8: 1000, 80: 300, 800: 1000}


def sliced(x: Tensor, y: Tensor) -> float:
    """Sliced W1 over 500 fixed directions."""
    return sliced_wasserstein(x.flatten(1), y.flatten(1), directions=500)


def chi2_of(measurement: Measurement) -> Callable[[Tensor], float]:
    """Mean over the draws of |y - A x|^2 / sigma_y^2 per measured component."""

    def chi2(x: Tensor) -> float:
        with torch.no_grad():
            return float(measurement.chi2(x).mean())

    return chi2


def few(known: Known, draws: int) -> Known:
    """The same problem with another number of draws."""
    return replace(known, draws=draws)


def lingauss(dim: int = 16, data: int = 4, sigma: float = 0.05, seed: int = 0) -> Known:
    """A dense Gaussian prior, C = B B^T / d + .1, seen through a random matrix."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    covariance = root @ root.T / dim + 0.1 * torch.eye(dim, dtype=torch.float64)
    matrix = torch.randn(data, dim, generator=g, dtype=torch.float64) / math.sqrt(dim)
    mean = torch.randn(dim, generator=g, dtype=torch.float64)
    prior = GaussianPrior.dense(mean, covariance)
    truth = prior.sample(1, g)[0]
    y = matrix @ truth + sigma * torch.randn(data, generator=g, dtype=torch.float64)
    exact = prior.posterior(lambda x: x @ matrix.mT, y, sigma)
    factor: Tensor = torch.linalg.cholesky(exact.covariance)
    measurement = Measurement(MatrixOperator(matrix), GaussianNoise(sigma), y)

    def sample(count: int, generator: torch.Generator) -> Tensor:
        white = torch.randn(count, dim, generator=generator, dtype=torch.float64)
        drawn: Tensor = exact.mean + white @ factor.T
        return drawn

    # Whitened by the exact covariance, so that well-measured directions count as much as free ones.
    def whitened(x: Tensor, y: Tensor) -> float:
        parts = [torch.linalg.solve_triangular(factor, (z - exact.mean).T, upper=False).T for z in (x, y)]
        return sliced(parts[0], parts[1])

    return Known(
        f"lingauss {dim}/{data} seed {seed}",
        prior,
        measurement,
        (dim,),
        1000,
        sample,
        whitened,
        exact.log_evidence,
        gaussian=True,
        statistics={"chi2": chi2_of(measurement)},
    )


def field(kind: str, seed: int = 0, side: int = 32, factor: int | None = None, draws: int = 32) -> Known:
    """A Gaussian field of image size under k-space columns, Fourier slices, a blur or decimation."""
    problem = grf(kind, side, seed=seed, factor=factor)
    masks = problem.bands()
    return Known(
        f"grf {kind}{'' if factor is None else f' {factor}x'} {side} seed {seed}",
        problem.prior,
        problem.measurement,
        problem.shape,
        draws,
        problem.sample,
        problem.distance,
        problem.law.log_evidence,
        sigma_max=max(80.0, 10 * float(problem.spectrum.max().sqrt())),
        gaussian=True,
        statistics={
            "chi2": chi2_of(problem.measurement),
            "worst band mean": lambda x: worst_mean(problem.standardised(x), masks),
            "worst band variance": lambda x: worst_variance(problem.standardised(x), masks),
        },
    )


def two_fields(kind: str, seed: int = 0, side: int = 32, factor: int = 4, draws: int = 100) -> Known:
    """Two Gaussian fields that differ by a feature which the data hardly see."""
    problem = grf2(kind, side, seed=seed, factor=factor)
    return Known(
        f"grf2 {kind} {factor}x {side} seed {seed}",
        problem.prior,
        problem.measurement,
        problem.shape,
        draws,
        problem.sample,
        problem.distance,
        problem.log_evidence,
        sigma_max=max(80.0, 10 * float(problem.prior.spectrum.max().sqrt())),
        statistics={"chi2": chi2_of(problem.measurement), "p(feature)": problem.feature},
    )


def stein(kind: str, sigma: float, seed: int = 0, draws: int = 500) -> Known:
    """A `ksd16` problem."""
    problem = ksd16(kind, sigma, seed)
    return Known(
        f"ksd16 {kind} {sigma:g} seed {seed}",
        problem.prior,
        problem.measurement,
        (problem.matrix.shape[1],),
        draws,
        problem.sample,
        sliced,
        problem.log_evidence,
        statistics={"chi2": chi2_of(problem.measurement), "KSD": problem.ksd},
    )


def mixture(dim: int, data: int, seed: int) -> Known:
    """A `gmm25` problem."""
    problem = gmm25(dim, data, seed)
    return Known(
        f"gmm25 {dim}/{data} seed {seed}",
        problem.prior,
        problem.measurement,
        problem.shape,
        SIZES.get(dim, 1000),
        problem.sample,
        sliced,
        problem.log_evidence,
        sigma_max=25 * problem.prior.card.std,
        statistics={
            "chi2": chi2_of(problem.measurement),
            "mode error": problem.mode_error,
            "Kolmogorov": problem.kolmogorov,
        },
    )


def toy(name: str, problem: Toy) -> Known:
    """A one- or two-dimensional mixture; exact draws by inversion of the density on a grid."""
    sample = grid_sampler(problem)
    return Known(
        name,
        problem.prior,
        problem.measurement,
        problem.shape,
        8000,
        sample,
        sliced,
        problem.log_evidence,
        statistics={"chi2": chi2_of(problem.measurement)} if problem.measurement.y.numel() else {},
    )


def tokens(seed: int = 0, sites: int = 4, vocabulary: int = 3, draws: int = 4000) -> Known:
    """A tabulated law of short sequences, neighbours seen through their sum; all states can be enumerated."""
    g = torch.Generator().manual_seed(seed)
    prior = TabulatedPrior(torch.rand((vocabulary,) * sites, generator=g) ** 3)
    pairs = torch.eye(sites, dtype=torch.float64)[:-1] + torch.eye(sites, dtype=torch.float64)[1:]
    states = prior.states.double()
    truth = states[torch.multinomial(prior.probabilities, 1, generator=g)[0]]
    y = pairs @ truth + torch.randn(len(pairs), generator=g, dtype=torch.float64)
    measurement = Measurement(MatrixOperator(pairs), GaussianNoise(1.0), y)
    logs = prior.probabilities.log() + measurement.log_likelihood(states)
    radix = vocabulary ** torch.arange(sites - 1, -1, -1)

    def histogram(x: Tensor) -> Tensor:
        return torch.bincount(x.round().long() @ radix, minlength=len(states)) / len(x)

    return Known(
        f"tokens {vocabulary}^{sites} seed {seed}",
        prior,
        measurement,
        (sites,),
        draws,
        lambda count, generator: states[torch.multinomial(logs.exp(), count, True, generator=generator)],
        lambda x, other: 0.5 * float((histogram(x) - histogram(other)).abs().sum()),
        float(logs.logsumexp(0)),
        statistics={"chi2": chi2_of(measurement)},
    )


def nonlinear(names: tuple[str, ...] | None = None) -> list[Known]:
    """Nonlinear operators and other noise than Gaussian."""
    from invdiff.benchmark.nonlinear import nonlinear_problems

    # Fewer draws than for other toys: Langevin inside a sampler is dear.
    chosen = [known for known in nonlinear_problems() if names is None or known.name in names]
    return [replace(known, draws=1000) for known in chosen]


def grid_sampler(problem: Toy) -> Callable[[int, torch.Generator], Tensor]:
    """Exact draws in one or two dimensions from the density tabulated on a fine grid."""
    dim, reach = len(problem.mean), 9.0
    points = 20_001 if dim == 1 else 601
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(*[axis] * dim, indexing="ij"), dim=-1).reshape(-1, dim)
    log_density = problem.log_prior(grid) + problem.measurement.log_likelihood(grid)
    weights = torch.softmax(log_density, dim=0)
    cell = 2 * reach / (points - 1)

    def sample(count: int, generator: torch.Generator) -> Tensor:
        edges = weights.cumsum(0)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64) * edges[-1]
        chosen = torch.searchsorted(edges, uniform).clamp_max(len(grid) - 1)
        jitter = torch.rand(count, dim, generator=generator, dtype=torch.float64) - 0.5
        return grid[chosen] + cell * jitter

    return sample


QUICK: dict[str, Callable[[], list[Known]]] = {
    "lingauss": lambda: [few(lingauss(), 500)],
    # Sizes at which no sampler takes more than seconds: dense twists stop at 256 measured components.
    "grf": lambda: [
        field("mri", draws=12),
        field("ct", side=36, draws=16),
        field("superres", side=36, draws=16),
        field("landmarks", draws=16),
    ],
    "grf2": lambda: [two_fields("ct", side=16, factor=8, draws=64)],
    "gmm25": lambda: [few(mixture(8, 1, 0), 500), few(mixture(8, 4, 1), 500)],
    "ksd16": lambda: [stein("A1", 0.5, draws=200), stein("A2", 0.2, draws=200)],
    "fk": lambda: [
        few(toy("fk1d", fk1d()), 2000),
        few(toy("product", composed((first_factor(), 1.0), (second_factor(), 1.0))), 2000),
    ],
    "tokens": lambda: [tokens()],
    "nonlinear": lambda: [few(known, 200) for known in nonlinear(("poisson exp",))],
}
FULL: dict[str, Callable[[], list[Known]]] = {
    "lingauss": lambda: [
        lingauss(dim, data, sigma, seed)
        for dim, data, sigma, seed in ((2, 1, 0.3, 0), (16, 4, 0.05, 0), (16, 4, 0.05, 1), (64, 8, 0.01, 0))
    ],
    "grf": lambda: [
        *(field(kind) for kind in ("mri", "ct", "superres", "blur", "landmarks")),
        field("mri", 1),
        field("mri", 0, 32, 8, draws=8),
        field("superres", 0, 32, 4),
        *(field(kind, 0, 64) for kind in ("mri", "ct", "superres")),
        field("mri", 0, 256, draws=4),
    ],
    "grf2": lambda: [
        *(two_fields("mri", seed, 16) for seed in range(2)),
        *(two_fields("ct", seed, 16, 8) for seed in range(2)),
        two_fields("mri", 0, 32),
        two_fields("ct", 0, 64, draws=50),
    ],
    "gmm25": lambda: [mixture(dim, data, seed) for dim in (8, 80) for data in (1, 2, 4) for seed in range(5)],
    "ksd16": lambda: [
        stein(kind, sigma, seed) for kind in ("A1", "A2") for sigma in (0.2, 0.5) for seed in range(5)
    ],
    "fk": lambda: [
        toy("fk1d", fk1d()),
        toy("fk2d", fk2d()),
        toy("product", composed((first_factor(), 1.0), (second_factor(), 1.0))),
        toy("guidance", composed((first_factor(), -0.75), (second_factor(), 1.75))),
    ],
    "tokens": lambda: [*(tokens(seed) for seed in range(3)), tokens(0, 6)],
    "nonlinear": lambda: nonlinear(),
}
