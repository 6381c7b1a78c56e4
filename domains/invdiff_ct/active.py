"""Active subsampling of views: candidates, and the scanner that measures them.

A candidate is one view of the scan that would be complete: all angles of a simulated or measured sinogram.
The file plays the scanner (retrospective), or another process does (prospective, see `invdiff.FileExchange`):
it is then asked for rows [view, detector] in the units of the input, which is a sinogram of all views with
zeros where nothing was measured yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff import (
    Acquisition,
    Design,
    FileExchange,
    InputError,
    LinearOperator,
    Pending,
    Problem,
    check_budget,
    make_design,
)
from invdiff_ct.prepare import Prepared
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


@dataclass(frozen=True)
class Views:
    """How the views of a scan are chosen.

    Attributes:
        count: views of the complete scan.
        initial: views that are measured to begin with.
        budget: views in all.
        design: of the others.
        exchange: folder of the instrument; None where the file plays it.
        timeout: seconds to wait for it.
    """

    count: int
    initial: tuple[int, ...]
    budget: int
    design: Design
    exchange: Path | None
    timeout: float

    @classmethod
    def of(
        cls,
        data: Float[np.ndarray, "view detector"],
        operator: Mapping[str, Any],
        noise: Mapping[str, Any],
        seed: int,
    ) -> Views:
        """From an operator's settings.

        Raises:
            InputError: for a budget that cannot be measured, a volume, or counts under their own likelihood.
        """
        settings = dict(operator.get("design") or {})
        budget, count = int(operator["budget"]), len(data)
        exchange = settings.get("exchange")
        if noise["name"] not in ("auto", "gaussian"):
            raise InputError(
                f"choosing views needs Gaussian noise and this is noise={noise['name']}; use auto"
            )
        if operator.get("volume"):
            raise InputError("views are chosen for one slice at a time; leave out operator.volume")
        given = settings.get("initial")
        if exchange is not None:
            initial = tuple(int(view) for view in np.flatnonzero(np.any(data != 0, axis=1)))
        else:
            size = min(START, budget) if given is None else int(given)
            initial = tuple(int(view) for view in np.floor(np.arange(size) * count / max(size, 1)))
        check_budget(budget, initial, count)
        return cls(
            count,
            initial,
            budget,
            make_design(settings, seed),
            None if exchange is None else Path(str(exchange)),
            float(settings.get("timeout") or 600.0),
        )

    def pending(
        self,
        data: Float[np.ndarray, "view detector"],
        projector: Projector,
        unit: float,
        logarithm: Callable[[np.ndarray], np.ndarray],
        problem: Callable[[np.ndarray, list[int]], Problem],
    ) -> Problem:
        """The problem of the start, with what is still to be measured.

        Args:
            data: of the complete scan; of an instrument's, whatever stands where nothing was measured yet.
            projector: of the complete scan, line integrals in mm.
            logarithm: from the units of the input to line integrals.
            problem: of some of the data and their views.
        """
        first = problem(data, sorted(self.initial))
        prepared: Prepared = first.context[0].prepared
        whole = projector.scaled()
        # White noise of the start's rms, in the units of the complete operator.
        part = prepared.measurement.operator
        assert isinstance(part, Projector)
        sigma = prepared.measurement.noise.sigma / part.scale * whole.scale  # type: ignore[attr-defined]
        scanner = Scanner(self, data, lambda rows: logarithm(rows) / unit * whole.scale)

        def finish(acquisition: Acquisition) -> Problem:
            scanner.close()
            return problem(scanner.data, sorted(acquisition.order))

        pending = Pending(
            CandidateViews(whole), sigma, scanner, self.initial, self.budget, self.design, finish
        )
        return replace(first, pending=pending)


class Scanner:
    """Answers with line integrals in the units of the candidates' operator; `data` is what was measured."""

    def __init__(
        self,
        views: Views,
        data: Float[np.ndarray, "view detector"],
        scaled: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self.data, self.scaled, self.initial = data.copy(), scaled, set(views.initial)
        self.instrument = None
        if views.exchange is not None:
            what = f"views of the {views.count} of the scan, from 0"
            self.instrument = FileExchange(views.exchange, what, (data.shape[1],), "float64", views.timeout)

    def __call__(self, chosen: Sequence[int]) -> Float[Tensor, "view detector"]:
        wanted = [view for view in chosen if view not in self.initial]
        if self.instrument is not None and wanted:
            self.data[wanted] = self.instrument.ask(wanted)
        return torch.from_numpy(self.scaled(self.data)).float()

    def close(self) -> None:
        """Tell the instrument that all is measured."""
        if self.instrument is not None:
            self.instrument.close()
