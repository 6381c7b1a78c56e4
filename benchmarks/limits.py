"""Where samplers stop being right, on the 25-component mixture: three tables.

    python benchmarks/limits.py denoiser      the denoiser is off by a smooth field of rms eps per coordinate
    python benchmarks/limits.py observations  many data: dimension 80 with 8, 16, 40 and 80 observations
    python benchmarks/limits.py magnitude     y = |A x| + noise: 2^data sign patterns
    [--samplers moment_twisted,twisted] [--seeds 5]

Sliced W1 over its floor (sum over problems of the one over that of the other), mean error of chi2 and of
log p(y), smallest effective sample size, network calls and vector-Jacobian products a draw. The budgets
are those of `gmm25.py`, never changed for a problem.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from gmm25 import DRAWS, settings

from invdiff.api import make_sampler
from invdiff.benchmark.gmm25 import Gmm25, gmm25
from invdiff.diagnostics.distances import sliced_wasserstein
from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.operator import FunctionOperator
from invdiff.prior.counted import CountedPrior
from invdiff.prior.mixture import GaussianMixture
from invdiff.sampler.loop import draw, prepared

Exact = Callable[[int, torch.Generator], torch.Tensor]
Case = tuple[Gmm25, GaussianMixture, Measurement, Exact, float]
SAMPLERS = {
    "denoiser": "moment_twisted,twisted,ensemble,moment_matching,pigdm",
    "observations": "moment_twisted,twisted,ddsmc,mcgdiff,ensemble,moment_matching,pigdm",
    "magnitude": "moment_twisted,ensemble,steering,dps",
}


class Imperfect(GaussianMixture):
    """D + eps s / sqrt(1 + s^2) f(x), f a smooth field of rms 1 per coordinate and of length 8."""

    def __init__(self, prior: GaussianMixture, eps: float, seed: int) -> None:
        super().__init__(prior.weights, prior.means, prior.variances)
        g = torch.Generator().manual_seed(seed)
        dim = prior.means.shape[1]
        self.eps = eps
        self.waves = torch.randn(dim, dim, generator=g, dtype=torch.float64) / (8 * math.sqrt(dim))
        self.phases = 2 * math.pi * torch.rand(dim, generator=g, dtype=torch.float64)

    def denoise(self, x: torch.Tensor, sigma: object) -> torch.Tensor:
        s = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1)
        field = math.sqrt(2) * torch.sin(x @ self.waves.to(x).T + self.phases.to(x))
        return super().denoise(x, sigma) + self.eps * s / (1 + s**2).sqrt() * field


def measured(name: str, case: Case, seed: int) -> dict[str, float]:
    """One sampler on one problem beside exact draws."""
    problem, prior, measurement, exact, log_z = case
    dim, data = problem.shape[0], len(problem.measurement.y)
    draws = DRAWS[dim]
    options = settings(name, min(data, 4), draws, problem.prior.card.std)
    if name == "moment_twisted" and data > 4:
        options["particles"] = draws
    if name in ("mcgdiff", "ddsmc"):
        options |= {"particles": 5 * draws, "keep": draws}
    counter = CountedPrior(prior)
    if isinstance(prior, Imperfect) or name == "moment_twisted":
        del counter.sample  # the denoiser alone
    sampler = make_sampler(name, prior.card, **options)
    ready = prepared(sampler, counter, measurement, problem.shape, dtype=torch.float64)
    drawn = draw(
        ready, counter, measurement, problem.shape, particles=range(draws), seed=seed, dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(10_000 + seed)
    first, second = exact(draws, generator), exact(draws, generator)
    with torch.no_grad():
        chi2 = [float(measurement.chi2(x).mean()) for x in (drawn.x, second)]
    found = {
        "sw": sliced_wasserstein(drawn.x, first, seed=seed),
        "floor": sliced_wasserstein(second, first, seed=seed),
        "chi2": chi2[0] / chi2[1],
        "calls": (counter.calls + counter.derivatives) / draws,
        "dlogZ": math.nan,
        "ess": math.nan,
    }
    if drawn.filters:
        found["dlogZ"] = drawn.filters[0].log_evidence - log_z
        found["ess"] = drawn.filters[0].ess[0]
    return found


def denoisers(seeds: int) -> Iterator[tuple[str, list[Case]]]:
    for dim, data in ((8, 1), (8, 2), (80, 2)):
        for eps in (0.0, 0.05, 0.2, 0.5):
            rows = []
            for seed in range(seeds):
                problem = gmm25(dim, data, seed)
                prior = Imperfect(problem.prior, eps, seed)
                rows.append((problem, prior, problem.measurement, problem.sample, problem.log_evidence))
            yield f"{dim}/{data}, eps {eps:g}", rows


def observations(seeds: int) -> Iterator[tuple[str, list[Case]]]:
    for data in (8, 16, 40, 80):
        problems = [gmm25(80, data, seed) for seed in range(seeds)]
        yield f"80/{data}", [(p, p.prior, p.measurement, p.sample, p.log_evidence) for p in problems]


def magnitudes(seeds: int) -> Iterator[tuple[str, list[Case]]]:
    for dim, data in ((8, 1), (8, 2), (8, 4), (80, 1), (80, 2), (80, 4)):
        rows = []
        for seed in range(seeds):
            problem = gmm25(dim, data, seed)
            linear = problem.measurement.operator
            operator = FunctionOperator(lambda x, linear=linear: linear(x).abs())
            noise = problem.measurement.noise
            clean = operator(problem.truth[None])[0]
            g = torch.Generator().manual_seed(77_000 + seed)
            y = clean + noise.variance() ** 0.5 * torch.randn(data, generator=g, dtype=torch.float64)
            measurement = Measurement(operator, noise, y)
            exact, log_z = signs(problem, y)
            rows.append((problem, problem.prior, measurement, exact, log_z))
        yield f"{dim}/{data}", rows


def signs(problem: Gmm25, y: torch.Tensor) -> tuple[Exact, float]:
    """Exact draws for y = |a| + e: the mixture over sign patterns of y, thinned.

    N(y; |a|) = [N(y; a) + N(-y; a)] / (1 + exp(-2 y |a| / sigma^2)), component by component.
    """
    patterns = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * len(y))
    parts = []
    for pattern in patterns.reshape(-1, len(y)):
        linear = Measurement(problem.measurement.operator, problem.measurement.noise, pattern * y)
        parts.append(
            Gmm25(problem.prior, linear, problem.left, problem.singular, problem.right, problem.truth)
        )
    logs = torch.tensor([part.log_evidence for part in parts], dtype=torch.float64)
    variance = problem.measurement.noise.variance()

    def proposed(count: int, generator: torch.Generator) -> torch.Tensor:
        pick = torch.multinomial(logs.softmax(0), count, True, generator=generator)
        drawn = torch.empty(count, *problem.shape, dtype=torch.float64)
        for number in pick.unique().tolist():
            where = pick == number
            drawn[where] = parts[number].sample(int(where.sum()), generator)
        return drawn

    def chance(x: torch.Tensor) -> torch.Tensor:
        clean = problem.measurement.operator(x).abs()
        return torch.sigmoid(2 * y * clean / variance).prod(1)

    def exact(count: int, generator: torch.Generator) -> torch.Tensor:
        kept = torch.empty(0, *problem.shape, dtype=torch.float64)
        while len(kept) < count:
            x = proposed(count, generator)
            uniform = torch.rand(count, generator=generator, dtype=torch.float64)
            kept = torch.cat([kept, x[uniform < chance(x)]])
        return kept[:count]

    share = chance(proposed(20_000, torch.Generator().manual_seed(5))).mean()
    return exact, float(logs.logsumexp(0) + share.log())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=sorted(SAMPLERS))
    parser.add_argument("--samplers", help="by default those that are worth a look")
    parser.add_argument("--seeds", type=int, default=5, help="problems a row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = {"denoiser": denoisers, "observations": observations, "magnitude": magnitudes}[given.what]
    heads = ("cell", "sampler", "SW / floor", "chi2 / exact", "log Z error: mean, largest", "ESS", "calls")
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for cell, rows in cases(given.seeds):
        for name in (given.samplers or SAMPLERS[given.what]).split(","):
            try:
                found = [measured(name, row, seed) for seed, row in enumerate(rows)]
            except (InputError, FloatingPointError) as error:
                print(f"| {cell} | {name} | {error} |" + " |" * 4, flush=True)
                continue
            total = {key: np.array([one[key] for one in found]) for key in found[0]}
            errors = total["dlogZ"]
            evidence = "" if np.isnan(errors).any() else f"{errors.mean():+.2f}, {np.abs(errors).max():.2f}"
            cells = (
                cell,
                name,
                f"{total['sw'].sum() / total['floor'].sum():.2f}",
                f"{total['chi2'].mean():.2f}",
                evidence,
                "" if np.isnan(total["ess"]).any() else f"{total['ess'].min():.3f}",
                f"{total['calls'].mean():.0f}",
            )
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
