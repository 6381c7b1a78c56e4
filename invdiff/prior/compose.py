"""Priors made of priors: annealed, products, classifier-free and geometric averages.

    prod_i q_i(x0)^(b_i)

The score of the product of the *noised* densities is S = sum_i b_i s_i, which is not the score
of the noised product: sampling with S alone has the wrong law. The correction is a weight,
(delta / 2) (|S|^2 - sum_i b_i |s_i|^2) a step (Skreta et al., arXiv 2503.02819), which particle
samplers add for a composition; a sampler without weights treats it as any other denoiser and
is then a heuristic.

    annealed      ((q, b),)                b > 1 sharpens
    product       ((q1, 1), (q2, 1))
    guidance      ((q1, 1 - w), (q2, w))   classifier-free, q2 the conditional prior

Over tokens the same holds exactly, without a step size: the next site is drawn from
prod_i q_i(v)^(b_i) / Z of its conditionals, and Z is the weight. Their products are prod_i q_i(x)^(b_i).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff.errors import InputError
from invdiff.prior.masked import MaskedPrior, NoLevels
from invdiff.prior.prior import Prior, PriorCard, Sigma, sigma_like
from invdiff.registry import load


def total_power(parts: Sequence[tuple[Prior, float]]) -> float:
    """B = sum_i b_i.

    Raises:
        InputError: for no parts, or powers that do not normalise.
    """
    total = float(sum(power for _, power in parts))
    if not parts or not total > 0:
        raise InputError(f"a composition needs priors whose powers add up to more than 0; found {total:g}")
    return total


def name_of(parts: Sequence[tuple[Prior, float]]) -> str:
    """`q1^b1 * q2^b2`."""
    return " * ".join(f"{prior.card.name}^{power:g}" for prior, power in parts)


def parts_of(prior: Prior) -> tuple[tuple[Prior, float], ...]:
    """The (prior, power) pairs of a composition, counted or of any kind; none of any other prior."""
    found = getattr(prior, "parts", ())
    return found if isinstance(found, tuple) else ()


def log_powers(parts: Sequence[tuple[Float[Tensor, "*shape"], float]]) -> Float[Tensor, "*shape"]:
    """sum_i b_i log q_i in float64; minus infinity where any part is, whatever its power."""
    impossible = torch.stack([torch.isneginf(log_q) for log_q, _ in parts]).any(0)
    total = sum((power * log_q.double() for log_q, power in parts), start=parts[0][0].double() * 0)
    return torch.where(impossible, -torch.inf, total)


class MaskedComposition(NoLevels):
    """`prod_i q_i^(b_i)` of priors over the same sites and tokens, for weighting samplers.

    Its conditionals are not normalised: what they add up to is the weight of the next site, and the evidence
    is the log of sum_x prod_i q_i(x)^(b_i). It begins as the first part does.

    Args:
        parts: (prior, power) pairs; the powers add up to more than zero.

    Raises:
        InputError: for powers that do not normalise, or parts over other sites or tokens.
    """

    def __init__(self, parts: tuple[tuple[MaskedPrior, float], ...]) -> None:
        total_power(parts)
        first = parts[0][0]
        for prior, _ in parts:
            if (prior.sites, prior.vocabulary) != (first.sites, first.vocabulary):
                raise InputError(
                    f"prior {prior.card.name!r} has {prior.sites} sites of {prior.vocabulary} tokens and "
                    f"{first.card.name!r} {first.sites} of {first.vocabulary}; a composition needs the same"
                )
        self.parts, self.sites, self.vocabulary = parts, first.sites, first.vocabulary
        self.event_shape = first.event_shape
        self.card = replace(first.card, name=name_of(parts), exact=False)

    def log_conditionals(self, tokens: Int[Tensor, "batch sites"]) -> Float[Tensor, "batch sites vocabulary"]:
        return log_powers([(prior.log_conditionals(tokens), power) for prior, power in self.parts])

    def start(self, count: int, generator: torch.Generator) -> Int[Tensor, "count sites"]:
        return self.parts[0][0].start(count, generator)

    def embed(self, tokens: Int[Tensor, "batch sites"]) -> Float[Tensor, "batch *event"]:
        return self.parts[0][0].embed(tokens)


class Composition:
    """`prod_i q_i^(b_i)` through the denoisers of the q_i.

    Args:
        parts: (prior, power) pairs; the powers add up to more than zero.

    Raises:
        InputError: for no parts or powers that do not normalise.
    """

    def __init__(self, parts: tuple[tuple[Prior, float], ...]) -> None:
        self.parts = parts
        self.total = total_power(parts)
        cards = [prior.card for prior, _ in parts]
        lead = cards[0]
        self._card = replace(
            lead,
            name=name_of(parts),
            std=lead.std / self.total**0.5,
            mean=sum(card.mean * power for card, (_, power) in zip(cards, parts, strict=True)) / self.total,
            sigma_range=(
                max(card.sigma_range[0] for card in cards),
                min(card.sigma_range[1] for card in cards),
            ),
            error_levels=(),
            error_values=(),
            exact=False,
        )

    @property
    def card(self) -> PriorCard:
        return self._card

    def evaluate(
        self, x: Float[Tensor, "batch *event"], sigma: Sigma
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch"]]:
        """(D of the composed score, |S|^2 - sum_i b_i |s_i|^2)."""
        variance = sigma_like(sigma, x) ** 2
        scores = [((prior.denoise(x, sigma) - x) / variance, power) for prior, power in self.parts]
        score = sum((power * s for s, power in scores), start=0 * x)
        squares = sum(
            (power * s.flatten(1).double().square().sum(1) for s, power in scores),
            start=0 * x.flatten(1)[:, 0].double(),
        )
        return x + variance * score, score.flatten(1).double().square().sum(1) - squares

    def denoise(self, x: Float[Tensor, "batch *event"], sigma: Sigma) -> Float[Tensor, "batch *event"]:
        return self.evaluate(x, sigma)[0]


def load_composition(settings: Mapping[str, Any]) -> Prior:
    """A composition of priors by name: `parts`, each with the settings of its prior and its `power`.

    Priors of tokens make a `MaskedComposition`, or their own kind of it (`composed(parts)`); others a
    `Composition`.

    Raises:
        InputError: for parts that are no list of priors with powers, or that do not go together.
    """
    parts = settings.get("parts")
    if not isinstance(parts, Sequence) or not parts or not all(isinstance(one, Mapping) for one in parts):
        raise InputError(
            "prior composition needs prior.parts, a list such as [{name: qm9_masked, power: 2}]; "
            f"found {parts!r}"
        )
    loaded: list[tuple[Any, float]] = []
    for number, part in enumerate(parts, 1):
        own = dict(part)
        try:
            name, power = str(own["name"]), float(own.pop("power", 1.0))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"part {number} of prior.parts needs a name and a number as its power") from None
        loaded.append((load("priors", name)(own), power))
    first = loaded[0][0]
    if hasattr(first, "composed"):
        whole: Prior = first.composed(tuple(loaded))
        return whole
    if all(isinstance(prior, MaskedPrior) for prior, _ in loaded):
        return MaskedComposition(tuple(loaded))
    for prior, _ in loaded:
        if isinstance(prior, MaskedPrior):
            raise InputError(
                f"prior {prior.card.name!r} is of tokens and cannot be composed with one that is not"
            )
    return Composition(tuple(loaded))
