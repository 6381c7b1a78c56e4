"""Simulation-based calibration and TARP of every sampler on problems with a known posterior.

    python benchmarks/calibration.py [--problem lingauss gmm25] [--problems 100] [--draws 99] [--sampler ...]

A row a sampler: calibrated or not (false-alarm rate 1e-3 a cell), and the mean squared standardised error
of the worst scalar (1 where calibrated; large: over-confident). Samplers that are exact must pass and those
that are biased must fail, or the test has no power.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import invdiff
from invdiff.benchmark.verify import one_filter
from invdiff.registry import plugins
from invdiff.run.calibrate import closed_form, collect, judged


def cell(problem: str, name: str, problems: int, draws: int, seed: int) -> str:
    """The verdict of one sampler on one problem, in words."""
    try:
        prior, measurement, shape, sampler, dtype = closed_form(problem, name)
        sampler = one_filter(sampler, draws)
        silent = lambda what, done, total: None  # noqa: E731
        found = collect(prior, measurement, shape, sampler, dtype, problems, draws, seed, silent)
        results, area, alpha, calibrated = judged(*found, seed)
    except (invdiff.InputError, FloatingPointError) as error:
        return f"refused: {error}"
    worst = max(results, key=lambda one: abs(one.z2 - 1))
    wrong = sum(one.verdict(alpha) != "calibrated" for one in results)
    verdict = "calibrated" if calibrated else f"NOT ({wrong} of {len(results)} scalars)"
    return f"{verdict}; z² {worst.z2:.2f}; TARP {area.area:+.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problem", nargs="*", default=["lingauss", "gmm25"])
    parser.add_argument("--sampler", nargs="*", default=sorted(plugins("samplers")))
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--draws", type=int, default=99)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| sampler | " + " | ".join(given.problem) + " | s |\n|---|" + "---|" * (len(given.problem) + 1))
    for name in given.sampler:
        began = time.process_time()
        cells = [cell(problem, name, given.problems, given.draws, given.seed) for problem in given.problem]
        print(f"| {name} | " + " | ".join(cells) + f" | {time.process_time() - began:.0f} |", flush=True)
    print(
        f"\n`python benchmarks/calibration.py` with {given.problems} problems of {given.draws} draws, seed "
        f"{given.seed}; invdiff {invdiff.__version__}, torch {torch.__version__}, CPU seconds of one thread"
    )


if __name__ == "__main__":
    main()
