"""Where the tokens of a labelled graph stand in a sequence of sites.

Sites are the N atoms and then the N (N - 1) / 2 pairs, row by row; an atom's token is one of F, a pair's one
of the bond orders 0..3, and the sites of nodes that are not there hold `absent`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff import MASK
from invdiff_molecule.chemistry import Graph
from invdiff_molecule.state import pack

ORDERS = 4


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a graph of at most N nodes and F kinds of atoms stand.

    Attributes:
        most: N.
        kinds: F.
    """

    most: int
    kinds: int

    @property
    def sites(self) -> int:
        """N + N (N - 1) / 2."""
        return self.most + self.most * (self.most - 1) // 2

    @property
    def vocabulary(self) -> int:
        """Tokens of either kind of site, and `absent`."""
        return max(self.kinds, ORDERS) + 1

    @property
    def absent(self) -> int:
        """The token of what is not there."""
        return self.vocabulary - 1

    @cached_property
    def pairs(self) -> Int[Tensor, "2 pairs"]:
        """Rows and columns of the pair sites."""
        return torch.triu_indices(self.most, self.most, 1)

    def empty(self, sizes: Int[Tensor, "batch"]) -> Int[Tensor, "batch sites"]:
        """Everything masked that is there."""
        there = torch.arange(self.most) < sizes[:, None]
        rows, columns = self.pairs
        present = torch.cat([there, there[:, rows] & there[:, columns]], dim=1)
        return torch.where(present, MASK, self.absent)

    def tokens(self, graph: Graph) -> Int[Tensor, "sites"]:
        """Of a molecule, its atoms first."""
        out = self.empty(torch.tensor([graph.size]))[0]
        bonds = torch.zeros(self.most, self.most, dtype=torch.long)
        bonds[: graph.size, : graph.size] = torch.from_numpy(graph.bonds)
        rows, columns = self.pairs
        values = torch.cat([out[: self.most], bonds[rows, columns]])
        values[: graph.size] = torch.from_numpy(graph.atoms)
        return torch.where(out == MASK, values, out)

    def split(
        self, tokens: Int[Tensor, "batch sites"]
    ) -> tuple[Int[Tensor, "batch N"], Int[Tensor, "batch N N"]]:
        """Atom tokens, and pair tokens as a symmetric matrix whose diagonal is `absent`."""
        rows, columns = self.pairs
        matrix = tokens.new_full((len(tokens), self.most, self.most), self.absent)
        matrix[:, rows, columns] = tokens[:, self.most :]
        matrix[:, columns, rows] = tokens[:, self.most :]
        return tokens[:, : self.most], matrix

    def state(self, tokens: Int[Tensor, "batch sites"]) -> Float[Tensor, "batch N C"]:
        """Packed one-hot state of complete sequences; masked sites are 0."""
        atoms, pairs = self.split(tokens)
        nodes = torch.nn.functional.one_hot(atoms.clamp_min(0), self.vocabulary)[..., : self.kinds].float()
        nodes = nodes * (atoms != MASK)[..., None]
        decided = (pairs != MASK) & (pairs != self.absent)
        return pack(nodes, torch.where(decided, pairs, 0).float())
