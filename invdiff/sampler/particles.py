"""Weighted particles: effective sample size and resampling.

Log-weights are float64 and never clipped. Minus infinity is a legal weight (a
particle that cannot be), NaN is an error, and so is a population without any
weight.

Resampling schemes (Douc, Cappe & Moulines 2005, cs/0507025), all unbiased, with
W the normalised weights: every particle has N W_i children on average.

    systematic   one uniform number for all N strata; the default
    stratified   one uniform number a stratum
    residual     floor(N W_i) children surely, the rest multinomial
    multinomial  N independent draws; the reference, with the largest variance
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff.errors import unknown_name

Resampling: TypeAlias = Literal["systematic", "stratified", "residual", "multinomial"]


def normalised(log_weights: Float[Tensor, "particles"]) -> Float[Tensor, "particles"]:
    """Weights that add up to 1, in float64.

    Raises:
        FloatingPointError: for NaN or plus infinity, or where every weight is zero.
    """
    logs = log_weights.double()
    top = float(logs.max())
    if not torch.isfinite(logs.max()):
        what = "every particle has weight zero" if top == -float("inf") else f"a log-weight is {top}"
        raise FloatingPointError(f"{what}; the proposal does not cover the target")
    if bool(torch.isnan(logs).any()):
        raise FloatingPointError("a log-weight is nan")
    return torch.softmax(logs, dim=0)


def effective_fraction(log_weights: Float[Tensor, "particles"]) -> float:
    """`ESS / N = 1 / (N sum W^2)`, between 1/N and 1."""
    weights = normalised(log_weights)
    return float(1 / (weights.square().sum() * len(weights)))


def log_mean(log_weights: Float[Tensor, "particles"]) -> float:
    """`log( sum exp(log w) / N )` in float64."""
    logs = log_weights.double()
    count = torch.tensor(float(len(logs)), dtype=torch.float64)
    return float(torch.logsumexp(logs, dim=0) - count.log())


def ancestors(
    log_weights: Float[Tensor, "particles"],
    count: int,
    generator: torch.Generator,
    scheme: str = "systematic",
) -> Int[Tensor, "count"]:
    """Indices of `count` parents, each chosen `count * W_i` times on average."""
    weights = normalised(log_weights).cpu()
    if scheme == "multinomial":
        return torch.multinomial(weights, count, replacement=True, generator=generator)
    if scheme == "residual":
        sure = (count * weights).floor().long()
        chosen = torch.repeat_interleave(torch.arange(len(weights)), sure)
        rest = count - len(chosen)
        if rest == 0:
            return chosen
        left = (count * weights - sure).clamp_min(0)
        extra = torch.multinomial(left, rest, replacement=True, generator=generator)
        return torch.cat([chosen, extra])
    if scheme not in ("systematic", "stratified"):
        raise unknown_name("resampling scheme", scheme, get_args(Resampling))
    draws = 1 if scheme == "systematic" else count
    uniform = torch.rand(draws, generator=generator, dtype=torch.float64)
    points = (torch.arange(count, dtype=torch.float64) + uniform) / count
    edges = weights.cumsum(dim=0)
    return torch.searchsorted(edges / edges[-1], points, right=True).clamp_max(len(weights) - 1)
