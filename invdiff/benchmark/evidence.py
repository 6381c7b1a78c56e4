"""Is the evidence estimate of a particle method unbiased? Independent filters on problems with a known p(y).

The estimate Z of a filter has mean p(y) under the discretised prior, for any number of particles and any
resampling; what remains is the error of the levels. The mean of Z / p(y) over the replicates is therefore
held against 1 within three standard errors and `STEPS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from invdiff.benchmark.known import Known
from invdiff.sampler import feynman_kac
from invdiff.sampler.weighting.target import Target

REPLICATES = 200
PARTICLES = 128
STEPS = 0.05  # relative error of the evidence that the levels may make


@dataclass(frozen=True)
class Ratio:
    """Attributes:
    mean: of Z / p(y) over the replicates.
    error: its standard error.
    """

    mean: float
    error: float

    @property
    def holds(self) -> bool:
        """Within three standard errors and `STEPS`, and the standard error small enough to tell."""
        return abs(self.mean - 1) < 3 * self.error + STEPS and self.error < 0.1

    @property
    def words(self) -> str:
        """The figures in a line."""
        return f"Z / p(y) {self.mean:.3f} ± {self.error:.3f}"


def ratio(method: Any, known: Known, seed: int = 0) -> Ratio:
    """Z over the exact evidence, of `REPLICATES` filters of `PARTICLES`."""
    assert known.log_evidence is not None
    target = Target(known.prior, known.measurement, known.shape, torch.device("cpu"), torch.float64)
    model = method.model(target, torch.Generator().manual_seed(seed))
    logs = []
    for number in range(REPLICATES):
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        found = feynman_kac.run(model, feynman_kac.Settings(PARTICLES), generator)
        logs.append(found.log_evidence - known.log_evidence)
    values = torch.tensor(logs, dtype=torch.float64).exp()
    return Ratio(float(values.mean()), float(values.std()) / math.sqrt(REPLICATES))
