"""Priors of the score-based graph system GDSS (Jo et al., arXiv 2202.02514), from their own checkpoints.

Two networks, one for nodes and one for edges, know no noise level; each part has its own law of noise,

    exploding   sigma(t) = low (high / low)^t                      D = x + sigma^2 net(x)
    preserving  sigma(t)^2 = exp(t^2 (high - low) / 2 + t low) - 1 D = x - sigma net(x / (1 + sigma^2)^.5)

in x = x0 + sigma n, t in [0, 1]. They are not one gradient field: the Jacobian of D is far from symmetric
(its relative asymmetry on QM9 is .2 at sigma = .1 and 1 at sigma = 1), so methods that take it for a
covariance are off, and so are their weights.
"""

from __future__ import annotations

import collections
import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invdiff import InputError, Sigma, card_from
from invdiff_molecule.levels import LAST, GraphDiffusionPrior, Moments
from invdiff_molecule.state import pack, unpack

ATOMS = {"QM9": ("C", "N", "O", "F"), "ZINC250k": ("C", "N", "O", "F", "P", "S", "Cl", "Br", "I")}
SETS = Path(__file__).resolve().parent / "weights" / "graph_sets.json"


def dense_gcn(weight: Float[Tensor, "a b"], bias: Float[Tensor, "b"]) -> nn.Module:
    """PyG's dense graph convolution with weights stored as [in, out]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        from torch_geometric.nn import DenseGCNConv
    made: nn.Module = DenseGCNConv(*weight.shape)
    made.load_state_dict({"lin.weight": weight.mT.contiguous(), "bias": bias})
    return made


def mlp(weights: Mapping[str, Tensor], prefix: str) -> nn.Sequential:
    """Linear layers with ELU between, as many as there are."""
    layers: list[nn.Module] = []
    while (key := f"{prefix}.linears.{len(layers) // 2}.weight") in weights:
        weight = weights[key]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": weights[key.replace("weight", "bias")]})
        layers += [layer, nn.ELU()]
    return nn.Sequential(*layers[:-1])


def below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


class Attention(nn.Module):
    """Graph multi-head attention over the channels of an adjacency (GMH).

    S_c = mean over heads of tanh(Q_h K_h^T / sqrt(o)), symmetrised, with Q, K, V graph convolutions on
    channel c; nodes from all V, edges from all S and the channels themselves.
    """

    def __init__(self, weights: Mapping[str, Tensor], heads: int) -> None:
        super().__init__()
        self.heads = heads
        channels = sorted({int(key.split(".")[1]) for key in weights if key.startswith("attn.")})

        def convolutions(which: str) -> nn.ModuleList:
            names = [f"attn.{c}.gnn_{which}" for c in channels]
            return nn.ModuleList(dense_gcn(weights[f"{n}.weight"], weights[f"{n}.bias"]) for n in names)

        self.q, self.k, self.v = (convolutions(which) for which in "qkv")
        self.edges, self.nodes = mlp(weights, "mlp"), mlp(weights, "multi_channel")

    def forward(
        self,
        h: Float[Tensor, "batch N a"],
        c: Float[Tensor, "batch channels N N"],
        there: Float[Tensor, "batch N"],
    ) -> tuple[Float[Tensor, "batch N o"], Float[Tensor, "batch out N N"]]:
        values, scores = [], []
        for number, (q, k, v) in enumerate(zip(self.q, self.k, self.v, strict=True)):
            channel = c[:, number]
            queries, keys, value = q(h, channel), k(h, channel), v(h, channel)
            batch, count, width = queries.shape
            split = (batch, count, self.heads, width // self.heads)
            products = torch.einsum("bihd,bjhd->bhij", queries.reshape(split), keys.reshape(split))
            score = torch.tanh(products / value.shape[-1] ** 0.5).mean(1)
            scores.append((score + score.mT) / 2)
            values.append(value)
        pair = there[:, None, :, None] * there[:, None, None, :]
        edges = self.edges(torch.cat([torch.stack(scores, -1), c.permute(0, 2, 3, 1)], dim=-1))
        edges = edges.permute(0, 3, 1, 2)
        nodes = self.nodes(torch.cat(values, dim=-1)) * there[..., None]
        return torch.tanh(nodes), (edges + edges.mT) * pair


def stacked_powers(a: Float[Tensor, "batch N N"], count: int) -> Float[Tensor, "batch count N N"]:
    """A, A^2, ..."""
    out = [a]
    while len(out) < count:
        out.append(out[-1] @ a)
    return torch.stack(out, dim=1)


class NodeNetwork(nn.Module):
    """The network of the nodes: graph convolutions, or attention where the checkpoint has it."""

    def __init__(self, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.attends = str(settings["model_type"]).endswith("GMH")
        self.channels = int(settings.get("c_init", 1))
        layers: list[nn.Module] = []
        for number in range(int(settings["depth"])):
            own = below(weights, f"layers.{number}.")
            if self.attends:
                layers.append(Attention(own, int(settings["num_heads"])))
            else:
                layers.append(dense_gcn(own["weight"], own["bias"]))
        self.layers, self.out = nn.ModuleList(layers), mlp(weights, "final")

    def forward(
        self,
        x: Float[Tensor, "batch N F"],
        a: Float[Tensor, "batch N N"],
        there: Float[Tensor, "batch N"],
    ) -> Float[Tensor, "batch N F"]:
        h, seen = x, [x]
        c = stacked_powers(a, self.channels)
        for layer in self.layers:
            if self.attends:
                h, c = layer(h, c, there)
                h = torch.tanh(h)
            else:
                h = torch.tanh(layer(h, a))
            seen.append(h)
        out: Tensor = self.out(torch.cat(seen, dim=-1)) * there[..., None]
        return out


class EdgeNetwork(nn.Module):
    """The network of the edges: attention layers, then every channel of every layer."""

    def __init__(self, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.channels = int(settings["c_init"])
        count, heads = int(settings["num_layers"]), int(settings["num_heads"])
        self.layers = nn.ModuleList(Attention(below(weights, f"layers.{k}."), heads) for k in range(count))
        self.out = mlp(weights, "final")

    def forward(
        self,
        x: Float[Tensor, "batch N F"],
        a: Float[Tensor, "batch N N"],
        there: Float[Tensor, "batch N"],
    ) -> Float[Tensor, "batch N N"]:
        h, c = x, stacked_powers(a, self.channels)
        seen = [c]
        for layer in self.layers:
            h, c = layer(h, c, there)
            seen.append(c)
        out: Tensor = self.out(torch.cat(seen, dim=1).permute(0, 2, 3, 1))[..., 0]
        off = 1 - torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        return out * off * there[:, :, None] * there[:, None]


@dataclass(frozen=True)
class Part:
    """The law of the noise of one part.

    Attributes:
        preserving: variance preserving, else exploding.
        low, high: beta_0 and beta_1, or sigma_min and sigma_max.
    """

    preserving: bool
    low: float
    high: float

    def sigma(self, t: float) -> float:
        """Noise level at t in [0, 1]."""
        if not self.preserving:
            return self.low * (self.high / self.low) ** t
        return float(torch.tensor(t * t * (self.high - self.low) / 2 + t * self.low).double().expm1().sqrt())

    def input(self, x: Tensor, sigma: Tensor) -> Tensor:
        """What the networks are given."""
        return x / (1 + sigma**2).sqrt() if self.preserving else x

    def denoised(self, x: Tensor, net: Tensor, sigma: Tensor) -> Tensor:
        """D."""
        return x - sigma * net if self.preserving else x + sigma**2 * net


@dataclass(frozen=True)
class GdssPrior(GraphDiffusionPrior):
    """Both networks as one denoiser; the card's `sigma_range` is that of the edges.

    Attributes:
        nodes, edges: the networks.
        node_part, edge_part: laws of their noise.
    """

    nodes: NodeNetwork
    edges: EdgeNetwork
    node_part: Part
    edge_part: Part

    def level(self, t: float) -> Float[Tensor, "1 1 C"]:
        x = torch.full((self.features,), self.node_part.sigma(t))
        return torch.cat([x, torch.full((self.most,), self.edge_part.sigma(t))])[None, None]

    def parts(self, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """Levels of nodes and edges.

        Raises:
            InputError: for a pair that the networks were not trained at.
        """
        level = torch.as_tensor(sigma)
        if level.ndim >= 2 and level.shape[-1] == self.features + self.most:
            return level[..., :1], level[..., -1:]
        self.require_one_level()
        if level.ndim == 1:
            level = level[:, None, None]
        return level, level

    def denoise(self, x: Float[Tensor, "batch N C"], sigma: Sigma) -> Float[Tensor, "batch N C"]:
        """Both D on the support: rows that are not zero, or the first `size`."""
        node_level, edge_level = (one.to(x) for one in self.parts(sigma))
        nodes, edges = unpack(x, self.features)
        there = self.there(x)
        mask = there.to(x)
        nodes, edges = nodes * mask[..., None], edges * mask[:, :, None] * mask[:, None]
        a, b = self.node_part.input(nodes, node_level), self.edge_part.input(edges, edge_level)
        return pack(
            self.node_part.denoised(nodes, self.nodes(a, b, mask), node_level),
            self.edge_part.denoised(edges, self.edges(a, b, mask), edge_level),
        )

    def unit_noise(self) -> Float[Tensor, "1 1 C"]:
        """Variance in our units of N(0, 1) in those of the networks, at t = 1."""
        parts = [(self.node_part, self.features), (self.edge_part, self.most)]
        values = [torch.full((n,), 1 + p.sigma(1.0) ** 2 if p.preserving else 1.0) for p, n in parts]
        return torch.cat(values)[None, None]


def read_mapping(path: Path) -> dict[str, Any]:
    """What a published file holds, without running code in it.

    Raises:
        InputError: for a missing or damaged file, or one that holds code.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        with torch.serialization.safe_globals([(collections.OrderedDict, "easydict.EasyDict")]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(f"{path.name} holds code and is not loaded") from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path.name} cannot be read as weights ({reason}); it is damaged") from None
    return loaded if isinstance(loaded, dict) else {}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a GDSS checkpoint holds.

    Raises:
        InputError: see `read_mapping`, and for what is no such checkpoint.
    """
    loaded = read_mapping(path)
    wanted = ("model_config", "params_x", "params_adj", "x_state_dict", "adj_state_dict")
    if not all(key in loaded for key in wanted):
        what = "a property network" if "params" in loaded else "something else"
        raise InputError(f"{path.name} is no GDSS checkpoint ({what}); it must hold {', '.join(wanted)}")
    return loaded


def averaged(weights: Mapping[str, Tensor], shadow: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Weights without the prefix of parallel training; their moving average where there is one."""
    plain = {key.removeprefix("module."): value for key, value in weights.items()}
    if shadow is None:
        return plain
    return dict(zip(plain, shadow["shadow_params"], strict=True))


def load_gdss(settings: Mapping[str, Any]) -> GdssPrior:
    """A GDSS checkpoint as it was published; settings: `path`.

    Raises:
        InputError: see `read_checkpoint`; for a network or a data set that is not known here.
    """
    path = Path(str(settings.get("path") or ""))
    loaded = read_checkpoint(path)
    data = str(loaded["model_config"]["data"]["data"])
    known = json.loads(SETS.read_text())
    if data not in known:
        raise InputError(f"{path.name} was trained on {data!r}; known are {', '.join(known)}")
    laws = []
    for name in ("x", "adj"):
        law = loaded["model_config"]["sde"][name]
        if law["type"] not in ("VE", "VP"):
            raise InputError(f"{path.name} has noise of type {law['type']!r}; expected VE or VP")
        laws.append(Part(law["type"] == "VP", float(law["beta_min"]), float(law["beta_max"])))
    try:
        nodes = NodeNetwork(averaged(loaded["x_state_dict"], loaded.get("ema_x")), loaded["params_x"])
        edges = EdgeNetwork(averaged(loaded["adj_state_dict"], loaded.get("ema_adj")), loaded["params_adj"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"{path.name} does not fit GDSS' networks: {str(error).splitlines()[0]}") from None
    for network in (nodes, edges):
        network.eval().requires_grad_(False)
    moments, edge = Moments(**known[data]), laws[1]
    last, first = edge.sigma(LAST), edge.sigma(1.0)
    card = card_from(
        settings,
        name=path.stem,
        std=moments.edge_variance**0.5,
        mean=moments.edge_mean,
        sigma_range=(max(last, 0.01), first),
        data=f"{data}, as published by its authors",
        licence="see where the file comes from",
        limits="two networks that are not one gradient field; covariances by its Jacobian are approximate",
    )
    names = ATOMS.get(data, ())
    return GdssPrior(card, moments, names, True, None, nodes, edges, laws[0], edge)
