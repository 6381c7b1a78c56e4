"""The state of a graph prior: node columns and the upper triangle of the edges, packed in one tensor.

    x = [X | triu(A, 1)],   event [N, F + N],   X one-hot tokens of n <= N nodes, A edge values

Every free coordinate appears once: d = n F + n (n - 1) / 2. Padding, diagonal and lower triangle are
exactly 0, and a row of zeros among the first F columns is a node that is not there.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invdiff_molecule.chemistry import Graph


def pack(
    nodes: Float[Tensor, "*batch N F"], edges: Float[Tensor, "*batch N N"]
) -> Float[Tensor, "*batch N C"]:
    """[X | triu(A, 1)]."""
    return torch.cat([nodes, torch.triu(edges, 1)], dim=-1)


def unpack(
    x: Float[Tensor, "*batch N C"], features: int
) -> tuple[Float[Tensor, "*batch N F"], Float[Tensor, "*batch N N"]]:
    """(X, U + U^T), U the strict upper triangle."""
    upper = torch.triu(x[..., features:], 1)
    return x[..., :features], upper + upper.mT


def nodes_of(x: Float[Tensor, "*batch N C"], features: int) -> Bool[Tensor, "*batch N"]:
    """Which nodes are there."""
    return (x[..., :features] != 0).any(-1)


def support(sizes: Int[Tensor, "batch"], most: int, features: int) -> Float[Tensor, "batch N C"]:
    """1 on every free coordinate of graphs with the first `sizes` of `most` nodes."""
    there = (torch.arange(most) < sizes[:, None]).float()
    nodes = there[:, :, None].expand(-1, -1, features)
    return pack(nodes, there[:, :, None] * there[:, None, :])


def permute(
    x: Float[Tensor, "batch N C"], order: Int[Tensor, "N"], features: int
) -> Float[Tensor, "batch N C"]:
    """The same graphs with their nodes renumbered."""
    nodes, edges = unpack(x, features)
    return pack(nodes[:, order], edges[:, order][:, :, order])


def of_graph(graph: Graph, most: int, features: int) -> Float[Tensor, "N C"]:
    """A molecule as a state, its atoms first."""
    nodes, edges = torch.zeros(most, features), torch.zeros(most, most)
    nodes[torch.arange(graph.size), torch.from_numpy(graph.atoms)] = 1
    edges[: graph.size, : graph.size] = torch.from_numpy(graph.bonds).float()
    return pack(nodes, edges)


def graphs_of(x: Float[Tensor, "batch N C"], features: int) -> list[Graph]:
    """The nearest graphs: the largest node column, the edge rounded to 0..3."""
    nodes, edges = unpack(x.detach().cpu(), features)
    atoms, bonds = nodes.argmax(-1).numpy(), edges.round().clamp(0, 3).long().numpy()
    there = nodes_of(x, features).cpu().numpy()
    return [
        Graph(row[mask], block[np.ix_(mask, mask)])
        for row, block, mask in zip(atoms, bonds, there, strict=True)
    ]
