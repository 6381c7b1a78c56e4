"""`invdiff calibrate`: are a sampler's posteriors calibrated, for this prior and this forward model?

Truths are drawn from the prior (exactly where it is known in closed form, else by its own reverse SDE), data
are simulated with the operator and noise of the configured problem, and the sampler is asked for a
posterior of each. What is tested is therefore the conditioning, given the prior; whether the prior is right
for your data it cannot know.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.benchmark.problems import QUICK
from invdiff.benchmark.verify import one_filter, shipped
from invdiff.config import compose
from invdiff.diagnostics.calibration import Calibration, Tarp, check_scalar, tarp
from invdiff.diagnostics.functionals import functionals
from invdiff.errors import InputError, unknown_name
from invdiff.measurement.measurement import Measurement
from invdiff.prior.prior import Prior
from invdiff.run.directory import write_json
from invdiff.sampler.keys import stream
from invdiff.sampler.loop import Sampler, draw, prepared
from invdiff.sampler.unconditional import sample_prior

DATA = 5  # end of the keys of simulated noise
ALPHA = 1e-3  # false-alarm rate of a whole run, shared by its tests

Report = Callable[[str, int, int], None]


def closed_form(
    problem: str, sampler: str
) -> tuple[Prior, Measurement, tuple[int, ...], Sampler, torch.dtype]:
    """A benchmark problem as something to calibrate on."""
    if problem not in QUICK:
        raise unknown_name("problem", problem, QUICK)
    known = QUICK[problem]()[0]
    if not hasattr(known.prior, "sample"):
        raise InputError(f"problem {problem!r} has no prior to draw truths from")
    return known.prior, known.measurement, known.shape, shipped(sampler, known), torch.float64


def configured(overrides: list[str]) -> tuple[Prior, Measurement, tuple[int, ...], Sampler, torch.dtype]:
    """The first problem of a `solve` configuration."""
    from invdiff.run.solve import plan

    job = plan(compose(overrides))
    problem = job.problems[0]
    return job.priors[0], problem.measurement, problem.shape, job.sampler, torch.float32


def run_calibrate(
    overrides: list[str],
    problem: str | None,
    sampler: str | None,
    problems: int,
    draws: int,
    seed: int,
    out: Path,
    as_json: bool,
    report: Report,
) -> bool:
    """Run, print and write; returns whether everything is calibrated."""
    if problems < 10 or draws < 9:
        raise InputError(f"calibration needs at least 10 problems and 9 draws; found {problems} and {draws}")
    if problem is not None:
        prior, measurement, shape, made, dtype = closed_form(problem, sampler or "moment_matching")
    else:
        chosen = [*overrides, *([f"sampler={sampler}"] if sampler else [])]
        prior, measurement, shape, made, dtype = configured(chosen)
    made = one_filter(made, draws)
    began = time.time()
    truths, samples = collect(prior, measurement, shape, made, dtype, problems, draws, seed, report)
    results, area, alpha, calibrated = judged(truths, samples, seed)
    content = {
        "sampler": made.name,
        "claim": made.claim,
        "prior": prior.card.name,
        "problem": problem or overrides,
        "problems": problems,
        "draws": draws,
        "seed": seed,
        "calibrated": calibrated,
        "false_alarm": ALPHA,
        "seconds": round(time.time() - began, 1),
        "scalars": {one.name: as_plain(one, alpha) for one in results},
        "tarp": {"area": area.area, "limit": area.limit, "pvalue": area.pvalue},
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "calibrate.json", content)
    figure(results, area, f"{made.name} on {prior.card.name}", out / "calibrate.png")
    if as_json:
        print(json.dumps(content))
    else:
        print_table(results, area, alpha)
        word = "calibrated" if calibrated else "NOT calibrated"
        print(
            f"{made.name} ({made.claim}): {word}, {problems} problems of {draws} draws; "
            f"see {out}/calibrate.png"
        )
    return calibrated


def judged(
    truths: dict[str, Tensor], samples: dict[str, Tensor], seed: int
) -> tuple[list[Calibration], Tarp, float, bool]:
    """The tests of every scalar, TARP, the false-alarm rate of one test, and whether all pass."""
    results = [check_scalar(name, truths[name], samples[name], seed) for name in truths]
    points = [name for name in truths if name != "log p(y | x)"]
    area = tarp(
        torch.stack([truths[name] for name in points], dim=1),
        torch.stack([samples[name] for name in points], dim=2),
        seed,
    )
    alpha = ALPHA / (2 * len(results))
    calibrated = all(one.verdict(alpha) == "calibrated" for one in results) and abs(area.area) < area.limit
    return results, area, alpha, calibrated


def collect(
    prior: Prior,
    measurement: Measurement,
    shape: tuple[int, ...],
    sampler: Sampler,
    dtype: torch.dtype,
    problems: int,
    draws: int,
    seed: int,
    report: Report,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Functionals of the truths, [problems], and of the samples, [problems, draws]."""
    truths: dict[str, list[Tensor]] = {}
    samples: dict[str, list[Tensor]] = {}
    for number in range(problems):
        truth = sample_prior(prior, shape, [number], seed=seed, dtype=dtype)
        generator = stream(seed, number, DATA)
        with torch.no_grad():
            clean = measurement.operator(truth)[0]
            y = measurement.noise.sample(clean, generator)
            if measurement.size < y.numel():  # what a mask leaves out stays zero
                y = torch.where(clean == 0, clean, y)
        simulated = replace(measurement, y=y)
        ready = prepared(sampler, prior, simulated, shape, dtype=dtype)
        x = draw(
            ready, prior, simulated, shape, particles=range(draws), seed=seed, item=number, dtype=dtype
        ).x
        for found, target in ((functionals(truth, simulated), truths), (functionals(x, simulated), samples)):
            for name, values in found.items():
                target.setdefault(name, []).append(values)
        report("calibrating", number + 1, problems)
    return (
        {name: torch.cat(values) for name, values in truths.items()},
        {name: torch.stack(values) for name, values in samples.items()},
    )


def as_plain(one: Calibration, alpha: float) -> dict[str, Any]:
    """One scalar's tests as plain data."""
    return {
        "verdict": one.verdict(alpha),
        "ks_pvalue": one.ks,
        "bins_pvalue": one.bins,
        "z2": one.z2,
        "z2_limits": one.z2_limits,
        "coverage": {f"{level:.0%}": share for level, share in one.coverage.items()},
        "ranks": one.ranks.tolist(),
    }


def print_table(results: list[Calibration], area: Tarp, alpha: float) -> None:
    """The tests on the terminal."""
    form = "  {:24s} {:>8s} {:>8s} {:>20s} {:>8s} {:>8s}  {}"
    print(form.format("scalar", "KS p", "bins p", "z^2 [null range]", "in 50 %", "in 90 %", "verdict"))
    for one in results:
        low, high = one.z2_limits
        print(
            form.format(
                one.name,
                f"{one.ks:.3g}",
                f"{one.bins:.3g}",
                f"{one.z2:.2f} [{low:.2f}, {high:.2f}]",
                f"{one.coverage[0.5]:.0%}",
                f"{one.coverage[0.9]:.0%}",
                one.verdict(alpha),
            )
        )
    print(f"  TARP area {area.area:+.3f} (limit {area.limit:.3f}), KS p {area.pvalue:.3g}")


def figure(results: list[Calibration], area: Tarp, title: str, path: Path) -> None:
    """Rank histograms with their null band, and the TARP curve."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from scipy import stats

    count, columns = len(results) + 1, 5
    lines = -(-count // columns)
    picture, axes = plt.subplots(
        lines, columns, figsize=(3 * columns, 2.5 * lines), squeeze=False, layout="constrained"
    )
    for axis, one in zip(axes.flat, results, strict=False):
        problems = len(one.ranks)
        low, high = stats.binom.ppf([0.005, 0.995], problems, 0.1)
        axis.axhspan(low, high, color="0.9")
        axis.axhline(problems / 10, color="0.5", linewidth=0.8)
        axis.hist(((one.ranks + 0.5) / (one.draws + 1)).numpy(), bins=10, range=(0, 1), color="#4393c3")
        axis.set_title(f"{one.name}\nz² {one.z2:.2f}", fontsize=9)
        axis.set_yticks([])
    axis = list(axes.flat)[len(results)]
    share = area.credibility.numpy()
    steps = [(i + 1) / len(share) for i in range(len(share))]
    axis.plot([0, 1], [0, 1], "--", color="0.5", linewidth=0.8)
    axis.step([0, *share, 1], [0, *steps, 1], where="post", color="#d6604d")
    axis.set_title(f"TARP: expected coverage\narea {area.area:+.3f}", fontsize=9)
    for axis in list(axes.flat)[count:]:
        axis.set_visible(False)
    picture.suptitle(f"{title}: ranks of the truth among samples (grey: 99 % under calibration)", fontsize=10)
    picture.savefig(path, dpi=100)
    plt.close(picture)
