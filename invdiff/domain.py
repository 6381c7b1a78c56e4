"""What a domain pack supplies: readers, problems, baselines, metrics, figures, files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from invdiff.measurement.measurement import Measurement
from invdiff.measurement.operator import Operator
from invdiff.posterior import Posterior
from invdiff.prior.prior import Prior
from invdiff.sampler.design import Acquisition, Plan, Source

Config = Mapping[str, Any]
Tick = Callable[[], None]
Estimates = dict[str, Float[Tensor, "*event"]]


@dataclass(frozen=True)
class Pending:
    """Measurements of an item that are still to be chosen and made.

    Attributes:
        operator: measures every candidate, in prior units (see `measurement.candidates`).
        sigma_y: noise level of a datum.
        source: the instrument.
        plan: the start, the budget, and how the others are chosen.
        finish: the problem of what was measured; called after the source was asked for every turn.
    """

    operator: Operator
    sigma_y: float
    source: Source
    plan: Plan
    finish: Callable[[Acquisition], Problem]


@dataclass(frozen=True)
class Problem:
    """One item to be solved.

    Attributes:
        id: file-system safe name of the item.
        measurement: data and forward model, in prior units; of the start alone where measuring is pending.
        shape: event shape of x.
        context: whatever the domain needs to write and judge the result.
        notes: what was found and decided about the data, for the report.
        pending: what is still to be measured, by active subsampling.
        acquisition: what was measured so, in order.
    """

    id: str
    measurement: Measurement
    shape: tuple[int, ...]
    context: Any = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    pending: Pending | None = None
    acquisition: Acquisition | None = None


@dataclass(frozen=True)
class Figure:
    """A picture of the report, written in the run's `figures` folder."""

    title: str
    path: Path
    caption: str


@dataclass(frozen=True)
class Summary:
    """What an item's result is worth.

    Attributes:
        table: metric rows by method (the classical ones and ours); empty without a reference.
        facts: single figures such as coverage, by name.
        convention: how the metrics are defined.
        warnings: sentences that a reader must not miss.
        answers: how many of the samples are what was asked for; None where that is no question.
    """

    table: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    convention: str = ""
    warnings: tuple[str, ...] = ()
    answers: int | None = None


@runtime_checkable
class Domain(Protocol):
    """A domain pack's face. All reading and refusing happens in `problems`."""

    name: str
    baseline_names: tuple[str, ...]

    def problems(self, config: Config) -> list[Problem]:
        """Read the input (or the bundled example) and refuse what is wrong with it."""

    def adapt_prior(self, prior: Prior, problem: Problem) -> Prior:
        """The prior as the problem needs it (channels, sizes), or an InputError."""

    def baselines(self, problem: Problem, tick: Tick) -> Estimates:
        """Classical reconstructions by name, calling `tick` after each."""

    def summarise(self, problem: Problem, posterior: Posterior, baselines: Estimates) -> Summary:
        """Metrics of the posterior and the baselines."""

    def write(self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> None:
        """Mean, std and samples in the field's own formats."""

    def figures(
        self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path
    ) -> list[Figure]:
        """Pictures for the report."""
