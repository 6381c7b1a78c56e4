"""Linear forward models of generic graphs, and how to decide a graph that has their data.

known pairs  y = A_ij of some i < j      edges  y = sum_{i<j} A_ij      degrees  y_i = sum_j A_ij
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invdiff import MASK, InputError, LinearOperator, Measurement
from invdiff_molecule.formula import FormulaProposal
from invdiff_molecule.layout import Layout

if TYPE_CHECKING:
    from invdiff_molecule.masked import MaskedGraphPrior

SWEEPS = 25  # of the tilts of the nodes
REACH = 8.0  # largest |theta|
FAR = 1_000_000  # after every pair


class KnownPairs(LinearOperator):
    """y = A_ij of some pairs i < j.

    Args:
        known: pairs, upper triangle.
        features: F, columns of the nodes.
    """

    def __init__(self, known: Bool[Tensor, "N N"], features: int) -> None:
        self.known, self.features = torch.triu(known, 1), features
        self.event_shape = (len(known), features + len(known))

    def forward(self, x: Float[Tensor, "batch N C"]) -> Float[Tensor, "batch pairs"]:
        return x[..., self.features :][..., self.known.to(x.device)]

    def impose(self, x: Float[Tensor, "batch N C"], y: Float[Tensor, "pairs"]) -> Float[Tensor, "batch N C"]:
        """x with the pairs that are known."""
        out = x.clone()
        out[..., self.features :][..., self.known.to(x.device)] = y.to(x)
        return out

    def adjoint(self, y: Float[Tensor, "batch pairs"]) -> Float[Tensor, "batch N C"]:
        assert self.event_shape is not None
        out = y.new_zeros((*y.shape[:-1], *self.event_shape))
        edges = out[..., self.features :]
        edges[..., self.known.to(y.device)] = y
        return out


class EdgeCount(LinearOperator):
    """y = sum_{i<j} A_ij."""

    def __init__(self, most: int, features: int) -> None:
        self.most, self.features = most, features
        self.event_shape = (most, features + most)
        self.upper = torch.triu(torch.ones(most, most), 1)

    def forward(self, x: Float[Tensor, "batch N C"]) -> Float[Tensor, "batch one"]:
        return (x[..., self.features :] * self.upper.to(x)).sum((-1, -2))[..., None]

    def adjoint(self, y: Float[Tensor, "batch one"]) -> Float[Tensor, "batch N C"]:
        edges = y[..., None] * self.upper.to(y)
        return torch.cat([edges.new_zeros((*edges.shape[:-1], self.features)), edges], dim=-1)

    def proposal(self, prior: MaskedGraphPrior, measurement: Measurement) -> EdgeProposal:
        """Every pair tilted to what is left of the edges."""
        return EdgeProposal(prior.layout, float(measurement.y.cpu()[0]))


class EdgeProposal(FormulaProposal):
    """q of a number of edges: the tilt of the bonds of a formula, for a total that is known."""

    def __init__(self, layout: Layout, edges: float) -> None:
        self.layout, self.edges = layout, edges

    def atoms(self, tokens: Tensor, site: Tensor, log_p: Tensor) -> Tensor:
        """The prior's own."""
        return log_p[torch.arange(len(site)), site, : self.layout.kinds]

    def total(self, atoms: Tensor) -> Tensor:
        """The number of edges."""
        return torch.full((len(atoms),), self.edges, dtype=torch.float64)


class Degrees(LinearOperator):
    """y_i = sum_j A_ij of the first nodes.

    Args:
        count: how many nodes there are.
        most: N.
        features: F.
    """

    def __init__(self, count: int, most: int, features: int) -> None:
        self.count, self.features = count, features
        self.event_shape = (most, features + most)

    def forward(self, x: Float[Tensor, "batch N C"]) -> Float[Tensor, "batch count"]:
        upper = torch.triu(x[..., self.features :], 1)
        return (upper.sum(-1) + upper.sum(-2))[..., : self.count]

    def adjoint(self, y: Float[Tensor, "batch count"]) -> Float[Tensor, "batch N C"]:
        assert self.event_shape is not None
        most = self.event_shape[0]
        nodes = torch.nn.functional.pad(y, (0, most - self.count))
        edges = torch.triu(nodes[..., :, None] + nodes[..., None, :], 1)
        return torch.cat([edges.new_zeros((*edges.shape[:-1], self.features)), edges], dim=-1)

    def data(self, degrees: Int[Tensor, "count"]) -> Float[Tensor, "count"]:
        """y of a degree sequence.

        Raises:
            InputError: for one that no graph has.
        """
        assert self.event_shape is not None
        if not 2 <= len(degrees) <= self.event_shape[0]:
            raise InputError(
                f"{len(degrees)} degrees were given; this prior knows graphs of 2 to "
                f"{self.event_shape[0]} nodes"
            )
        if not bool(graphical(degrees)):
            raise InputError(
                f"no simple graph has the degrees {degrees.tolist()} (Erdos and Gallai): their sum must be "
                "even and none larger than the others allow"
            )
        return degrees.float()

    def proposal(self, prior: MaskedGraphPrior, measurement: Measurement) -> DegreeProposal:
        """Node by node, every degree met."""
        return DegreeProposal(prior.layout, measurement.y.cpu().long())


def graphical(degrees: Int[Tensor, "*batch n"]) -> Bool[Tensor, "*batch"]:
    """Whether a simple graph has these degrees (Erdos and Gallai 1960)."""
    ordered = degrees.sort(dim=-1, descending=True).values
    number = torch.arange(1, degrees.shape[-1] + 1)
    reach = torch.minimum(ordered[..., None, :], number[:, None]) * (number > number[:, None])
    enough = ordered.cumsum(-1) <= number * (number - 1) + reach.sum(-1)
    return enough.all(-1) & (ordered >= 0).all(-1) & (ordered.sum(-1) % 2 == 0)


class DegreeProposal:
    """q of a degree sequence: every draw has it.

    Nodes in the order of decreasing degree, all pairs of one before those of the next. The odds of every
    undecided pair are multiplied by exp(theta_i + theta_j), theta such that expected degrees are what is
    left of them; within the row of a node the next pair is drawn given how many edges the row still needs
    (independent Bernoullis given their sum). A token is excluded after which no graph could have the rest:
    were the row's other edges given to the neighbours that need most, Erdos and Gallai's conditions say so
    (Kim et al., J. Phys. A 42:392001, 2009). What the tilts have not foreseen is in p / q, which is weighed
    at the end alone, since rows that are done would be compared with their price unpaid.
    """

    learned = True

    def __init__(self, layout: Layout, degrees: Int[Tensor, "n"]) -> None:
        self.layout, self.degrees = layout, degrees
        self.rank = torch.full((layout.most,), FAR)
        self.rank[degrees.argsort(descending=True, stable=True)] = torch.arange(len(degrees))
        first, second = self.rank[layout.pairs].sort(dim=0).values
        self.place = torch.cat([torch.full((layout.most,), -1), first * layout.most + second])

    def sites(self, tokens: Int[Tensor, "batch sites"]) -> Bool[Tensor, "batch sites"]:
        """Nodes, then the first pair of the order."""
        place = torch.where(tokens == MASK, self.place, FAR * self.layout.most * 2)
        return place == place.min(dim=1, keepdim=True).values

    def law(
        self,
        tokens: Int[Tensor, "batch sites"],
        site: Int[Tensor, "batch"],
        log_p: Float[Tensor, "batch sites vocabulary"],
    ) -> Float[Tensor, "batch vocabulary"]:
        out = log_p[torch.arange(len(site)), site].clone()
        pair = site >= self.layout.most
        if bool(pair.any()):
            out[pair] = -torch.inf
            out[pair, :2] = self.pair(tokens[pair], site[pair], log_p[pair])
        return out

    def pair(
        self,
        tokens: Int[Tensor, "batch sites"],
        site: Int[Tensor, "batch"],
        log_p: Float[Tensor, "batch sites vocabulary"],
    ) -> Float[Tensor, "batch two"]:
        """Log of the law of an edge at a pair."""
        n, most, rows = len(self.degrees), self.layout.most, torch.arange(len(site))
        ends = self.layout.pairs[:, site - most]
        swapped = self.rank[ends[0]] > self.rank[ends[1]]
        i, j = torch.where(swapped, ends[1], ends[0]), torch.where(swapped, ends[0], ends[1])
        matrix = self.layout.split(tokens)[1][:, :n, :n]
        undecided = matrix == MASK
        left = self.degrees - (matrix == 1).sum(2)
        odds = torch.where(undecided, self.matrix(log_p[:, most:, 1] - log_p[:, most:, 0]), 0.0)
        odds = odds + self.tilts(odds, undecided, left)
        row = torch.where(undecided[rows, i] & (left > 0), odds[rows, i], -torch.inf)
        own, needed = row[rows, j], left[rows, i]
        others = row.clone()
        others[rows, j] = -torch.inf
        sums = symmetric_sums(others)
        without = sums[rows, needed]
        with_edge = torch.where(needed > 0, sums[rows, (needed - 1).clamp_min(0)] + own, -torch.inf)
        law = torch.stack([without, with_edge], dim=1)
        possible = torch.stack([self.possible(undecided, left, i, j, edge) for edge in (0, 1)], dim=1)
        # Odds that underflow leave what is possible.
        usable = torch.where(possible, law.clamp_min(-1e6), -torch.inf)
        return usable.log_softmax(1)

    def matrix(self, values: Float[Tensor, "batch pairs"]) -> Float[Tensor, "batch n n"]:
        """Values of pairs as a symmetric matrix of the nodes that are there, its diagonal 0."""
        n, (rows, columns) = len(self.degrees), self.layout.pairs
        out = values.new_zeros(len(values), self.layout.most, self.layout.most)
        out[:, rows, columns] = out[:, columns, rows] = values
        return out[:, :n, :n]

    @staticmethod
    def tilts(
        odds: Float[Tensor, "batch n n"], undecided: Bool[Tensor, "batch n n"], left: Int[Tensor, "batch n"]
    ) -> Float[Tensor, "batch n n"]:
        """theta_i + theta_j."""
        theta = torch.zeros_like(odds[:, 0])
        for _ in range(SWEEPS):
            chance = torch.sigmoid(odds + theta[:, :, None] + theta[:, None]) * undecided
            slope = (chance * (1 - chance)).sum(2) + 0.3
            theta = theta + 0.7 * ((left - chance.sum(2)) / slope).clamp(-1, 1)
            theta = theta.clamp(-REACH, REACH)
        return theta[:, :, None] + theta[:, None]

    def possible(
        self,
        undecided: Bool[Tensor, "batch n n"],
        left: Int[Tensor, "batch n"],
        i: Int[Tensor, "batch"],
        j: Int[Tensor, "batch"],
        edge: int,
    ) -> Bool[Tensor, "batch"]:
        """Whether a graph can have the degrees after this token of the pair i, j."""
        rows = torch.arange(len(i))
        rest = left.clone()
        rest[rows, i] -= edge
        rest[rows, j] -= edge
        needed = rest[rows, i]
        free = undecided[rows, i].clone()
        free[rows, j] = False
        order = torch.where(free, rest, -1).argsort(dim=1, descending=True)
        position = torch.empty_like(order)
        position.scatter_(1, order, torch.arange(rest.shape[1]).expand_as(order))
        given = (position < needed[:, None]) & free
        after = rest - given.long()
        after[rows, i] = 0
        return (given.sum(1) == needed) & graphical(after)


def symmetric_sums(logs: Float[Tensor, "batch n"]) -> Float[Tensor, "batch m"]:
    """log e_k of exp(logs) for k = 0 .. n: elementary symmetric polynomials."""
    out = logs.new_full((len(logs), logs.shape[1] + 1), -torch.inf)
    out[:, 0] = 0
    for column in logs.T:
        more = torch.cat([torch.full_like(out[:, :1], -torch.inf), out[:, :-1] + column[:, None]], dim=1)
        out = torch.logaddexp(out, more)
    return out
