"""Training data and the objective of the masked graph prior.

Sites are masked independently, atoms with probability u and pairs with probability v, and the loss is the
mean cross-entropy over the masked sites of a graph. A share `alike` of the graphs has u = v ~ U(0, 1): the
number of masks is uniform, and the loss the bound on -log p(graph) up to its number of sites. The others
have u and v of their own, so that graphs whose atoms are decided before their bonds are seen too. Any law
of masks has the same optimal network. A batch holds graphs of about one size, so that little of it is
padding.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invdiff import MASK, InputError, TrainSettings, card_from, save_prior
from invdiff_molecule.chemistry import Vocabulary, canonical, read_sdf, read_smiles
from invdiff_molecule.edm import GraphDenoiser, GraphDenoising
from invdiff_molecule.layout import Layout
from invdiff_molecule.masked_network import MaskedGraphNetwork
from invdiff_molecule.regressor import GraphRegressor, Regression, labels

SPLITS = ("train", "validation", "test")


def split_of(smiles: str) -> str:
    """Where a canonical SMILES belongs: 90 / 5 / 5 by its hash, whatever the order of a file."""
    bucket = int.from_bytes(hashlib.sha256(smiles.encode()).digest()[:4], "big") % 20
    return {18: "validation", 19: "test"}.get(bucket, "train")


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and SMILES of a .csv, .smi or .txt file, gzipped or not, or records of an .sdf file.

    The column that a first line names `smiles`, else the first; separated by commas or spaces.

    Raises:
        InputError: for a missing or unreadable file, or a line without that column.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if path.suffix.lower() in (".sdf", ".mol"):
        yield from read_sdf(path)
        return
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt") as file:
            column = 0
            for number, line in enumerate(file, 1):
                words = [word.strip('"') for word in line.replace(",", " ").split()]
                names = [word.lower() for word in words]
                if number == 1 and "smiles" in names:
                    column = names.index("smiles")
                elif len(words) > column:
                    yield number, words[column]
                elif words:
                    raise InputError(f"{path.name}, row {number} has no column {column + 1}")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise InputError(f"{path.name} cannot be read as text ({error})") from None


class GraphSet:
    """Token sequences of graphs.

    Args:
        layout: of the sites.
        tokens: of every split.
        alike: share of the graphs whose nodes and pairs are masked at the same rate.
    """

    def __init__(
        self, layout: Layout, tokens: Mapping[str, Int[Tensor, "rows sites"]], alike: float = 0.5
    ) -> None:
        self.layout, self.tokens, self.alike = layout, dict(tokens), alike
        self.order = self.counts.argsort(stable=True)

    @property
    def counts(self) -> Int[Tensor, "rows"]:
        """Nodes of every graph of the training split."""
        return (self.tokens["train"][:, : self.layout.most] != self.layout.absent).sum(dim=1)

    @property
    def sizes(self) -> Float[Tensor, "sizes"]:
        """Law of the number of nodes in the training split."""
        counts = self.counts
        return torch.bincount(counts, minlength=self.layout.most + 1).double() / len(counts)

    def batch(self, size: int, generator: torch.Generator) -> Int[Tensor, "size"]:
        """Rows of training graphs about as large as one that is drawn by chance."""
        rows, reach = len(self.order), 16 * size
        centre = int(torch.randint(rows, (1,), generator=generator))
        first = max(0, min(centre - reach // 2, rows - reach))
        near = torch.randint(first, min(first + reach, rows), (size,), generator=generator)
        return self.order[near]

    def objective(
        self, network: nn.Module, settings: TrainSettings
    ) -> MaskedCrossEntropy | GraphDenoising | Regression:
        """What `invdiff train` minimises: of a masked network, a denoiser or a regressor."""
        if isinstance(network, GraphRegressor):
            return Regression(network, self.layout, self.tokens, settings)
        if isinstance(network, GraphDenoiser):
            return GraphDenoising(network, self.layout, self.tokens, self.sizes, settings)
        assert isinstance(network, MaskedGraphNetwork)
        if network.layout != self.layout:
            raise InputError(f"the network is for {network.layout} and the data for {self.layout}")
        return MaskedCrossEntropy(network, self, settings)


class Molecules(GraphSet):
    """SMILES as token sequences, split by hash.

    Args:
        path: a file of SMILES.
        vocabulary: the atoms that are kept; molecules with others, too large or of several fragments are not.
        most: largest number of heavy atoms.
        alike: see `GraphSet`.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary, most: int, alike: float = 0.5) -> None:
        layout = Layout(most, len(vocabulary))
        kept: dict[str, list[Tensor]] = {name: [] for name in SPLITS}
        self.skipped = 0
        for _, smiles in lines_of(path):
            try:
                molecule = read_smiles(smiles)
                graph = vocabulary.graph(molecule)
            except InputError:
                self.skipped += 1
                continue
            text = canonical(molecule)
            if graph.size > most or "." in text:
                self.skipped += 1
                continue
            kept[split_of(text)].append(layout.tokens(graph).to(torch.int8))
        if not all(kept.values()):
            raise InputError(f"{path.name} has too few molecules of this vocabulary to train on")
        super().__init__(layout, {name: torch.stack(rows) for name, rows in kept.items()}, alike)


class MaskedCrossEntropy:
    """The loss, its validation, and the file that training ends with.

    A network with properties is told each of them with probability 1/2, so that it is the law of graphs
    given any of them, and given none.
    """

    def __init__(self, network: MaskedGraphNetwork, data: GraphSet, settings: TrainSettings) -> None:
        self.network, self.data, self.settings = network, data, settings
        network.sizes.copy_(data.sizes)
        self.held_out = data.tokens["validation"][:2048]
        self.labels: dict[str, Tensor] = {}
        if network.properties:
            for split, tokens in (("train", data.tokens["train"]), ("validation", self.held_out)):
                self.labels[split] = labels(tokens, data.layout, network.names, network.properties)
            network.center.copy_(self.labels["train"].mean(0))
            network.scale.copy_(self.labels["train"].std(0))

    def of(
        self, split: str, rows: Int[Tensor, "batch"], generator: torch.Generator
    ) -> Float[Tensor, "batch"]:
        """Mean cross-entropy over the masked sites of every graph."""
        tokens = self.data.tokens[split][rows].long()
        most = self.data.layout.most
        both = torch.rand(len(tokens), 2, generator=generator)
        alike = torch.rand(len(tokens), generator=generator) < self.data.alike
        atoms, pairs = both[:, :1], torch.where(alike[:, None], both[:, :1], both[:, 1:])
        rate = torch.cat([atoms.expand(-1, most), pairs.expand(-1, tokens.shape[1] - most)], dim=1)
        there = tokens != self.data.layout.absent
        masked = there & (torch.rand(tokens.shape, generator=generator) < rate)
        wanted = None
        if self.labels:
            known = self.labels[split][rows]
            wanted = torch.where(torch.rand(known.shape, generator=generator) < 0.5, known, torch.nan)
        half = self.settings.precision == "bfloat16"
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=half):
            logits = self.network(torch.where(masked, MASK, tokens), wanted)
        chosen = logits.float().log_softmax(-1).gather(-1, tokens[..., None].clamp_min(0))[..., 0]
        loss: Tensor = -torch.where(masked, chosen, 0).sum(1) / masked.sum(1).clamp_min(1)
        return loss

    def loss(self, stage: Any, generator: torch.Generator) -> Float[Tensor, "batch"]:
        return self.of("train", self.data.batch(stage.batch, generator), generator)

    @torch.no_grad()
    def validate(self) -> float:
        rows = torch.arange(len(self.held_out))
        generator = torch.Generator().manual_seed(1)
        parts = [self.of("validation", part, generator) for part in rows.split(256)]
        return float(torch.cat(parts).double().mean())

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        card = card_from(config, name=str(config["name"]))
        save_prior(path, self.network, network_settings=config["network"], sigma_data=None, card=card)
