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
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.prior.prior import Prior, PriorCard, Sigma, sigma_like


class Composition:
    """`prod_i q_i^(b_i)` through the denoisers of the q_i.

    Args:
        parts: (prior, power) pairs; the powers add up to more than zero.

    Raises:
        InputError: for no parts or powers that do not normalise.
    """

    def __init__(self, parts: tuple[tuple[Prior, float], ...]) -> None:
        self.parts = parts
        self.total = sum(power for _, power in parts)
        if not parts or not self.total > 0:
            raise InputError(
                f"a composition needs priors whose powers add up to more than 0; found {self.total}"
            )
        cards = [prior.card for prior, _ in parts]
        lead = cards[0]
        self._card = replace(
            lead,
            name=" * ".join(f"{card.name}^{power:g}" for card, (_, power) in zip(cards, parts, strict=True)),
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
