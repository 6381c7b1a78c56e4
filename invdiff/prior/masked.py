"""Priors over discrete sequences by masking: p(x_i | the sites that are not masked).

A masked (absorbing) diffusion destroys a sequence by masking its sites one after another and is
known through the conditional law of each masked site given the others (Austin et al., arXiv
2107.03006; Sahoo et al., arXiv 2406.07524). The state is an integer tensor in which `MASK` marks a
masked site. Sites that are known stand in the sequence from its start, so conditioning on tokens is exact.
"""

from __future__ import annotations

import itertools
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff.errors import InputError
from invdiff.prior.prior import Prior, PriorCard, Sigma

MASK = -1


@runtime_checkable
class MaskedPrior(Prior, Protocol):
    """A prior over `sites` tokens out of `vocabulary`; as a prior of real numbers it refuses."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Of what `embed` returns, without batch."""

    @property
    def sites(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    def log_conditionals(self, tokens: Int[Tensor, "batch sites"]) -> Float[Tensor, "batch sites vocabulary"]:
        """`log p(x_i = v | unmasked sites)` for masked sites i; float64.

        Normalised, but for a composition, where what they add up to is the weight of the site.
        """

    def start(self, count: int, generator: torch.Generator) -> Int[Tensor, "count sites"]:
        """Sequences to begin with: masked but for what is known, or drawn before the rest."""

    def embed(self, tokens: Int[Tensor, "batch sites"]) -> Float[Tensor, "batch *event"]:
        """Complete sequences as the forward model sees them."""


class NoLevels:
    """What a prior of tokens says where it is asked at a noise level."""

    def denoise(self, x: Float[Tensor, "batch *event"], sigma: Sigma) -> Float[Tensor, "batch *event"]:
        raise InputError("a prior of tokens has no noise levels; use sampler=first_hitting")


class TabulatedPrior(NoLevels):
    """A joint law given as a table, [vocabulary] * sites: exact conditionals, for tests.

    Raises:
        InputError: for a table that is not positive or whose sides differ.
    """

    def __init__(self, table: Float[Tensor, "*sides"]) -> None:
        if len(set(table.shape)) != 1 or not bool((table >= 0).all()) or float(table.sum()) <= 0:
            raise InputError("a tabulated law has one side length, no negative entry and a positive sum")
        self.table = table.double() / table.double().sum()
        self.sites, self.vocabulary = table.ndim, table.shape[0]
        self.card = PriorCard("tabulated", exact=True)
        self.event_shape = (self.sites,)
        self.states = torch.tensor(list(itertools.product(range(self.vocabulary), repeat=self.sites)))

    @property
    def probabilities(self) -> Float[Tensor, "states"]:
        """Of `states`, in their order."""
        return self.table.flatten()

    def log_conditionals(self, tokens: Int[Tensor, "batch sites"]) -> Float[Tensor, "batch sites vocabulary"]:
        agrees = ((tokens[:, None] == self.states) | (tokens[:, None] == MASK)).all(dim=2)
        weights = agrees * self.probabilities
        onehot = torch.nn.functional.one_hot(self.states, self.vocabulary).double()
        counts = torch.einsum("bs,siv->biv", weights, onehot)
        return (counts / counts.sum(dim=2, keepdim=True).clamp_min(1e-300)).log()

    def start(self, count: int, generator: torch.Generator) -> Int[Tensor, "count sites"]:
        return torch.full((count, self.sites), MASK)

    def embed(self, tokens: Int[Tensor, "batch sites"]) -> Float[Tensor, "batch sites"]:
        return tokens.float()
