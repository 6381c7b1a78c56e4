"""A denoiser of packed graphs, trained by us: one noise level for nodes and edges, EDM preconditioning.

    D(x; s) = m + c_skip (x - m) + c_out F(c_in (x - m), log s),     s_d = .5,  m = .25 on the support
    c_skip = s_d^2 / (s^2 + s_d^2),  c_out = s s_d / (s^2 + s_d^2)^.5,  c_in = 1 / (s^2 + s_d^2)^.5

F is the graph transformer of the masked prior, conditioned on log s and on the number of nodes (Karras et
al., arXiv 2206.00364). The loss weighs nodes and edges as parts, each by its number of free entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invdiff import InputError, Sigma, TrainSettings, card_from, read_prior, save_prior
from invdiff_molecule.layout import Layout
from invdiff_molecule.levels import GraphDiffusionPrior, Moments
from invdiff_molecule.network import GraphTransformer, powers
from invdiff_molecule.state import nodes_of, pack, support, unpack

SPREAD, CENTRE = 0.5, 0.25
LOW, HIGH, RHO = 0.02, 10.0, 7.0
FREQUENCIES = 8


class GraphDenoiser(nn.Module):
    """The network with its preconditioning.

    Args:
        tokens: written atom tokens, in order.
        nodes: N.
        width, edge_width, heads, layers: see `GraphTransformer`.
    """

    sizes: Tensor
    moments: Tensor

    def __init__(self, tokens: Sequence[str], nodes: int, **transformer: int) -> None:
        super().__init__()
        self.names, self.most = tuple(str(token) for token in tokens), nodes
        kinds = len(self.names)
        self.transformer = GraphTransformer(kinds + 3, 4, 2 * FREQUENCIES + 1, kinds, 1, nodes, **transformer)
        self.register_buffer("sizes", torch.ones(nodes + 1) / (nodes + 1))
        self.register_buffer("moments", torch.zeros(kinds + 2))

    def forward(
        self, x: Float[Tensor, "batch N C"], sigma: Float[Tensor, "batch"], there: Tensor
    ) -> Float[Tensor, "batch N C"]:
        """D; entries off the support are 0."""
        kinds = len(self.names)
        mask = there.to(x)
        pair = mask[:, :, None] * mask[:, None]
        nodes, edges = unpack(x, kinds)
        nodes, edges = (nodes - CENTRE) * mask[..., None], (edges - CENTRE) * pair
        edges = edges - torch.diag_embed(edges.diagonal(dim1=1, dim2=2))
        s = sigma[:, None, None]
        total = s**2 + SPREAD**2
        skip, out, scale = SPREAD**2 / total, s * SPREAD / total.sqrt(), total.rsqrt()
        node_out, edge_out = self.raw(nodes * scale, edges * scale, skip * edges, sigma, there)
        denoised_nodes = (CENTRE + skip * nodes + out * node_out) * mask[..., None]
        denoised_edges = (CENTRE + skip * edges + out * edge_out) * pair
        return pack(denoised_nodes, denoised_edges)

    def raw(
        self, nodes: Tensor, edges: Tensor, shrunk: Tensor, sigma: Float[Tensor, "batch"], there: Tensor
    ) -> tuple[Tensor, Tensor]:
        """F of scaled nodes and edges; `shrunk` are the edges as a Gaussian prior would have them."""
        count = there.sum(1).to(nodes)
        size = (count / self.most)[:, None]
        angles = sigma.log()[:, None] * (2.0 ** torch.arange(FREQUENCIES).to(nodes) / 4)
        features = torch.cat([angles.sin(), angles.cos(), size], dim=1)
        walks = powers(shrunk)
        cycles = torch.tanh((shrunk @ shrunk @ shrunk).diagonal(dim1=1, dim2=2) / 8)
        given = [nodes, shrunk.sum(2, keepdim=True) / 4, cycles[..., None]]
        given.append(size[:, None].expand(-1, nodes.shape[1], 1))
        same = torch.eye(self.most).to(nodes).expand(len(nodes), -1, -1)[..., None]
        found = self.transformer(
            torch.cat(given, -1), torch.cat([edges[..., None], walks, same], -1), features, there
        )
        return found[0], found[1][..., 0]


@dataclass(frozen=True)
class GraphEdmPrior(GraphDiffusionPrior):
    """The network as a prior of packed states.

    Attributes:
        network: gives D.
    """

    network: GraphDenoiser

    def level(self, t: float) -> Float[Tensor, "1 1 C"]:
        """Karras' levels: LOW at t = 0, HIGH at t = 1."""
        low, high = LOW ** (1 / RHO), HIGH ** (1 / RHO)
        return torch.full((1, 1, self.features + self.most), (low + t * (high - low)) ** RHO)

    def denoise(self, x: Float[Tensor, "batch N C"], sigma: Sigma) -> Float[Tensor, "batch N C"]:
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if level.ndim > 1:
            level = level[..., 0, 0]
        found: Tensor = self.network(x, level.expand(len(x)), self.there(x))
        return found


class GraphDenoising:
    """The loss, its validation, and the file that training ends with."""

    def __init__(
        self,
        network: GraphDenoiser,
        layout: Layout,
        tokens: Mapping[str, Int[Tensor, "rows sites"]],
        sizes: Float[Tensor, "sizes"],
        settings: TrainSettings,
    ) -> None:
        self.network, self.layout, self.tokens, self.settings = network, layout, tokens, settings
        network.sizes.copy_(sizes)
        states = layout.state(tokens["train"][:20000].long())
        there = nodes_of(states, layout.kinds)
        nodes, edges = unpack(states, layout.kinds)
        inside = torch.triu(there[:, :, None] & there[:, None], 1)
        kinds, orders = nodes[there].mean(0), edges[inside]
        network.moments.copy_(torch.cat([kinds, orders.mean()[None], orders.var()[None]]))

    def of(self, tokens: Int[Tensor, "batch sites"], generator: torch.Generator) -> Float[Tensor, "batch"]:
        """Squared error at a level of its own for every graph, nodes and edges weighed as parts."""
        clean = self.layout.state(tokens)
        kinds = self.layout.kinds
        there = nodes_of(clean, kinds)
        count = there.sum(1)
        sigma = (0.9 * torch.randn(len(clean), generator=generator) - 0.9).exp().clamp(LOW, HIGH)
        free = support(count, self.layout.most, kinds)
        noise = torch.randn(clean.shape, generator=generator) * free
        half = self.settings.precision == "bfloat16"
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=half):
            denoised = self.network(clean + sigma[:, None, None] * noise, sigma, there)
        gap = (denoised.float() - clean).square()
        weight = (sigma**2 + SPREAD**2) / (sigma * SPREAD) ** 2
        pairs = (count * (count - 1) / 2).clamp_min(1)
        return weight * (
            2 / kinds * gap[..., :kinds].sum((1, 2)) / count + gap[..., kinds:].sum((1, 2)) / pairs
        )

    def loss(self, stage: Any, generator: torch.Generator) -> Float[Tensor, "batch"]:
        rows = self.tokens["train"]
        chosen = torch.randint(len(rows), (stage.batch,), generator=generator)
        return self.of(rows[chosen].long(), generator)

    @torch.no_grad()
    def validate(self) -> float:
        rows = self.tokens["validation"][:2048].long()
        generator = torch.Generator().manual_seed(1)
        return float(torch.cat([self.of(part, generator) for part in rows.split(256)]).double().mean())

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        moments = self.network.moments
        card = card_from(
            config,
            name=str(config["name"]),
            mean=round(float(moments[-2]), 5),
            std=round(float(moments[-1].sqrt()), 5),
            sigma_range=(LOW, HIGH),
        )
        save_prior(path, self.network, network_settings=config["network"], sigma_data=None, card=card)


def load_edm(settings: Mapping[str, Any]) -> GraphEdmPrior:
    """A denoiser of graphs from the file that training writes; settings: `path`.

    Raises:
        InputError: for a file that holds another network.
    """
    network, _, card = read_prior(settings)
    if not isinstance(network, GraphDenoiser):
        raise InputError(f"{Path(str(settings['path'])).name} holds no denoiser of graphs")
    values = [round(float(value), 6) for value in network.moments]
    shares = {str(size): float(share) for size, share in enumerate(network.sizes) if share > 0}
    moments = Moments(network.most, tuple(values[:-2]), values[-2], values[-1], shares)
    return GraphEdmPrior(card, moments, network.names, False, None, network)
