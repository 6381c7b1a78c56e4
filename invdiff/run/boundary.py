"""`invdiff boundary find`: search a boundary condition on references, and judge it on others.

The judgement is part of the result: on test images that the search has not seen, beside random starts (their
mean, best and worst), the mean of the prior, scaled noise, a start fixed before, and the best start for each
test image by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.domain import Problem
from invdiff.errors import InputError
from invdiff.registry import load
from invdiff.run.directory import write_json, write_text
from invdiff.run.fit import check_prior
from invdiff.run.provenance import measurement_digest
from invdiff.run.solve import choose_device, make_prior, make_sampler
from invdiff.run.start import deterministic
from invdiff.sampler.boundary import Boundary, Difference, FixedStart, Found, paired, prior_digest, search
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.loop import DiffusionSampler, require_prior, require_supported

Report = Callable[[str, int, int], None]
RANDOM = 20  # random starts of the control
CHANCE, ZERO = f"random, mean of {RANDOM}", "mean of the prior (zero)"
SCALES = (0.25, 0.5, 0.75)


@runtime_checkable
class Referenced(Protocol):
    """A domain whose results can be scored against references."""

    criteria: Mapping[str, Callable[[Problem, Tensor], float]]
    """By name; larger is better."""

    def references(self, config: Mapping[str, Any], folder: Path) -> list[Problem]:
        """Problems whose truth is known, of a folder of references or of pairs."""


@dataclass(frozen=True)
class Row:
    """A start on the test images: mean of every criterion, and the winner's paired lead over it."""

    name: str
    values: dict[str, Float[np.ndarray, "images"]]


class Runs:
    """The end of the deterministic sampler from any start, on a list of problems; every score is kept."""

    def __init__(
        self,
        domain: Referenced,
        problems: Sequence[Problem],
        prior: Any,
        sampler: DiffusionSampler,
        device: torch.device,
    ) -> None:
        self.domain, self.problems, self.sampler, self.device = domain, problems, sampler, device
        self.priors = [domain.adapt_prior(prior, problem) for problem in problems]  # type: ignore[attr-defined]
        for adapted, problem in zip(self.priors, problems, strict=True):
            check_prior(adapted, problem)
            require_supported(sampler, problem.measurement, problem.shape)
            require_prior(sampler, adapted)
        self._known: dict[tuple[FixedStart, int], dict[str, float]] = {}

    def image(self, start: FixedStart, index: int) -> Float[Tensor, "*event"]:
        """h(x_T, y) of one problem."""
        problem = self.problems[index]
        noise = ParticleNoise(0, [0], device=self.device)
        sampler = replace(self.sampler, start=start)
        with torch.no_grad():
            draws = sampler(self.priors[index], problem.measurement, problem.shape, noise)
        return draws.x[0].cpu()

    def scores(self, start: FixedStart, index: int) -> dict[str, float]:
        """All criteria of it."""
        key = (start, index)
        if key not in self._known:
            image = self.image(start, index)
            found = {name: score(self.problems[index], image) for name, score in self.domain.criteria.items()}
            self._known[key] = found
        return self._known[key]

    def row(self, name: str, start: FixedStart) -> Row:
        """A start on all problems."""
        return self.merged(name, [[self.scores(start, index)] for index in range(len(self.problems))])

    def merged(
        self, name: str, scores: Sequence[Sequence[dict[str, float]]], pick: str = "", best: bool = True
    ) -> Row:
        """Per image the mean of several scores, or those of the best (worst) by the criterion `pick`."""
        values: dict[str, list[float]] = {key: [] for key in self.domain.criteria}
        for image in scores:
            if pick:
                chosen = (max if best else min)(image, key=lambda one: one[pick])
                kept: Sequence[dict[str, float]] = [chosen]
            else:
                kept = image
            for key in values:
                values[key].append(float(np.mean([one[key] for one in kept])))
        return Row(name, {key: np.array(value) for key, value in values.items()})


def controls(runs: Runs, winner: FixedStart, criterion: str, report: Callable[[int, int], None]) -> list[Row]:
    """The winner and everything it must be compared with, on test images."""
    randoms = [FixedStart(1, key) for key in range(RANDOM)]  # seed 1: none of them was a candidate
    total = (RANDOM + len(SCALES) + 2) * len(runs.problems)
    scored = []
    for index in range(len(runs.problems)):
        scored.append([runs.scores(start, index) for start in randoms])
        report((index + 1) * RANDOM, total)
    rows = [
        runs.row("found", winner),
        runs.merged(CHANCE, scored),
        runs.merged(f"random, best of {RANDOM} for each image (oracle)", scored, criterion),
        runs.merged(f"random, worst of {RANDOM} for each image", scored, criterion, best=False),
        runs.row(ZERO, FixedStart(1, 0, 0.0)),
    ]
    rows += [runs.row(f"fixed noise x {scale:g}", FixedStart(1, 0, scale)) for scale in SCALES]
    rows.append(runs.row("fixed noise, chosen before", FixedStart(1, 0)))
    report(total, total)
    return rows


def run_find(
    config: Mapping[str, Any],
    reference: Path,
    test: Path | None,
    candidates: int,
    criterion: str,
    scales: Sequence[float],
    seed: int,
    out: Path,
    report: Report = lambda what, done, total: None,
) -> dict[str, Any]:
    """Search, judge, and write `boundary.safetensors`, `boundary.json`, `boundary.md` and `boundary.png`.

    Args:
        config: of a solve: domain, operator, prior, sampler.
        reference: folder of references (high resolution, say), or with `lr` and `hr` inside, pairs.
        test: the same for the controls; None: the second half of `reference`.
        candidates: keys that compete.
        criterion: one of the domain's, larger is better; empty: its first.
        scales: c of the candidates, taken in turn.
        seed: of the fields.
        out: folder.

    Raises:
        InputError: for a domain without references, an unknown criterion, test images among the references.
    """
    domain = load("domains", str(config["domain"]["name"]))()
    if not isinstance(domain, Referenced):
        raise InputError(
            f"domain {config['domain']['name']!r} has no criteria to find a boundary condition by"
        )
    criterion = criterion or next(iter(domain.criteria))
    if criterion not in domain.criteria:
        raise InputError(f"unknown criterion {criterion!r}; expected one of {', '.join(domain.criteria)}")
    if candidates < 2:
        raise InputError(f"candidates is {candidates}; at least two must compete")
    if not scales or not all(0 <= scale <= 2 for scale in scales):
        raise InputError(f"scale is {list(scales)}; expected numbers from 0 to 2")
    device = choose_device(str(config["run"]["device"]))
    prior = make_prior(config["prior"])
    sampler = deterministic(make_sampler(config["sampler"], prior.card))
    found_in = domain.references(config, reference)
    judged_on = None if test is None else domain.references(config, test)
    if judged_on is None:
        found_in, judged_on = found_in[0::2], found_in[1::2]
    if len(found_in) < 2 or len(judged_on) < 2:
        raise InputError(
            f"{len(found_in)} references to search on and {len(judged_on)} to test on; two of each are needed"
        )
    keys = [measurement_digest(problem) for problem in found_in]
    if set(keys) & {measurement_digest(problem) for problem in judged_on}:
        raise InputError("a test image is among the references; the test would be no test")
    runs = Runs(domain, found_in, prior, sampler, device)
    tests = Runs(domain, judged_on, prior, sampler, device)
    out.mkdir(parents=True, exist_ok=True)
    starts = [FixedStart(seed, key, scales[key % len(scales)]) for key in range(candidates)]
    found = search(
        starts,
        len(found_in),
        lambda start, index: runs.scores(start, index)[criterion],
        progress=lambda done, total: report("searching", done, total),
    )
    rows = controls(tests, found.best, criterion, lambda done, total: report("testing", done, total))
    leads = {
        row.name: {key: asdict(paired(rows[0].values[key], row.values[key])) for key in row.values}
        for row in rows[1:]
    }
    summary: dict[str, Any] = {
        "criterion": criterion,
        "winner": asdict(found.best),
        "candidates": candidates,
        "references": len(found_in),
        "test images": len(judged_on),
        "lead over the median survivor in standard errors": found.lead,
        "rank correlation between references": found.transfer,
        "score on the references": float(np.nanmean(found.scores[starts.index(found.best)])),
        "table": {row.name: {key: float(value.mean()) for key, value in row.values.items()} for row in rows},
        "found minus control": leads,
    }
    boundary = Boundary(
        found.best,
        {"name": prior.card.name, "digest": prior_digest(prior)},
        dict(config["sampler"]),
        dict(config["operator"]),
        criterion,
        tuple(found_in[0].shape),
        tuple(keys),
        {key: summary[key] for key in summary if key not in ("winner", "found minus control")},
    )
    boundary.save(out / "boundary.safetensors")
    write_json(out / "boundary.json", summary)
    write_text(out / "boundary.md", words(summary, found))
    draw(out / "boundary.png", found, rows, leads, criterion)
    return summary


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence that says whether the search was worth it."""
    criterion = summary["criterion"]
    leads = summary["found minus control"]

    def against(control: str) -> str:
        lead = Difference(**leads[control][criterion])
        how = "better than" if lead.low > 0 else "worse than" if lead.high < 0 else "no different from"
        return f"{how} {control} ({lead.mean:+.4g}, 95 % {lead.low:+.4g} to {lead.high:+.4g})"

    return (
        f"By {criterion}, on images it has not seen, the start that was found is {against(CHANCE)} and "
        f"{against(ZERO)}."
    )


def words(summary: Mapping[str, Any], found: Found) -> str:
    """The table and what it says, as Markdown."""
    criteria = list(next(iter(summary["table"].values())))
    lines = [
        "# Boundary condition",
        "",
        verdict(summary),
        "",
        f"The winner has scale {summary['winner']['scale']:g}. "
        f"{summary['candidates']} candidates, {summary['references']} references, {summary['test images']} "
        "test images. Rank correlation of the candidates' scores between two halves of the first references: "
        f"{found.transfer:.2f} (near zero: what is good for one image says nothing of another). The winner "
        f"leads the median survivor by {found.lead:.1f} standard errors"
        + (": no clear winner." if found.lead < 1 else "."),
        "",
        "| start | " + " | ".join(criteria) + " |",
        "|---|" + "---|" * len(criteria),
    ]
    for name, row in summary["table"].items():
        lines.append(f"| {name} | " + " | ".join(f"{row[key]:.4g}" for key in criteria) + " |")
    lines += [
        "",
        "Found minus control, by image (95 % bootstrap interval; p by sign flips, uncorrected):",
        "",
        "| control | " + " | ".join(criteria) + " |",
        "|---|" + "---|" * len(criteria),
    ]
    for name, row in summary["found minus control"].items():
        leads = [Difference(**row[key]) for key in criteria]
        cells = [f"{one.mean:+.4g} ({one.low:+.4g} to {one.high:+.4g}; p {one.p:.2g})" for one in leads]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(path: Path, found: Found, rows: Sequence[Row], leads: Mapping[str, Any], criterion: str) -> None:
    """Scores of the candidates, their transfer between references, and the winner against its controls."""
    from invdiff.imaging import page_of, save

    page = page_of(13.0, 3.8)
    left, middle, right = page.subplots(1, 3, width_ratios=[1, 1, 1.5])
    first = np.flatnonzero(~np.isnan(found.scores).any(axis=0))  # on which every candidate was tried
    means = found.scores[:, first].mean(axis=1)
    left.hist(means, bins=min(30, max(5, len(means) // 3)), color="#8ab4e8")
    left.set_xlabel(f"{criterion}, first {len(first)} references")
    left.set_ylabel("candidates")
    half = len(first) // 2
    one, other = (found.scores[:, part].mean(axis=1) for part in (first[:half], first[half : 2 * half]))
    middle.scatter(one, other, s=9, color="#0969da")
    middle.set_xlabel("one half of them")
    middle.set_ylabel("the other half")
    middle.set_title(f"rank correlation {found.transfer:.2f}", fontsize=10)
    names = list(leads)
    values = [leads[name][criterion] for name in names]
    places = np.arange(len(names))[::-1]
    for place, value in zip(places, values, strict=True):
        right.plot([value["low"], value["high"]], [place, place], color="#1b1f24", linewidth=1.5)
        right.plot([value["mean"]], [place], "o", color="#0969da", markersize=5)
    right.axvline(0, color="#888", linewidth=0.8)
    right.set_yticks(places, names, fontsize=8)
    right.set_xlabel(f"found minus control, {criterion}, test images")
    for axes in (left, middle, right):
        axes.tick_params(labelsize=8)
    save(page, path)
