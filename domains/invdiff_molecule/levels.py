"""What diffusion priors of graphs share: levels of every column, sizes, the graphs that states round to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invdiff import InputError, PriorCard, Sigma
from invdiff_molecule.chemistry import Graph, Vocabulary
from invdiff_molecule.state import nodes_of, pack, support, unpack

LAST = 1e-5  # the smallest t


@dataclass(frozen=True)
class Moments:
    """Of a set of graphs; those of the public sets are in weights/graph_sets.json.

    Attributes:
        most: largest number of nodes that the prior holds.
        node_mean: share of every kind of node (its variance is m (1 - m)).
        edge_mean, edge_variance: of the entries of a pair of nodes.
        shares: share of the graphs by number of nodes.
    """

    most: int
    node_mean: Sequence[float]
    edge_mean: float
    edge_variance: float
    shares: Mapping[str, float]

    @property
    def sizes(self) -> list[float]:
        """Shares of 0 .. most nodes."""
        return [self.shares.get(str(size), 0.0) for size in range(self.most + 1)]

    def columns(self) -> tuple[Float[Tensor, "1 1 C"], Float[Tensor, "1 1 C"]]:
        """Mean and variance of every column of the packed state."""
        nodes = torch.tensor(self.node_mean)
        edges = torch.ones(self.most)
        mean = torch.cat([nodes, self.edge_mean * edges])
        variance = torch.cat([nodes * (1 - nodes), self.edge_variance * edges])
        return mean[None, None], variance[None, None]


@dataclass(frozen=True)
class GraphDiffusionPrior(ABC):
    """A denoiser of packed states whose padding stays 0.

    Attributes:
        card: what it knows.
        moments: mean and variance of nodes and edges, and the law of sizes, of the training set.
        names: written atom tokens; empty for generic graphs.
        cations: see `Vocabulary`.
        size: number of nodes; None where every state says so itself by its rows of zeros.
    """

    card: PriorCard
    moments: Moments
    names: tuple[str, ...]
    cations: bool
    size: int | None

    @property
    def most(self) -> int:
        """N."""
        return self.moments.most

    @property
    def features(self) -> int:
        """F."""
        return len(self.moments.node_mean)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Of the packed state."""
        return (self.most, self.features + self.most)

    @property
    def vocabulary_of_atoms(self) -> Vocabulary:
        """The atoms that it knows."""
        return Vocabulary.of(self.names, self.cations)

    @abstractmethod
    def level(self, t: float) -> Float[Tensor, "1 1 C"]:
        """Noise level of every column at t in [0, 1]."""

    @abstractmethod
    def denoise(self, x: Float[Tensor, "batch N C"], sigma: Sigma) -> Float[Tensor, "batch N C"]:
        """D on the support: rows that are not zero, or the first `size`."""

    def require_one_level(self) -> None:
        """Refuse where nodes and edges have levels of their own.

        Raises:
            InputError: with the sampler to use.
        """
        if any(bool((level != level[..., :1]).any()) for level in self.levels(3)):
            raise InputError(
                f"prior {self.card.name!r} has levels of its own for nodes and for edges; "
                "use sampler=graph_diffusion"
            )

    def levels(self, steps: int) -> list[Float[Tensor, "1 1 C"]]:
        """Decreasing levels, uniform in t."""
        return [self.level(float(t)) for t in torch.linspace(1.0, LAST, steps, dtype=torch.float64)]

    def given(self, fragment: Graph | None = None, size: int | None = None) -> Self:
        """The prior at a fixed number of nodes.

        Raises:
            InputError: for a fragment, which a masked prior holds exactly, or a size out of range.
        """
        if fragment is not None:
            raise InputError(
                f"prior {self.card.name!r} cannot hold a fragment; use prior=qm9_masked or zinc_masked"
            )
        if size is not None and not 1 <= size <= self.most:
            raise InputError(f"{size} nodes were asked for; this prior knows 1 to {self.most}")
        return replace(self, size=size)

    @property
    def free(self) -> Float[Tensor, "N C"]:
        """1 on the free coordinates of graphs of `size` nodes, of N where it is not given."""
        return support(torch.tensor([self.size or self.most]), self.most, self.features)[0]

    def there(self, x: Float[Tensor, "batch N C"]) -> Bool[Tensor, "batch N"]:
        """Which nodes are there."""
        if self.size is None:
            return nodes_of(x, self.features)
        return (torch.arange(self.most, device=x.device) < self.size).expand(len(x), -1)

    def unit_noise(self) -> Float[Tensor, "1 1 C"]:
        """Variance in our units of N(0, 1) in those of the networks, at t = 1."""
        return self.level(1.0) ** 2

    def rounded(self, x: Float[Tensor, "batch N C"]) -> Float[Tensor, "batch N C"]:
        """The nearest graphs as packed states: the largest node column, the nearest bond order."""
        nodes, edges = unpack(x, self.features)
        onehot = torch.nn.functional.one_hot(nodes.argmax(-1), self.features).to(x)
        bonds = edges.round().clamp(0, 3 if self.names else 1)
        return pack(onehot * self.there(x)[..., None], bonds)

    def start_sizes(self, count: int, generator: torch.Generator) -> Int[Tensor, "count"]:
        """Numbers of nodes."""
        if self.size is not None:
            return torch.full((count,), self.size)
        law = torch.tensor(self.moments.sizes, dtype=torch.float64)
        return torch.multinomial(law, count, replacement=True, generator=generator)
