"""What a prior is: one face, `denoise(x, sigma) = E[x0 | x_sigma = x]`.

All samplers work in `x_sigma = x0 + sigma n`, `n ~ N(0, I)`; the score is
`(D(x; sigma) - x) / sigma^2` and, for an exact prior,
`Cov[x0 | x_sigma] = sigma^2 dD/dx`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Sigma: TypeAlias = float | Tensor
"""A noise level: one number, one per sample (`[batch]`), or broadcastable to x."""


@dataclass(frozen=True)
class PriorCard:
    """What a user must know of a prior before trusting it on their data.

    Attributes:
        name: name under which reports quote it.
        channels: channels of an event; None where any number is accepted.
        shape: trained event shape without channels; None for any size.
        scale: what the number 1 means, in words ("99.5th percentile of |image|").
        std: total standard deviation per component of the prior.
        mean: mean per component of the prior.
        sigma_range: noise levels at which the denoiser may be asked.
        error_levels, error_values: mean squared error per component of the
            denoiser on held-out data, by noise level. For an exact prior this
            is the mean of `Var(x0 | x_sigma)`. Empty when not measured.
        levels: the only levels that the network was trained on (decreasing), if
            it cannot be asked between them.
        data: what it was trained on.
        licence: licence of the weights.
        condition: of a conditional prior, the degradation whose estimate it is given (domain's own words).
        exact: whether `denoise` is the exact posterior mean of a known law.
        limits: what it does not know.
    """

    name: str
    channels: int | None = None
    shape: tuple[int, ...] | None = None
    scale: str = "the units of the data"
    std: float = 1.0
    mean: float = 0.0
    sigma_range: tuple[float, float] = (1e-3, 1e3)
    error_levels: Sequence[float] = field(default=())
    error_values: Sequence[float] = field(default=())
    levels: Sequence[float] | None = None
    data: str = ""
    licence: str = ""
    condition: str = ""
    exact: bool = False
    limits: str = ""

    def conditional_variance(self, sigma: float) -> float:
        """Mean of `Var(x0 | x_sigma)` per component.

        From the measured denoising error where the card has one (interpolated in
        log-log, and continued as `sigma^2` below and as `std^2` above it), else
        the Gaussian value `sigma^2 s^2 / (sigma^2 + s^2)` with `s = std`.
        """
        gaussian = sigma**2 * self.std**2 / (sigma**2 + self.std**2)
        if len(self.error_levels) == 0:
            return gaussian
        levels = np.log(np.asarray(self.error_levels, dtype=np.float64))
        values = np.log(np.asarray(self.error_values, dtype=np.float64))
        order = np.argsort(levels)
        levels, values = levels[order], values[order]
        here = float(np.log(sigma))
        if here < levels[0]:
            return float(np.exp(values[0] + 2 * (here - levels[0])))
        return float(np.exp(np.interp(here, levels, values)))


@runtime_checkable
class Prior(Protocol):
    """A prior known through its denoiser."""

    @property
    def card(self) -> PriorCard:
        """Scale, sizes, training data and limits."""

    def denoise(self, x: Float[Tensor, "batch *event"], sigma: Sigma) -> Float[Tensor, "batch *event"]:
        """`E[x0 | x0 + sigma n = x]`; differentiable, deterministic, per sample."""


def sigma_like(sigma: Sigma, x: Float[Tensor, "batch *event"]) -> Tensor:
    """`sigma` as a tensor of x's dtype and device that broadcasts against x.

    A float stays a 0-dim tensor, `[batch]` gets trailing axes of length one.
    """
    level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if level.ndim == 1 and x.ndim > 1:
        level = level.reshape(-1, *([1] * (x.ndim - 1)))
    return level
