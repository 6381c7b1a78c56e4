"""A small dense graph transformer with a node and an edge stream, equivariant by construction.

    h: nodes [batch, N, width]        e: edges [batch, N, N, edge_width], symmetric

Each layer: attention over the nodes that are there, its logits shifted and scaled by the edge; sums of edge
messages; an MLP; then the edge is updated from itself, both of its nodes, and the attention between them.
A vector for the whole graph shifts and scales every normalisation (FiLM). No positional code.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


def symmetric(e: Float[Tensor, "batch N N c"]) -> Float[Tensor, "batch N N c"]:
    """The mean of both orders of every pair."""
    return (e + e.transpose(1, 2)) / 2


class Layer(nn.Module):
    """One round of attention, messages and edge update."""

    def __init__(self, width: int, edge_width: int, graph_width: int, heads: int, most: int) -> None:
        super().__init__()
        self.heads, self.most = heads, most
        self.node_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.edge_norm = nn.LayerNorm(edge_width)
        self.film = nn.Linear(graph_width, 4 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.bias = nn.Linear(edge_width, 2 * heads)
        self.out = nn.Linear(width, width)
        self.message_node, self.message_edge = nn.Linear(width, width), nn.Linear(edge_width, width)
        self.message_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.to_edge = nn.Linear(width, edge_width)
        joined = 2 * edge_width + 2 * heads
        self.edge_mlp = nn.Sequential(
            nn.Linear(joined, 2 * edge_width), nn.SiLU(), nn.Linear(2 * edge_width, edge_width)
        )

    def forward(
        self,
        h: Float[Tensor, "batch N width"],
        e: Float[Tensor, "batch N N edge"],
        graph: Float[Tensor, "batch g"],
        pairs: Bool[Tensor, "batch N N"],
    ) -> tuple[Float[Tensor, "batch N width"], Float[Tensor, "batch N N edge"]]:
        scale, shift, scale2, shift2 = self.film(graph)[:, None].chunk(4, dim=-1)
        normed, edges = self.node_norm(h) * (1 + scale) + shift, self.edge_norm(e)
        batch, count, width = h.shape
        q, k, v = self.qkv(normed).reshape(batch, count, 3, self.heads, -1).unbind(2)
        bias, gain = self.bias(edges).chunk(2, dim=-1)
        logits = torch.einsum("bihd,bjhd->bijh", q, k) * (width // self.heads) ** -0.5
        logits = logits * (1 + gain) + bias
        attention = logits.masked_fill(~pairs[..., None], -1e9).softmax(dim=2) * pairs[..., None]
        h = h + self.out(torch.einsum("bijh,bjhd->bihd", attention, v).reshape(batch, count, width))
        messages = nn.functional.silu(self.message_edge(edges) + self.message_node(normed)[:, None])
        total = (messages * pairs[..., None]).sum(dim=2) / self.most**0.5
        h = h + self.message_out(total)
        h = h + self.mlp(self.mlp_norm(h) * (1 + scale2) + shift2)
        ends = self.to_edge(h)
        both = torch.cat(
            [edges, ends[:, :, None] + ends[:, None], symmetric(logits), symmetric(attention)], dim=-1
        )
        return h, e + self.edge_mlp(both)


class GraphTransformer(nn.Module):
    """Node, edge and graph features to node and edge outputs.

    Args:
        node_in, edge_in, graph_in: widths of the features.
        node_out, edge_out: widths of the outputs.
        most: largest number of nodes, which scales sums over neighbours whatever the padding.
        width, edge_width, heads, layers: of the streams.
    """

    def __init__(
        self,
        node_in: int,
        edge_in: int,
        graph_in: int,
        node_out: int,
        edge_out: int,
        most: int,
        width: int = 64,
        edge_width: int = 24,
        heads: int = 4,
        layers: int = 3,
    ) -> None:
        super().__init__()
        self.nodes, self.edges = nn.Linear(node_in, width), nn.Linear(edge_in, edge_width)
        self.graph = nn.Sequential(nn.Linear(graph_in, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.layers = nn.ModuleList(Layer(width, edge_width, width, heads, most) for _ in range(layers))
        self.node_norm, self.edge_norm = nn.LayerNorm(width), nn.LayerNorm(edge_width)
        self.node_out, self.edge_out = nn.Linear(width, node_out), nn.Linear(edge_width, edge_out)

    def forward(
        self,
        nodes: Float[Tensor, "batch N a"],
        edges: Float[Tensor, "batch N N b"],
        graph: Float[Tensor, "batch c"],
        there: Bool[Tensor, "batch N"],
    ) -> tuple[Float[Tensor, "batch N out"], Float[Tensor, "batch N N edge_out"]]:
        """Outputs of absent nodes and of pairs with them mean nothing; the edge output is symmetric."""
        pairs = there[:, :, None] & there[:, None, :]
        h, e, c = self.nodes(nodes), self.edges(edges), self.graph(graph)
        for layer in self.layers:
            h, e = layer(h, e, c, pairs)
        return self.node_out(self.node_norm(h)), symmetric(self.edge_out(self.edge_norm(e)))


def powers(a: Float[Tensor, "batch N N"]) -> Float[Tensor, "batch N N 2"]:
    """tanh of walks of two and three steps, halved and quartered: cycles and neighbourhoods."""
    squared = a @ a
    return torch.stack([torch.tanh(squared / 2), torch.tanh(squared @ a / 4)], dim=-1)


STEPS = 6  # bonds that `distances` tells apart


def distances(a: Float[Tensor, "batch N N"]) -> Float[Tensor, "batch N N s"]:
    """Whether two nodes are at most 2, 3, ... STEPS bonds apart, and whether any path joins them."""
    near = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device) + (a > 0).to(a)
    reached, out = near, []
    for _ in range(STEPS - 1):
        reached = (reached @ near).clamp_max(1)
        out.append(reached)
    length = STEPS
    while length < a.shape[-1] - 1:
        reached = (reached @ reached).clamp_max(1)
        length *= 2
    return torch.stack([*out, reached], dim=-1)
