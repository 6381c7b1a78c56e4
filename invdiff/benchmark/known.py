"""A problem whose posterior is known: what `invdiff verify` runs samplers on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.measurement.measurement import Measurement
from invdiff.prior.prior import Prior

FLOORS = 10  # pairs of exact sets

Draw = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Score:
    """A number of a set of samples beside its exact value.

    Attributes:
        value: of the samples.
        exact: of the posterior.
        spread: its standard deviation over exact sets of the same size.
    """

    value: float
    exact: float
    spread: float

    @property
    def z(self) -> float:
        """Deviation in standard deviations of exact sets."""
        return (self.value - self.exact) / max(self.spread, 1e-12)


@dataclass(frozen=True)
class Reference:
    """What samplers are compared with.

    Attributes:
        sets: exact sets.
        floors: distances between pairs of exact sets.
        statistics: of exact sets, by name.
    """

    sets: list[Float[Tensor, "draws *event"]]
    floors: Float[Tensor, "pairs"]
    statistics: dict[str, Float[Tensor, "sets"]]


@dataclass(frozen=True)
class Known:
    """A problem with its exact posterior.

    Attributes:
        name: such as `gmm25 8/1 seed 0`.
        prior, measurement, shape: the problem.
        draws: samples that are asked of a sampler.
        sample: exact posterior draws.
        log_evidence: log p(y), where it is known.
        sigma_max: first level that dwarfs the prior, for samplers that take one.
        gaussian: whether prior and posterior are Gaussian.
        statistics: names to functions of a set of samples, each with a known exact value.
        distance: of a set of samples to an exact set of the same size, keyed by a seed.
    """

    name: str
    prior: Prior
    measurement: Measurement
    shape: tuple[int, ...]
    draws: int
    sample: Draw
    distance: Callable[[Tensor, Tensor], float]
    log_evidence: float | None = None
    sigma_max: float = 80.0
    gaussian: bool = False
    statistics: Mapping[str, Callable[[Float[Tensor, "draws *event"]], float]] = field(default_factory=dict)

    @cached_property
    def information(self) -> float:
        """KL divergence from prior to posterior in nats, E log p(y | x) - log p(y); 0 without an evidence."""
        if self.log_evidence is None:
            return 0.0
        x = self.sample(max(200, self.draws), torch.Generator().manual_seed(0))
        with torch.no_grad():
            return float(self.measurement.log_likelihood(x).mean()) - self.log_evidence

    @cached_property
    def reference(self) -> Reference:
        """Exact sets with their distances and statistics, computed once for all samplers."""
        sets = self.exact_sets(2 * FLOORS, seed=20_001)
        pairs = zip(sets[::2], sets[1::2], strict=True)
        floors = torch.tensor([self.distance(a, b) for a, b in pairs], dtype=torch.float64)
        values = {
            name: torch.tensor([statistic(one) for one in sets], dtype=torch.float64)
            for name, statistic in self.statistics.items()
        }
        return Reference(sets[:4], floors, values)

    def exact_sets(self, count: int, seed: int) -> list[Float[Tensor, "draws *event"]]:
        """`count` independent exact sets, each as large as a sampler's."""
        generator = torch.Generator().manual_seed(seed)
        return [self.sample(self.draws, generator) for _ in range(count)]
