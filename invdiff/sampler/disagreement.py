"""How much particles disagree on what a measurement would give, and which to make.

Particle i predicts m_i(l) for candidate l. Scores:

    variance   V(l) = sum_i w_i |m_i(l) - m(l)|^2                                    (total variance)
    entropy    H(l) = - sum_i w_i log sum_j w_j exp(-|m_i(l) - m_j(l)|^2 / (2 s^2))

H is, up to a constant, an upper bound of the entropy of the mixture of Gaussians
N(m_i, s^2 I) (Kolchinsky & Tracey, Entropy 19:361, 2017); s^2 = sigma_y^2 + r^2, with r^2
what one particle leaves open. With the opposite sign in the exponent, as published code
has it, the score ranks like the variance until it overflows, and then at random. H cannot
exceed log P: where long candidates saturate it, s^2 is raised to the median
|m_i - m_j|^2 and the turn says so. V has no such constant and is the default.

Several candidates in one turn: after a pick l' the score of l is multiplied by
1 - exp(-(l - l')^2 / (2 n^2)), n the width `neighbours` in candidates: what lies beside a pick is
partly predicted by it. P particles are too few to say how much (P - 1 dimensions against the
hundreds of a line), so n is a setting; with one candidate a turn it has no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError

SATURATED = 0.9  # of log P


def total_variance(
    predictions: Float[Tensor, "particles candidate component"],
    log_weights: Float[Tensor, "particles"] | None = None,
) -> Float[Tensor, "candidate"]:
    """`sum_i w_i |m_i - m|^2` of every candidate, float64."""
    weights = _weights(len(predictions), log_weights)
    centred = _centred(predictions, weights)
    return torch.einsum("i,ilc->l", weights, centred.square())


def mixture_entropy(
    predictions: Float[Tensor, "particles candidate component"],
    s2: float,
    log_weights: Float[Tensor, "particles"] | None = None,
) -> tuple[Float[Tensor, "candidate"], float]:
    """`- sum_i w_i log sum_j w_j exp(-|m_i - m_j|^2 / (2 s^2))`, float64, and the s^2 that was used.

    It lies in [0, log P]. Where more than a tenth of the candidates come within a tenth of log P,
    s^2 is raised to the median |m_i - m_j|^2.
    """
    weights = _weights(len(predictions), log_weights)
    centred = _centred(predictions, weights).permute(1, 0, 2)
    square = centred.square().sum(dim=-1)
    distance = square[:, :, None] + square[:, None, :] - 2 * centred @ centred.mT
    distance = distance.clamp_min(0)
    distance.diagonal(dim1=1, dim2=2).zero_()
    log_w = weights.clamp_min(1e-300).log()

    def entropy(width: float) -> Tensor:
        inner = torch.logsumexp(log_w - distance / (2 * width), dim=2)
        return -(weights * inner).sum(dim=1)

    found = entropy(s2)
    most = float(-(weights * log_w).sum())
    if len(weights) > 1 and float((found > SATURATED * most).float().mean()) > 0.1:
        off = distance[:, ~torch.eye(len(weights), dtype=torch.bool, device=distance.device)]
        median = float(off.median())
        if median > s2:
            return entropy(median), median
    return found, s2


def pick(
    score: Float[Tensor, "candidate"], count: int, *, neighbours: float = 0.0, taken: Sequence[int] = ()
) -> tuple[list[int], list[float]]:
    """`count` candidates and their scores, the best first; those beside a pick count less.

    Raises:
        InputError: where fewer candidates are left than are asked for.
    """
    left = len(score) - len(set(taken))
    if count > left:
        raise InputError(f"{count} measurements are asked for and {left} candidates are left")
    closed = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    closed[list(taken)] = True
    places = torch.arange(len(score), dtype=score.dtype, device=score.device)
    chosen: list[int] = []
    scores: list[float] = []
    for _ in range(count):
        best = int(torch.where(closed, -torch.inf, score).argmax())
        chosen.append(best)
        scores.append(float(score[best]))
        closed[best] = True
        if neighbours > 0:
            score = score * -torch.expm1(-0.5 * ((places - best) / neighbours) ** 2)
    return chosen, scores


def _weights(count: int, log_weights: Tensor | None) -> Tensor:
    if log_weights is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    return torch.softmax(log_weights.double(), dim=0)


def _centred(predictions: Tensor, weights: Tensor) -> Tensor:
    values = predictions.double()
    return values - torch.einsum("i,ilc->lc", weights.to(values), values)
