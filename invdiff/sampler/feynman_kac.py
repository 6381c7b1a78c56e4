"""The Feynman-Kac engine: resample, move, weigh.

A model starts N particles and moves them K times, each time with a log-weight
increment. The engine does not care what a particle is (an image, a graph, a
sequence of tokens): it gathers whatever the model hands it.

    x_0, log w = start(N)
    for k in 0..K-1:   resample if ESS < threshold N;   x_{k+1}, d = move(k, x_k);   log w += d

For a model whose increments are exact ratios of densities the weighted
particles are consistent for the terminal law and

    Z = prod over resamplings of mean(w)  *  mean of the last weights

is unbiased for its normalising constant, for any N, any threshold and any
unbiased resampling scheme (Del Moral 2004; Chopin & Papaspiliopoulos 2020,
chapter 10). Weights are carried where nothing is resampled; they are never
dropped, clipped or repaired.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invdiff.measurement.linear import expand
from invdiff.sampler.particles import ancestors, effective_fraction, log_mean, normalised

P = TypeVar("P")
Rejuvenation = Callable[[int, P, torch.Generator], P]


@runtime_checkable
class Model(Protocol[P]):
    """What is simulated and how it is weighted.

    Attributes:
        steps: number of moves.
    """

    @property
    def steps(self) -> int: ...

    def start(self, count: int, generator: torch.Generator) -> tuple[P, Float[Tensor, "particles"]]:
        """`count` particles and their log-weights."""

    def move(self, k: int, particles: P, generator: torch.Generator) -> tuple[P, Float[Tensor, "particles"]]:
        """The particles after move k and the increments of their log-weights."""


@dataclass(frozen=True)
class Settings:
    """How a filter is run.

    Attributes:
        particles: N.
        threshold: resample where ESS / N falls below it; 0 never, above 1 always.
        resampling: systematic, stratified, residual or multinomial.
        window: moves (first, last) before which resampling is allowed; all by default.
    """

    particles: int
    threshold: float = 0.5
    resampling: str = "systematic"
    window: tuple[int, int] | None = None


@dataclass(frozen=True)
class FilterStatistics:
    """Numbers of one filter, for reports.

    Attributes:
        log_evidence: log of the unbiased estimate of p(y).
        ess: smallest and last ESS / N.
        increment_variance: largest variance of a move's log-weight increment.
        resamplings: how many.
        founders: share of the first particles that have descendants.
        particles: N.
    """

    log_evidence: float
    ess: tuple[float, float]
    increment_variance: float
    resamplings: int
    founders: float
    particles: int


@dataclass(frozen=True)
class Filtered(Generic[P]):
    """What a filter leaves.

    Attributes:
        particles: at the end.
        log_weights: float64, not normalised.
        log_evidence: log of the unbiased estimate of the normalising constant.
        ess: ESS / N after the start and after every move.
        increment_variance: variance over the particles of each move's increment;
            above about 1 the weights select more than they correct.
        resampled: moves before which the population was resampled.
        founders: for each particle, which of the N first ones it descends from.
    """

    particles: P
    log_weights: Float[Tensor, "particles"]
    log_evidence: float
    ess: tuple[float, ...]
    increment_variance: tuple[float, ...]
    resampled: tuple[int, ...]
    founders: Int[Tensor, "particles"]

    @property
    def weights(self) -> Float[Tensor, "particles"]:
        """Normalised weights."""
        return normalised(self.log_weights)

    @property
    def statistics(self) -> FilterStatistics:
        """The numbers of this filter."""
        return FilterStatistics(
            self.log_evidence,
            (min(self.ess), self.ess[-1]),
            max(self.increment_variance, default=0.0),
            len(self.resampled),
            len(set(self.founders.tolist())) / len(self.founders),
            len(self.founders),
        )

    def drawn(self, count: int, generator: torch.Generator) -> P:
        """`count` equally weighted particles, in random order."""
        chosen: P = gather(self.particles, self.select(count, generator))
        return chosen

    def select(self, count: int, generator: torch.Generator) -> Int[Tensor, "count"]:
        """Indices of `count` equally weighted particles, in random order."""
        chosen = ancestors(self.log_weights, count, generator)
        return chosen[torch.randperm(count, generator=generator)]


def gather(particles: Any, chosen: Int[Tensor, "count"]) -> Any:
    """`particles[chosen]`, through lists, tuples, dataclasses of tensors and what has a `gather`."""
    if isinstance(particles, list):
        return [particles[int(i)] for i in chosen]
    if hasattr(particles, "gather") and not isinstance(particles, Tensor):
        return particles.gather(chosen)
    return through(lambda part: part[chosen.to(part.device)], particles)


def choose(mask: Bool[Tensor, "particles"], first: P, second: P) -> P:
    """Particles of `first` where `mask` is set, else of `second`."""
    chosen: P = through(lambda a, b: torch.where(expand(mask.to(a.device), a), a, b), first, second)
    return chosen


def through(function: Callable[..., Tensor], *trees: Any) -> Any:
    """`function` on the tensors of trees of one structure."""
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    if isinstance(first, tuple):
        return tuple(through(function, *parts) for parts in zip(*trees, strict=True))
    names = [field.name for field in fields(first)]
    return replace(
        first, **{name: through(function, *(getattr(tree, name) for tree in trees)) for name in names}
    )


def run(
    model: Model[P],
    settings: Settings,
    generator: torch.Generator,
    rejuvenate: Rejuvenation[P] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Filtered[P]:
    """Run the filter.

    Args:
        model: start and moves.
        settings: particles and resampling.
        generator: of all random numbers.
        rejuvenate: a Markov move that leaves the current target invariant, applied
            after each resampling; it needs no weight.

    Raises:
        FloatingPointError: for NaN weights or a population without weight, naming the move.
    """
    count = settings.particles
    first, last = settings.window or (0, model.steps)
    particles, logs = model.start(count, generator)
    logs = logs.double()
    founders = torch.arange(count)
    log_evidence = 0.0
    ess, variances, resampled = [_fraction(logs, "the start")], [], []
    for k in range(model.steps):
        if first <= k <= last and ess[-1] < settings.threshold:
            log_evidence += log_mean(logs)
            chosen = ancestors(logs, count, generator, settings.resampling)
            particles, founders = gather(particles, chosen), founders[chosen]
            logs = torch.zeros_like(logs)
            resampled.append(k)
            if rejuvenate is not None:
                particles = rejuvenate(k, particles, generator)
        particles, increment = model.move(k, particles, generator)
        increment = increment.double()
        logs = logs + increment
        variances.append(float(increment.var()) if count > 1 else math.nan)
        ess.append(_fraction(logs, f"move {k + 1} of {model.steps}"))
        if progress is not None:
            progress(k + 1, model.steps)
    return Filtered(
        particles,
        logs,
        log_evidence + log_mean(logs),
        tuple(ess),
        tuple(variances),
        tuple(resampled),
        founders,
    )


def _fraction(logs: Float[Tensor, "particles"], where: str) -> float:
    try:
        return effective_fraction(logs)
    except FloatingPointError as error:
        raise FloatingPointError(f"{error} (after {where})") from None
