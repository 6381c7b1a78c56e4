"""A law over all graphs of a few nodes, as a table."""

from __future__ import annotations

import itertools

import torch

from invdiff import PriorCard
from invdiff.prior.masked import TabulatedPrior
from invdiff_molecule.layout import Layout


class Small(TabulatedPrior):
    """All graphs of a few nodes, two elements, bonds 0 and 1, with a random law: 64 points at 3 nodes."""

    def __init__(self, nodes=3):
        self.layout = Layout(nodes, 2)
        self.sites, self.vocabulary = self.layout.sites, self.layout.vocabulary
        self.states = torch.tensor(list(itertools.product(range(2), repeat=self.sites)))
        generator = torch.Generator().manual_seed(0)
        law = torch.rand(len(self.states), generator=generator, dtype=torch.float64) ** 2
        self.table = law / law.sum()
        self.card, self.event_shape = PriorCard("small", exact=True), (nodes, 2 + nodes)

    def found(self, particles, weights):
        """Weights of the states."""
        index = (particles.tokens * 2 ** torch.arange(self.sites - 1, -1, -1)).sum(1)
        return torch.zeros(len(self.states), dtype=torch.float64).index_add(0, index, weights)

    def embed(self, tokens):
        return self.layout.state(tokens)
