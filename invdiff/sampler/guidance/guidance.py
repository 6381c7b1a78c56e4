"""What guidance is: D(x; sigma) -> an estimate of E[x0 | x_sigma, y], per sample.

The exact identity is `E[x0 | x, y] = D + sigma^2 grad_x log p(y | x)`. All the
linear-Gaussian methods here are one formula with two models of Cov[x0 | x]:

    D_y = D + C_out A^T (A C_in A^T + sigma_y^2)^-1 (y - A D)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from invdiff.measurement.measurement import Measurement
from invdiff.prior.prior import Prior, PriorCard

Variance: TypeAlias = Literal["card", "gaussian", "unit"]
Claim: TypeAlias = Literal["exact", "gaussian", "consistent", "approximate", "heuristic", "point"]


@dataclass(frozen=True)
class Guided:
    """What one guided evaluation returns.

    Attributes:
        denoised: the estimate of E[x0 | x, y].
        direction: denoised state that the noise direction is taken from, where
            it is not `denoised` (DDS takes the prior's).
        impulse: added to the state after the step (DPS as published).
    """

    denoised: Float[Tensor, "batch *event"]
    direction: Float[Tensor, "batch *event"] | None = None
    impulse: Float[Tensor, "batch *event"] | None = None


@runtime_checkable
class Guidance(Protocol):
    """One method.

    Attributes:
        name: its name in reports.
        claim: what its samples are worth: `gaussian` (exact for Gaussian priors
            and linear operators), `approximate`, `heuristic` or `point` (an
            estimate whose spread means nothing).
    """

    @property
    def name(self) -> str: ...

    @property
    def claim(self) -> Claim: ...

    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        x: Float[Tensor, "batch *event"],
        sigma: float,
        sigma_next: float,
    ) -> Guided:
        """The guided estimate at `(x, sigma)`; the step to follow goes to `sigma_next`."""


def conditional_variance(card: PriorCard, sigma: float, model: Variance) -> float:
    """`r^2`, the model of Var(x0 | x_sigma) per component.

    `card`: the prior's measured denoising error where its card has one (else as
    `gaussian`); `gaussian`: sigma^2 s^2 / (sigma^2 + s^2) with the prior's total
    std s; `unit`: the customary sigma^2 / (1 + sigma^2), right only for s = 1.
    """
    if model == "card":
        return card.conditional_variance(sigma)
    variance = card.std**2 if model == "gaussian" else 1.0
    return sigma**2 * variance / (sigma**2 + variance)


def vp_factor(sigma: float, sigma_next: float) -> float:
    """Turns a step length in variance-preserving coordinates into one in x: see `dps`."""
    return math.sqrt((1 + sigma**2) * (1 + sigma_next**2))
