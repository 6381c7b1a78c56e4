"""The prior alone: D_y = D. For unconditional draws, and for searches that steer by a verifier only.

The data are ignored, so as samples of p(x | y) the result is a `heuristic` at best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.measurement.measurement import Measurement
from invdiff.prior.prior import Prior
from invdiff.sampler.guidance.guidance import Claim, Guided


@dataclass(frozen=True)
class Unguided:
    """No settings; any operator and noise."""

    name: ClassVar[str] = "unguided"
    needs_linear: ClassVar[bool] = False
    needs_gaussian: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = False
    claim: ClassVar[Claim] = "heuristic"

    @torch.no_grad()
    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        x: Float[Tensor, "batch *event"],
        sigma: float,
        sigma_next: float,
    ) -> Guided:
        return Guided(prior.denoise(x, sigma))
