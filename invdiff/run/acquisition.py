"""Active subsampling inside a run: measure what is pending, keep the record, find it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from invdiff.domain import Problem
from invdiff.prior.prior import Prior
from invdiff.run.directory import write_json
from invdiff.sampler.design import Acquisition, Turn, acquire
from invdiff.sampler.loop import Sampler

RECORD = "acquisition.json"


def save(acquisition: Acquisition, path: Path) -> None:
    """The record as JSON: policy, number of candidates and every turn."""
    turns = [asdict(turn) for turn in acquisition.turns]
    write_json(path, {"policy": acquisition.policy, "count": acquisition.count, "turns": turns})


def load(path: Path) -> Acquisition:
    """A record that was saved."""
    content = json.loads(path.read_text())
    turns = tuple(
        Turn(**{**turn, "chosen": tuple(turn["chosen"]), "scores": tuple(turn["scores"])})
        for turn in content["turns"]
    )
    return Acquisition(content["policy"], content["count"], turns)


def measured(
    problem: Problem,
    prior: Prior,
    sampler: Sampler,
    folder: Path,
    item: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Problem:
    """The problem with everything measured; what the folder records is asked for again, not chosen again."""
    pending = problem.pending
    if pending is None:
        return problem
    record = folder / RECORD
    if record.exists():
        acquisition = load(record)
        for turn in acquisition.turns:
            pending.source(turn.chosen)
    else:
        acquisition, _ = acquire(
            pending.plan.design,
            prior,
            pending.operator,
            pending.sigma_y,
            problem.shape,
            pending.source,
            sampler=sampler,
            initial=pending.plan.initial,
            budget=pending.plan.budget,
            item=item,
            device=device,
            progress=progress,
        )
        save(acquisition, record)
    done = pending.finish(acquisition)
    return replace(done, pending=None, acquisition=acquisition, notes={**done.notes, **acquisition.facts()})
