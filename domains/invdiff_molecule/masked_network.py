"""The network of masked graph priors: logits of every site from a partly masked graph and its properties."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invdiff import MASK
from invdiff_molecule.chemistry import Vocabulary
from invdiff_molecule.layout import ORDERS, Layout
from invdiff_molecule.network import STEPS, GraphTransformer, distances, powers
from invdiff_molecule.properties import known_properties

NODE = "X"  # the only kind of node of generic graphs


class MaskedGraphNetwork(nn.Module):
    """Logits of every site from a partly masked graph.

    Padding costs nothing: the network sees as many nodes as the largest graph of the batch has.

    Args:
        tokens: written atom tokens, in order.
        nodes: N.
        paths: whether nodes and pairs also see what the decided bonds say of valences, rings and fragments:
            the bonds that an atom has left, how far apart two nodes are, and whether a path joins them.
        properties: what the whole graph may be known to have, names of `properties.PROPERTIES`.
        width, edge_width, heads, layers: see `GraphTransformer`.
    """

    sizes: Tensor
    center: Tensor
    scale: Tensor

    def __init__(
        self,
        tokens: Sequence[str],
        nodes: int,
        paths: bool = False,
        properties: Sequence[str] = (),
        **transformer: int,
    ) -> None:
        super().__init__()
        self.names = tuple(str(token) for token in tokens)
        self.properties = known_properties(properties)
        self.layout, self.paths = Layout(nodes, len(self.names)), paths
        kinds, graph_in = self.layout.kinds, 2 + 2 * len(self.properties)
        node_in, edge_in = kinds + 4 + 2 * paths, ORDERS + 3 + STEPS * paths
        self.transformer = GraphTransformer(node_in, edge_in, graph_in, kinds, ORDERS, nodes, **transformer)
        self.register_buffer("sizes", torch.ones(nodes + 1) / (nodes + 1))
        # Of the properties in the training split; a network without any has none to save.
        for name, start in (("center", 0.0), ("scale", 1.0)):
            values = torch.full((len(self.properties),), start)
            self.register_buffer(name, values, persistent=bool(self.properties))
        valences = torch.zeros(kinds)
        if self.names != (NODE,):
            valences = torch.from_numpy(Vocabulary.of(self.names).valences).float()
        self.register_buffer("valences", valences, persistent=False)

    def forward(
        self, tokens: Int[Tensor, "batch sites"], wanted: Float[Tensor, "batch properties"] | None = None
    ) -> Float[Tensor, "batch sites vocabulary"]:
        """Logits; minus infinity for tokens that a site cannot hold.

        `wanted` are values of the properties, NaN where one is not known; None where none is.
        """
        layout = self.layout
        atoms, pairs = layout.split(tokens)
        most = max(int((atoms != layout.absent).sum(1).max()), 1) if len(atoms) else 1
        node_out, edge_out = self.of_graphs(atoms[:, :most], pairs[:, :most, :most], wanted)
        out = node_out.new_full((len(tokens), layout.sites, layout.vocabulary), -torch.inf)
        out[:, :most, : layout.kinds] = node_out
        rows, columns = layout.pairs
        seen = columns < most
        place = torch.arange(layout.most, layout.sites)[seen]
        out[:, place, :ORDERS] = edge_out[:, rows[seen], columns[seen]]
        out[:, most : layout.most, : layout.kinds] = 0.0
        out[:, layout.most + (~seen).nonzero()[:, 0], :ORDERS] = 0.0
        return out

    def of_graphs(
        self,
        atoms: Int[Tensor, "batch n"],
        pairs: Int[Tensor, "batch n n"],
        wanted: Float[Tensor, "batch properties"] | None = None,
    ) -> tuple[Float[Tensor, "batch n kinds"], Float[Tensor, "batch n n orders"]]:
        """Logits of atoms and of pairs, whatever the padding."""
        layout = self.layout
        there = atoms != layout.absent
        both = there[:, :, None] & there[:, None]
        open_atom, open_pair = (atoms == MASK) & there, (pairs == MASK) & both
        decided = both & ~open_pair & (pairs != layout.absent)
        bonds = torch.where(decided, pairs, 0).float()
        count = there.sum(dim=1).float()
        size = (count / layout.most)[:, None]
        kinds = nn.functional.one_hot((atoms + 1).clamp(0, layout.kinds), layout.kinds + 1).float()
        orders = nn.functional.one_hot((pairs + 1).clamp(0, ORDERS), ORDERS + 1).float()
        nodes = [
            kinds * there[..., None],
            bonds.sum(2, keepdim=True) / ORDERS,
            open_pair.sum(2, keepdim=True) / layout.most,
            size[:, None].expand(-1, atoms.shape[1], 1),
        ]
        edges = [orders * both[..., None], powers(bonds)]
        if self.paths:
            joined = distances(bonds) * both[..., None]
            valence = self.valences[atoms.clamp(0, layout.kinds - 1)] - bonds.sum(2)
            left = torch.where(there & ~open_atom, valence, 0.0)
            nodes += [left[..., None] / ORDERS, joined[..., -1].sum(2, keepdim=True) / layout.most]
            edges.append(joined)
        total = (count * (count + 1) / 2).clamp_min(1)
        undecided = (open_atom.sum(1) + open_pair.sum((1, 2)) / 2) / total
        features = torch.cat([size, undecided[:, None], *self._asked(len(atoms), wanted)], dim=1)
        found: tuple[Tensor, Tensor] = self.transformer(
            torch.cat(nodes, dim=-1), torch.cat(edges, dim=-1), features, there
        )
        return found

    def _asked(
        self, count: int, wanted: Float[Tensor, "batch properties"] | None
    ) -> tuple[Float[Tensor, "batch properties"], Float[Tensor, "batch properties"]]:
        """Whether each property is known, and its standardised value, 0 where it is not."""
        if wanted is None:
            wanted = self.center.new_full((count, len(self.properties)), torch.nan)
        known = ~wanted.isnan()
        value = torch.where(known, (wanted.to(self.center) - self.center) / self.scale, 0.0)
        return known.to(self.center), value
