"""Priors that count what they are asked: network calls and vector-Jacobian products, one a sample."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from invdiff.prior.compose import Composition, parts_of
from invdiff.prior.masked import MaskedPrior
from invdiff.prior.prior import Prior, PriorCard, Sigma


class Counted(Prior, Protocol):
    """A prior with counters.

    Attributes:
        calls: network calls, in samples.
        derivatives: vector-Jacobian products, in samples.
    """

    @property
    def calls(self) -> int: ...

    @property
    def derivatives(self) -> int: ...


def counted(prior: Prior) -> Counted:
    """The prior, counting from 0; draws in closed form and the parts of a composition stay at hand."""
    if isinstance(prior, MaskedPrior):
        return CountedMasked(prior)
    return CountedComposition(prior) if isinstance(prior, Composition) else CountedPrior(prior)


class CountedPrior:
    """One prior."""

    def __init__(self, prior: Prior) -> None:
        self.inner, self.calls, self.derivatives = prior, 0, 0
        if hasattr(prior, "sample"):
            self.sample = prior.sample

    @property
    def card(self) -> PriorCard:
        return self.inner.card

    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        self.calls += len(x)
        out = self.inner.denoise(x, sigma)
        if out.requires_grad:
            out.register_hook(self._count)  # type: ignore[no-untyped-call]
        return out

    def _count(self, gradient: Tensor) -> None:
        self.derivatives += len(gradient)


class CountedMasked:
    """A masked prior; its other attributes are the inner one's."""

    def __init__(self, prior: MaskedPrior) -> None:
        self.inner, self.calls, self.derivatives = prior, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def log_conditionals(self, tokens: Tensor, *given: Any) -> Tensor:
        self.calls += len(tokens) * max(len(parts_of(self.inner)), 1)
        return self.inner.log_conditionals(tokens, *given)


class CountedComposition(Composition):
    """A composition, whose parts are called separately."""

    def __init__(self, inner: Composition) -> None:
        self.counters = [CountedPrior(prior) for prior, _ in inner.parts]
        powers = [power for _, power in inner.parts]
        super().__init__(tuple(zip(self.counters, powers, strict=True)))

    @property
    def calls(self) -> int:
        return sum(counter.calls for counter in self.counters)

    @property
    def derivatives(self) -> int:
        return sum(counter.derivatives for counter in self.counters)
