"""The 25-component mixture, all nine cells: how far each sampler is from the Monte Carlo floor.

    python benchmarks/gmm25.py [--seeds 20] [--cells 8/1,80/4] [--samplers moment_twisted,twisted] [--peers]

Sliced W1 (1000 directions) to exact draws beside its floor, mean over problems; n = 1000 draws (300 at
dimension 80), all from one filter for particle methods; network calls per draw, finite differences
and pilot included. Seeds from 5 on were never used to choose a setting. With --peers deepinv's samplers
run at their defaults in the same process, on the same problems, with the same exact denoiser.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from invdiff.api import make_sampler
from invdiff.benchmark.gmm25 import Gmm25, gmm25
from invdiff.diagnostics.distances import sliced_wasserstein
from invdiff.prior.counted import CountedPrior
from invdiff.sampler.loop import draw

DRAWS = {8: 1000, 80: 300, 800: 1000}
SEEDS = {8: 20, 80: 20, 800: 10}
CELLS = [(dim, data) for dim in (8, 80, 800) for data in (1, 2, 4)]
PEERS = ("DPS", "PiGDM", "MomentMatching", "DiffPIR", "DDRM")
OVER = {1: 4, 2: 3, 4: 2}  # particles a draw, so that calls stay below 500 a draw


def settings(name: str, data: int, draws: int, prior_std: float) -> dict[str, object]:
    """Per number of observations, never per problem: the same budget of calls for every particle method."""
    if name == "moment_twisted":
        return {"particles": OVER[data] * draws, "keep": draws}
    if name in ("twisted", "ensemble", "steering"):
        return {"particles": 5 * draws, "keep": draws, "sigma_max": 25 * prior_std}
    if name == "lookahead":
        return {"particles": draws, "keep": draws, "candidates": 5, "sigma_max": 25 * prior_std}
    if name in ("split_langevin", "plug_and_play"):
        return {}
    return {"sigma_max": 25 * prior_std}


def score(problem: Gmm25, x: torch.Tensor, seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(10_000 + seed)
    first, second = problem.sample(len(x), generator), problem.sample(len(x), generator)
    size = problem.measurement.size
    return {
        "sw": sliced_wasserstein(x, first, seed=seed),
        "floor": sliced_wasserstein(second, first, seed=seed),
        "mode_tv": problem.mode_error(x),
        "mode_tv_floor": problem.mode_error(second),
        "chi2": float(problem.measurement.chi2(x).mean()) * size,
        "chi2_exact": problem.chi2,
    }


def ours(name: str, dim: int, data: int, seed: int) -> dict[str, float]:
    problem, draws = gmm25(dim, data, seed), DRAWS[dim]
    prior = CountedPrior(problem.prior)
    if name == "moment_twisted":
        del prior.sample  # the denoiser alone: the start is the method's own
    sampler = make_sampler(name, prior.card, **settings(name, data, draws, prior.card.std))
    began = time.process_time()
    drawn = draw(
        sampler,
        prior,
        problem.measurement,
        problem.shape,
        particles=range(draws),
        seed=seed,
        dtype=torch.float64,
    )
    seconds = time.process_time() - began
    found = score(problem, drawn.x, seed)
    found |= {"calls": prior.calls / draws, "vjp": prior.derivatives / draws, "cpu": seconds}
    if drawn.filters:
        found["dlogZ"] = drawn.filters[0].log_evidence - problem.log_evidence
    return found


def theirs(name: str, dim: int, data: int, seed: int) -> dict[str, float]:
    import deepinv_samplers

    problem, draws = gmm25(dim, data, seed), DRAWS[dim]
    began = time.process_time()
    x, calls = deepinv_samplers.run(name, problem, draws, seed)
    found = {"cpu": time.process_time() - began, "calls": calls, "vjp": 0.0}
    kept = torch.isfinite(x).all(dim=1)
    return score(problem, x[kept], seed) | found


def line(label: str, dim: int, data: int, rows: list[dict[str, float]]) -> str:
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    ratio = np.array([row["sw"] for row in rows]).sum() / np.array([row["floor"] for row in rows]).sum()
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(rows), (2000, len(rows)))
    sw, floor = (np.array([row[key] for row in rows]) for key in ("sw", "floor"))
    low, high = np.quantile(sw[picks].sum(1) / floor[picks].sum(1), [0.025, 0.975])
    evidence = ""
    if "dlogZ" in mean:
        errors = np.array([row["dlogZ"] for row in rows])
        evidence = f"{errors.mean():+.3f}, {np.abs(errors).max():.2f}"
    calls = f"{mean['calls']:.0f}" + (f" + {mean['vjp']:.0f} VJP" if mean["vjp"] else "")
    cells = (
        f"{dim}/{data}",
        label,
        f"{mean['sw']:.3f}",
        f"{mean['floor']:.3f}",
        f"{ratio:.2f} [{low:.2f}, {high:.2f}]",
        f"{mean['mode_tv']:.3f} ({mean['mode_tv_floor']:.3f})",
        f"{mean['chi2']:.3f} / {mean['chi2_exact']:.3f}",
        evidence,
        calls,
        f"{mean['cpu']:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, help="problems a cell (20; 10 at dimension 800)")
    parser.add_argument("--cells", default=",".join(f"{a}/{b}" for a, b in CELLS))
    parser.add_argument("--samplers", default="moment_twisted")
    parser.add_argument("--peers", action="store_true", help="deepinv's samplers too, in the same process")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| cell | sampler | SW | floor | SW / floor [95 %] | mode TV (exact draws) | chi2 / exact "
        "| log Z error: mean, largest | calls | CPU s |\n|" + "---|" * 10
    )
    for cell in arguments.cells.split(","):
        dim, data = (int(part) for part in cell.split("/"))
        for name in arguments.samplers.split(","):
            count = arguments.seeds or SEEDS[dim]
            print(line(name, dim, data, [ours(name, dim, data, seed) for seed in range(count)]), flush=True)
        for name in PEERS if arguments.peers else ():
            count = arguments.seeds or SEEDS[dim]
            rows = [theirs(name, dim, data, seed) for seed in range(count)]
            print(line(f"deepinv {name}", dim, data, rows), flush=True)


if __name__ == "__main__":
    main()
