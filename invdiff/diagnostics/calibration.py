"""Is a posterior calibrated? Joint draws (x*, y) and samples of x | y must be exchangeable.

For L problems with truths x*_l from the prior and S samples of each posterior, for a scalar f:

    rank        of f(x*) among the f(samples): uniform on 0..S for the exact posterior
                (simulation-based calibration; Talts et al., arXiv 1804.06788)
    z^2         mean over problems of ((f(x*) - mean) / std)^2: 1 if Gaussian, more if over-confident
    coverage    share of truths inside the central q interval of the samples: q
    TARP        share of samples nearer to a random reference than the truth: uniform
                (Lemos et al., arXiv 2302.03026); references, truths and samples are scaled together

Ranks see a wrong mean through Kolmogorov-Smirnov and a wrong width through chi-square in ten bins; neither
sees both. Functions of y (log p(y | x)) are the sensitive ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

LEVELS = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Calibration:
    """The tests of one scalar.

    Attributes:
        name: of the scalar.
        ranks: of the truths, 0..S.
        draws: S.
        ks: p-value of Kolmogorov-Smirnov: shifts.
        bins: p-value of chi-square in ten bins: widths.
        z2: mean squared standardised error.
        z2_limits: its central range under the null at the same false-alarm rate (Gaussian posteriors).
        coverage: share of truths inside the central interval, by nominal level.
    """

    name: str
    ranks: Int[Tensor, "problems"]
    draws: int
    ks: float
    bins: float
    z2: float
    z2_limits: tuple[float, float]
    coverage: dict[float, float]

    def verdict(self, alpha: float) -> str:
        """calibrated, or what is wrong at the false-alarm rate alpha of each of the two rank tests."""
        if min(self.ks, self.bins) >= alpha:
            return "calibrated"
        center = float(self.ranks.double().mean()) / self.draws - 0.5
        spread = float(self.ranks.double().std()) / self.draws * math.sqrt(12)
        words = []
        if spread > 1.05:
            words.append("over-confident")
        elif spread < 0.95:
            words.append("under-confident")
        if abs(center) > 0.03:
            words.append("truth above samples" if center > 0 else "truth below samples")
        return ", ".join(words) or "not uniform"


def ranks_of(
    truth: Float[Tensor, "problems"], draws: Float[Tensor, "problems draws"], generator: torch.Generator
) -> Int[Tensor, "problems"]:
    """Ranks of the truths among the samples, ties broken at random."""
    below = (draws < truth[:, None]).sum(dim=1)
    ties = (draws == truth[:, None]).sum(dim=1)
    split = (torch.rand(len(truth), generator=generator) * (ties + 1)).floor().long()
    return below + split


def check_scalar(
    name: str,
    truth: Float[Tensor, "problems"],
    draws: Float[Tensor, "problems draws"],
    seed: int = 0,
    alpha: float = 1e-3,
) -> Calibration:
    """All tests of one scalar."""
    from scipy import stats

    generator = torch.Generator().manual_seed(seed)
    count, many = draws.shape
    ranks = ranks_of(truth, draws, generator)
    jitter = torch.rand(count, generator=generator)
    uniform = ((ranks + jitter) / (many + 1)).numpy()
    histogram, _ = np.histogram(uniform, bins=10, range=(0, 1))
    score = (truth - draws.mean(1)) / draws.std(1)
    null = _null_z2(count, many)
    low, high = torch.quantile(null, torch.tensor([alpha / 2, 1 - alpha / 2], dtype=null.dtype)).tolist()
    coverage = {}
    for level in LEVELS:
        cut = torch.quantile(
            draws, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=draws.dtype), dim=1
        )
        coverage[level] = float(((truth >= cut[0]) & (truth <= cut[1])).double().mean())
    return Calibration(
        name,
        ranks,
        many,
        float(stats.kstest(uniform, "uniform").pvalue),
        float(stats.chisquare(histogram).pvalue),
        float(score.square().mean()),
        (low, high),
        coverage,
    )


def _null_z2(problems: int, draws: int, repeats: int = 4000) -> Float[Tensor, "repeats"]:
    """z^2 of Gaussian posteriors with `draws` samples, simulated: t_{draws-1}^2 (1 + 1/draws)."""
    t = np.random.default_rng(11).standard_t(draws - 1, (repeats, problems))
    return torch.from_numpy((t**2).mean(axis=1) * (1 + 1 / draws))


@dataclass(frozen=True)
class Tarp:
    """Tests of accuracy with random points.

    Attributes:
        credibility: sorted share of samples nearer to the reference than the truth, one a problem.
        area: sum over alpha > 1/2 of (expected coverage - alpha): negative when over-confident.
        limit: of |area| at a false-alarm rate of 1e-3.
        pvalue: Kolmogorov-Smirnov of the credibilities against uniform.
    """

    credibility: Float[Tensor, "problems"]
    area: float
    limit: float
    pvalue: float


def tarp(
    truth: Float[Tensor, "problems dim"],
    draws: Float[Tensor, "problems draws dim"],
    seed: int = 0,
) -> Tarp:
    """TARP with references uniform in the box of all truths and samples, everything scaled together."""
    from scipy import stats

    generator = torch.Generator().manual_seed(seed)
    every = torch.cat([truth, draws.flatten(0, 1)])
    low, high = every.min(dim=0).values, every.max(dim=0).values
    width = (high - low).clamp_min(1e-12)
    x, samples = (truth - low) / width, (draws - low) / width
    reference = torch.rand(truth.shape, generator=generator, dtype=truth.dtype)
    near = (samples - reference[:, None]).square().sum(2) < (x - reference).square().sum(1)[:, None]
    share = near.double().mean(dim=1)
    jitter = torch.rand(len(share), generator=generator, dtype=torch.float64) / draws.shape[1]
    share = (share * draws.shape[1] / (draws.shape[1] + 1) + jitter).clamp(0, 1).sort().values
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    coverage = torch.searchsorted(share, grid, right=True).double() / len(share)
    upper = grid > 0.5
    area = float((coverage - grid)[upper].mean()) * 0.5
    limit = 0.037 * math.sqrt(200 / len(share))
    return Tarp(share, area, limit, float(stats.kstest(share.numpy(), "uniform").pvalue))
