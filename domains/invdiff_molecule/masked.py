"""A masked discrete prior over graphs: p(token of a site | the sites that are decided).

Sites are atoms and pairs of them (`layout.py`), and those of nodes that are not there are decided from the
start: the number of nodes is drawn first, from the training set's law. The optimal network knows no time
(arXiv 2409.02908).

Tokens that are known (a fragment, given atoms) are simply there from the start: any-order decoding is
conditioned, not guided, and exactly so for a given number of nodes. Where that number is unknown it is drawn
without regard to the fragment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff import MASK, InputError, MaskedComposition, NoLevels, PriorCard, log_powers, read_prior
from invdiff_molecule.chemistry import Fragment, Graph, Vocabulary
from invdiff_molecule.layout import Layout
from invdiff_molecule.masked_network import NODE, MaskedGraphNetwork

CHUNK = 16  # graphs that the network is given at once


@dataclass(frozen=True)
class MaskedGraphPrior(NoLevels):
    """The network as a masked prior.

    Attributes:
        network: gives logits.
        card: what it knows.
        known: tokens that are there from the start, MASK elsewhere; None for nothing known.
        size: number of nodes, None to draw it.
        sizes: numbers of nodes that it is drawn from; None for all of the training set.
        temperature: logits are divided by it; 1 is the prior itself.
        wanted: what the graph is known to have, NaN for what is not known, by the network's properties.
    """

    network: MaskedGraphNetwork
    card: PriorCard
    known: Int[Tensor, "sites"] | None = None
    size: int | None = None
    sizes: tuple[int, ...] | None = None
    temperature: float = 1.0
    wanted: tuple[float, ...] | None = None

    @property
    def layout(self) -> Layout:
        """Of its sites."""
        return self.network.layout

    @property
    def vocabulary_of_atoms(self) -> Vocabulary:
        """The atoms that it knows; none of a prior of generic graphs."""
        names = self.network.names
        return Vocabulary.of(() if names == (NODE,) else names)

    @property
    def sites(self) -> int:
        """N + N (N - 1) / 2."""
        return self.layout.sites

    @property
    def vocabulary(self) -> int:
        """Tokens of either kind of site, and absent."""
        return self.layout.vocabulary

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Of the packed state."""
        return (self.layout.most, self.layout.kinds + self.layout.most)

    def composed(self, parts: tuple[tuple[Any, float], ...]) -> ComposedGraphPrior:
        """The product of powers of masked graph priors of one vocabulary, this the first.

        Raises:
            InputError: for another kind of prior, other atoms or another largest size.
        """
        for prior, _ in parts:
            if not isinstance(prior, MaskedGraphPrior):
                raise InputError(
                    f"prior {prior.card.name!r} is no masked prior of graphs; compose those alone"
                )
            if (prior.network.names, prior.layout) != (self.network.names, self.layout):
                raise InputError(
                    f"prior {prior.card.name!r} knows up to {prior.layout.most} of "
                    f"{prior.vocabulary_of_atoms} and {self.card.name!r} up to {self.layout.most} of "
                    f"{self.vocabulary_of_atoms}; a composition needs the same"
                )
        return ComposedGraphPrior(self.network, MaskedComposition(parts).card, parts=parts)

    def given_tokens(self, tokens: Int[Tensor, "sites"]) -> MaskedGraphPrior:
        """The prior given tokens of some sites, MASK at the others, absent where there is no node."""
        size = int((tokens[: self.layout.most] != self.layout.absent).sum())
        return replace(self, known=torch.where(tokens == self.layout.absent, MASK, tokens), size=size)

    def given(self, fragment: Graph | None = None, size: int | None = None) -> MaskedGraphPrior:
        """The prior given an induced fragment (its atoms and all pairs among them) and a number of nodes.

        A `Fragment` says too which of its atoms have no bond to the rest.

        Raises:
            InputError: for a fragment or a size that the prior cannot hold.
        """
        most = self.layout.most
        least = fragment.size if fragment is not None else 1
        if size is not None and not least <= size <= most:
            raise InputError(
                f"{size} heavy atoms were asked for; this prior and fragment allow {least} to {most}"
            )
        if least > most:
            raise InputError(
                f"the fragment has {least} heavy atoms and the prior knows molecules of up to {most}"
            )
        known = None
        if fragment is not None:
            tokens = self.layout.tokens(fragment)
            known = torch.where(tokens == self.layout.absent, MASK, tokens)
            if isinstance(fragment, Fragment):
                closed = torch.zeros(most, dtype=torch.bool)
                closed[: fragment.size] = torch.from_numpy(fragment.open == 0)
                rows, columns = self.layout.pairs
                known[most:][closed[rows] & (columns >= fragment.size)] = 0
        return replace(self, known=known, size=size)

    def start(self, count: int, generator: torch.Generator) -> Int[Tensor, "count sites"]:
        """Masked graphs whose number of nodes is drawn, with what is known in place.

        With a fragment the number of nodes is drawn from the training set's law among those that hold it.
        """
        law = self.law_of_sizes.clone()
        if self.size is not None:
            sizes = torch.full((count,), self.size)
        else:
            least = 1 if self.known is None else int((self.known[: self.layout.most] != MASK).sum())
            possible = torch.zeros_like(law)
            possible[least:] = 1
            if self.sizes is not None:
                possible *= torch.zeros_like(law).index_fill(0, torch.tensor(self.sizes), 1)
            law = law * possible if float((law * possible).sum()) > 0 else possible
            sizes = torch.multinomial(law, count, replacement=True, generator=generator)
        tokens = self.layout.empty(sizes)
        if self.known is None:
            return tokens
        return torch.where((tokens == MASK) & (self.known != MASK), self.known, tokens)

    @property
    def law_of_sizes(self) -> Float[Tensor, "sizes"]:
        """Of the number of nodes in the training set; what is wanted of a graph does not change it."""
        return self.network.sizes.double()

    def wishes(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """`wanted` of named properties.

        Raises:
            InputError: for one that the network was not told of in training.
        """
        known = self.network.properties
        if unknown := [name for name in values if name not in known]:
            raise InputError(
                f"prior {self.card.name!r} was trained given {', '.join(known) or 'no properties'}; "
                f"{unknown[0]!r} is not among them"
            )
        return tuple(float(values.get(name, math.nan)) for name in known)

    @torch.no_grad()
    def log_conditionals(
        self, tokens: Int[Tensor, "batch sites"], wanted: tuple[float, ...] | None = None
    ) -> Float[Tensor, "batch sites vocabulary"]:
        """As of every masked prior, given `wanted` (None for the prior's own)."""
        wanted = self.wanted if wanted is None else wanted
        device = next(self.network.parameters()).device
        sizes = (tokens[:, : self.layout.most] != self.layout.absent).sum(1)
        out = torch.empty(*tokens.shape, self.vocabulary, dtype=torch.float64)
        # Graphs of about one size at a time: the network's cost is the square of the largest one.
        for rows in sizes.argsort(stable=True).split(CHUNK):
            asked = None if wanted is None else torch.tensor(wanted, device=device).expand(len(rows), -1)
            logits = self.network(tokens[rows].to(device), asked).double().cpu()
            out[rows] = (logits / self.temperature).log_softmax(dim=-1)
        return out

    def embed(self, tokens: Int[Tensor, "batch sites"]) -> Float[Tensor, "batch N C"]:
        """Packed states of complete sequences."""
        return self.layout.state(tokens)


@dataclass(frozen=True)
class ComposedGraphPrior(MaskedGraphPrior):
    """prod_i q_i^(b_i) over graphs, conditionals not normalised: see `MaskedComposition`.

    The number of nodes follows the same product of its laws. Annealed ((q, b),), a product of priors or of
    properties ((q given c1, 1), (q given c2, 1), (q, -1)), guidance ((q, 1 - w), (q given c, w)).

    Attributes:
        parts: (prior, power) pairs; network and card are those of the first.
    """

    parts: tuple[tuple[MaskedGraphPrior, float], ...] = ()

    @property
    def law_of_sizes(self) -> Float[Tensor, "sizes"]:
        logs = log_powers([(part.law_of_sizes.log(), power) for part, power in self.parts])
        return (logs - logs.max()).exp()

    def wishes(self, values: Mapping[str, float]) -> tuple[float, ...]:
        raise InputError("a composition says in prior.parts what is wanted of each part")

    def log_conditionals(
        self, tokens: Int[Tensor, "batch sites"], wanted: tuple[float, ...] | None = None
    ) -> Float[Tensor, "batch sites vocabulary"]:
        return log_powers([(part.log_conditionals(tokens), power) for part, power in self.parts])


def load_masked(settings: Mapping[str, Any]) -> MaskedGraphPrior:
    """A masked graph prior from the file that training writes.

    Settings: `path`, `temperature`, and `properties`, values of what the graphs are known to have.

    Raises:
        InputError: for a file that holds another network, or properties that it was not told of.
    """
    network, _, card = read_prior(settings)
    if not isinstance(network, MaskedGraphNetwork):
        raise InputError(f"{Path(str(settings['path'])).name} holds no masked graph network")
    prior = MaskedGraphPrior(network, card, temperature=float(settings.get("temperature", 1.0)))
    values = settings.get("properties") or {}
    return replace(prior, wanted=prior.wishes(values)) if values else prior
