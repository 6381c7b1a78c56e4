"""Active subsampling of views: candidates, and the scanner that measures them.

A candidate is one view of the scan that would be complete: all angles of a simulated or measured sinogram.
The file plays the scanner (retrospective), or another process does (prospective, see `invdiff.FileExchange`):
it is then asked for rows [view, detector] in the units of the input, which is a sinogram of all views with
zeros where nothing was measured yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff import (
    Acquisition,
    GaussianNoise,
    InputError,
    LinearOperator,
    Pending,
    Plan,
    Problem,
    exchange_folder,
    start_size,
)
from invdiff_ct.item import Complete, Item
from invdiff_ct.projector import Projector

START = 4  # views to begin with, evenly spread


class CandidateViews(LinearOperator):
    """All views of a projector of norm 1; views are the candidates."""

    def __init__(self, projector: Projector) -> None:
        self.projector = projector
        self.event_shape = projector.event_shape

    def forward(self, x: Float[Tensor, "batch 1 y x"]) -> Float[Tensor, "batch view detector"]:
        return self.projector(x)

    def adjoint(self, y: Float[Tensor, "batch view detector"]) -> Float[Tensor, "batch 1 y x"]:
        return self.projector.adjoint(y)

    def candidates(self) -> Int[Tensor, "view detector"]:
        """The view of every datum."""
        views, detectors = self.projector.data_shape[-2:]
        return torch.arange(views)[:, None].expand(views, detectors).clone()

    def select(
        self, chosen: Sequence[int], y: Float[Tensor, "view detector"]
    ) -> tuple[Projector, Float[Tensor, "some detector"]]:
        """The projector of the chosen views, with their rows."""
        order = sorted(chosen)
        return self.projector.subset(order), y[order]


def plan_of(
    data: Float[np.ndarray, "view detector"],
    operator: Mapping[str, Any],
    noise: Mapping[str, Any],
    seed: int,
) -> Plan:
    """How the views are chosen; with an instrument, the rows of `data` that are not zero are the start.

    Raises:
        InputError: for a budget that cannot be measured, a volume, or counts under their own likelihood.
    """
    if noise["name"] not in ("auto", "gaussian"):
        raise InputError(f"choosing views needs Gaussian noise and this is noise={noise['name']}; use auto")
    if operator.get("volume"):
        raise InputError("views are chosen for one slice at a time; leave out operator.volume")
    if exchange_folder(operator) is not None:
        initial = np.flatnonzero(np.any(data != 0, axis=1))
    else:
        size = start_size(operator, START)
        initial = np.floor(np.arange(size) * len(data) / max(size, 1))
    return Plan.of(operator, len(data), [int(view) for view in initial], seed)


def pending(complete: Complete, plan: Plan, problem: Callable[[Item], Problem]) -> Problem:
    """The problem of the start, with what is still to be measured; `problem` makes one of an item."""
    first = complete.part(complete.data, sorted(plan.initial))
    whole = complete.projector.scaled()
    # White noise of the start's rms and the start's unit, in the scale of the complete operator.
    measurement = first.prepared.measurement
    assert isinstance(measurement.operator, Projector) and isinstance(measurement.noise, GaussianNoise)
    sigma = measurement.noise.sigma / measurement.operator.scale * whole.scale
    scanner = Scanner(plan, complete, whole.scale / first.prepared.unit)

    def finish(acquisition: Acquisition) -> Problem:
        scanner.close()
        return problem(complete.part(scanner.data, sorted(acquisition.order)))

    return replace(problem(first), pending=Pending(CandidateViews(whole), sigma, scanner, plan, finish))


class Scanner:
    """Answers with line integrals in the units of the candidates' operator; `data` is what was measured."""

    def __init__(self, plan: Plan, complete: Complete, scale: float) -> None:
        self.data, self.logarithm, self.scale = complete.data.copy(), complete.logarithm, scale
        self.initial = set(plan.initial)
        what = f"views of the {plan.count} of the scan, from 0"
        self.instrument = plan.instrument(what, self.data.shape[1:], "float64")

    def __call__(self, chosen: Sequence[int]) -> Float[Tensor, "view detector"]:
        wanted = [view for view in chosen if view not in self.initial]
        if self.instrument is not None and wanted:
            self.data[wanted] = self.instrument.ask(wanted)
        return torch.from_numpy(self.scale * self.logarithm(self.data)).float()

    def close(self) -> None:
        """Tell the instrument that all is measured."""
        if self.instrument is not None:
            self.instrument.close()
