"""The published property networks beside the ZINC checkpoint of GDSS (MOOD, arXiv 2206.07632), as properties.

    H_0 = X,   H_l = mask . tanh( GCN( W_l H_(l-1), A ) ),  l = 1..3
    g = tanh( sum_i sigmoid(U [H_0 .. H_3]_i) . tanh(V [H_0 .. H_3]_i) ),   score = sigmoid( MLP(g) )

Trained on a product of a docking score, QED and SA: a docking *proxy*, for demonstrations. The sum runs over
padded rows too, so N is the 38 of the files. Elements without charges, bond orders 0 to 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rdkit import Chem
from torch import Tensor, nn

from invdiff import InputError
from invdiff_molecule.gdss import ATOMS, dense_gcn, read_mapping
from invdiff_molecule.properties import Property

WIDTH = 0.02  # about the std over drug-like molecules


class PropertyNetwork(nn.Module):
    """The network of a file.

    Args:
        weights: its `state_dict`.
        nodes: N.
    """

    def __init__(self, weights: Mapping[str, Tensor], nodes: int) -> None:
        super().__init__()
        self.most = nodes

        def linear(name: str) -> nn.Linear:
            weight = weights[f"{name}.weight"]
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({"weight": weight, "bias": weights[f"{name}.bias"]})
            return layer

        count = sum(key.startswith("convs.") and key.endswith("weight") for key in weights)
        self.linears = nn.ModuleList(linear(f"linears.{k}") for k in range(count))
        self.convolutions = nn.ModuleList(
            dense_gcn(weights[f"convs.{k}.weight"], weights[f"convs.{k}.bias"]) for k in range(count)
        )
        self.gate, self.content = linear("sigmoid_linear.0"), linear("tanh_linear.0")
        self.last = nn.Sequential(linear("final_linear.0"), nn.ReLU(), linear("final_linear.3"))

    def forward(
        self, nodes: Float[Tensor, "batch N F"], edges: Float[Tensor, "batch N N"]
    ) -> Float[Tensor, "batch"]:
        """Scores between 0 and 1."""
        there = (nodes.abs().sum(2, keepdim=True) > 0).to(nodes)
        parts, h = [nodes], nodes
        for linear, convolution in zip(self.linears, self.convolutions, strict=True):
            h = torch.tanh(convolution(linear(h), edges)) * there
            parts.append(h)
        every = torch.cat(parts, dim=2)
        pooled = torch.tanh((torch.sigmoid(self.gate(every)) * torch.tanh(self.content(every))).sum(1))
        found: Tensor = torch.sigmoid(self.last(pooled))[:, 0]
        return found


def load_network(path: Path) -> tuple[PropertyNetwork, str]:
    """The network of a file, and what it was trained on.

    Raises:
        InputError: for a file that is missing, damaged, holds code, or is no such network.
    """
    loaded = read_mapping(path)
    config: dict[str, Any] = dict(loaded.get("model_config") or {})
    kind = dict(config.get("model") or {}).get("model")
    if "state_dict" not in loaded or kind != "Regressor":
        raise InputError(
            f"{path.name} is no property network; give one of the prop_*.pth beside the checkpoint"
        )
    try:
        network = PropertyNetwork(loaded["state_dict"], int(loaded["params"]["max_node_num"]))
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path.name} does not fit the property network: {str(error).splitlines()[0]}"
        ) from None
    return network.eval().requires_grad_(False), str(config["train"]["prop"])


def network_property(path: Path) -> Property:
    """The network as a property of molecules; 0 for those that it does not know.

    Raises:
        InputError: see `load_network`.
    """
    network, trained = load_network(path)
    atoms = ATOMS["ZINC250k"]

    def value(molecule: Chem.Mol) -> float:
        plain = Chem.Mol(molecule)
        Chem.Kekulize(plain, clearAromaticFlags=True)
        symbols = [atom.GetSymbol() for atom in plain.GetAtoms()]
        if len(symbols) > network.most or any(symbol not in atoms for symbol in symbols):
            return 0.0
        nodes, edges = torch.zeros(1, network.most, len(atoms)), torch.zeros(1, network.most, network.most)
        nodes[0, torch.arange(len(symbols)), [atoms.index(symbol) for symbol in symbols]] = 1
        for bond in plain.GetBonds():
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            edges[0, i, j] = edges[0, j, i] = bond.GetBondTypeAsDouble()
        return float(network(nodes, edges)[0])

    return Property(value, WIDTH, f"{trained} by the network of {path.name}: a proxy")
