"""Properties of graphs by a network: differentiable, so that samplers of noise levels can be guided by them.

A GINE (Hu et al., arXiv 1905.12265) on packed states. With E_k the embedding of bond order k,

    h_i <- h_i + MLP( (1 + eps) h_i + sum_j sum_{k=1..3} b_k(A_ij) relu(h_j + E_k) )
    b_k(a) = max(0, 1 - |a - k|)

At bond orders 0 to 3 that is GINE's sum over the bonds of i; between them it is their linear interpolation,
so that the derivative by A says which bond to make. Sum and mean over the nodes give the properties. Trained
on graphs, on noisy ones and on ones that are shrunk toward their mean, as denoisers return them.

    y = f(x0) + e,  e ~ N(0, s^2 + r^2)       s: width of the target, r: validation error of the network

Whether a decoded molecule has the property is asked of RDKit, never of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invdiff import InputError, Operator, TrainSettings, card_from, read_prior, save_prior
from invdiff_molecule.chemistry import Vocabulary, decode
from invdiff_molecule.layout import Layout
from invdiff_molecule.objective import Term
from invdiff_molecule.properties import PROPERTIES, known_properties
from invdiff_molecule.state import graphs_of, nodes_of, support, unpack

ORDERS = 3
NOISE, SHRINK = 0.35, 0.6  # largest level, largest share of the mean, in training
CHUNK = 2048


def bonds(edges: Float[Tensor, "batch N N"]) -> list[Float[Tensor, "batch N N"]]:
    """b_1 .. b_3 of every pair."""
    return [(1 - (edges - order).abs()).clamp_min(0) for order in range(1, ORDERS + 1)]


class GraphRegressor(nn.Module):
    """The network.

    Args:
        tokens: written atom tokens, in order.
        nodes: N.
        properties: what it predicts, names of `properties.PROPERTIES`.
        width, layers: of the messages.
    """

    center: Tensor
    scale: Tensor
    errors: Tensor

    def __init__(
        self, tokens: Sequence[str], nodes: int, properties: Sequence[str], width: int = 96, layers: int = 4
    ) -> None:
        super().__init__()
        self.names, self.most = tuple(str(token) for token in tokens), nodes
        self.properties = known_properties(properties)
        self.enter = nn.Linear(len(self.names), width)
        self.orders = nn.Parameter(torch.empty(layers, ORDERS, width))
        nn.init.normal_(self.orders, std=0.1)
        self.eps = nn.Parameter(torch.zeros(layers))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.leave = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, len(self.properties))
        )
        for name, start in (("center", 0.0), ("scale", 1.0), ("errors", 1.0)):
            self.register_buffer(name, torch.full((len(self.properties),), start))

    def forward(self, x: Float[Tensor, "batch N C"]) -> Float[Tensor, "batch properties"]:
        """Properties in their own units."""
        nodes, edges = unpack(x, len(self.names))
        there = nodes_of(x, len(self.names))[..., None].to(x)
        weights = bonds(edges * there * there.mT)
        h = self.enter(nodes) * there
        for eps, orders, update in zip(self.eps, self.orders, self.layers, strict=True):
            messages = sum(
                weight @ torch.relu(h + order) for weight, order in zip(weights, orders, strict=True)
            )
            h = h + update((1 + eps) * h + messages) * there
        total = h.sum(1)
        pooled = torch.cat([total / 4, total / there.sum(1).clamp_min(1)], dim=1)
        found: Tensor = self.center + self.scale * self.leave(pooled)
        return found


def labels(
    tokens: Int[Tensor, "rows sites"], layout: Layout, atoms: Sequence[str], properties: Sequence[str]
) -> Float[Tensor, "rows properties"]:
    """Properties of complete graphs by RDKit."""
    vocabulary = Vocabulary.of(atoms)
    found = []
    for part in tokens.split(CHUNK):
        for graph in graphs_of(layout.state(part.long()), layout.kinds):
            molecule = decode(graph, vocabulary).molecule
            found.append([PROPERTIES[name].value(molecule) for name in properties])
    return torch.tensor(found)


class Regression:
    """The loss, its validation, and the file that training ends with.

    Args:
        network: to be trained.
        layout, tokens: graphs of every split.
        settings: of the training.
        rows: how many training graphs are used; RDKit computes their properties first.
    """

    def __init__(
        self,
        network: GraphRegressor,
        layout: Layout,
        tokens: Mapping[str, Int[Tensor, "rows sites"]],
        settings: TrainSettings,
        rows: int = 40_000,
    ) -> None:
        self.network, self.layout, self.settings = network, layout, settings
        generator = torch.Generator().manual_seed(settings.seed)
        self.tokens, self.labels = {}, {}
        for split, most in (("train", rows), ("validation", 2048)):
            chosen = torch.randperm(len(tokens[split]), generator=generator)[:most]
            self.tokens[split] = tokens[split][chosen]
            self.labels[split] = labels(self.tokens[split], layout, network.names, network.properties)
        network.center.copy_(self.labels["train"].mean(0))
        network.scale.copy_(self.labels["train"].std(0))

    def of(
        self, split: str, rows: Int[Tensor, "batch"], generator: torch.Generator
    ) -> Float[Tensor, "batch properties"]:
        """Squared error in units of the labels' std; a third of the graphs clean, noisy, and shrunk each."""
        clean = self.layout.state(self.tokens[split][rows].long())
        count = nodes_of(clean, self.layout.kinds).sum(1)
        free = support(count, self.layout.most, self.layout.kinds)
        draw = torch.rand(len(clean), 2, generator=generator)
        noise = NOISE * draw[:, 1] * (draw[:, 0] < 1 / 3)
        share = SHRINK * draw[:, 1] * (draw[:, 0] > 2 / 3)
        mean = free * clean.sum(0) / free.sum(0).clamp_min(1)
        x = clean + noise[:, None, None] * free * torch.randn(clean.shape, generator=generator)
        x = x + share[:, None, None] * (mean - x)
        gap = (self.network(x) - self.labels[split][rows]) / self.network.scale
        return gap.square()

    def loss(self, stage: Any, generator: torch.Generator) -> Float[Tensor, "batch"]:
        chosen = torch.randint(len(self.tokens["train"]), (stage.batch,), generator=generator)
        return self.of("train", chosen, generator).mean(1)

    @torch.no_grad()
    def validate(self) -> float:
        rows = torch.arange(len(self.tokens["validation"]))
        generator = torch.Generator().manual_seed(1)
        parts = [self.of("validation", part, generator) for part in rows.split(256)]
        return float(torch.cat(parts).double().mean())

    @torch.no_grad()
    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        parts = [self.network(self.layout.state(p.long())) for p in self.tokens["validation"].split(CHUNK)]
        gap = torch.cat(parts) - self.labels["validation"]
        self.network.errors.copy_(gap.square().mean(0).sqrt())
        card = card_from(config, name=str(config["name"]))
        save_prior(path, self.network, network_settings=config["network"], sigma_data=None, card=card)


def load_regressor(path: Path) -> GraphRegressor:
    """What training wrote.

    Raises:
        InputError: for a file that holds another network.
    """
    network, _, _ = read_prior({"path": path})
    if not isinstance(network, GraphRegressor):
        raise InputError(f"{path.name} holds no regressor of graphs")
    return network.eval().requires_grad_(False)


class Predicted(Operator):
    """f(x0) of some properties, each in units of its width: data of unit noise.

    Args:
        network: the regressor.
        terms: targets, of properties that it predicts.

    Raises:
        InputError: for a property that it does not predict, or a direction, which has no Gaussian noise.
    """

    def __init__(self, network: GraphRegressor, terms: Sequence[Term]) -> None:
        for term in terms:
            if term.name not in network.properties:
                known = ", ".join(network.properties)
                raise InputError(f"no network predicts {term.name!r}; it predicts {known}")
            if term.direction != "target":
                raise InputError(
                    f"a learned property takes a target and {term.name} has a direction; set operator.target"
                )
        self.network = network
        self.columns = [network.properties.index(term.name) for term in terms]
        widths = [
            (term.sigma**2 + float(network.errors[k]) ** 2) ** 0.5
            for term, k in zip(terms, self.columns, strict=True)
        ]
        self.widths = torch.tensor(widths)
        self.event_shape = (network.most, len(network.names) + network.most)

    def forward(self, x: Float[Tensor, "batch N C"]) -> Float[Tensor, "batch terms"]:
        found: Tensor = self.network(x.float())[:, self.columns] / self.widths.to(x.device)
        return found.to(x)

    def data(self, terms: Sequence[Term]) -> Float[Tensor, "terms"]:
        """The targets in these units."""
        return torch.tensor([term.target for term in terms], dtype=torch.float64) / self.widths.double()
