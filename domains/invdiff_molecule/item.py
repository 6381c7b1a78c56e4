"""One question about molecules: forward model, data, and what counts as an answer."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem
from scipy.optimize import linear_sum_assignment

from invdiff import GaussianNoise, InputError, Measurement, Posterior
from invdiff_molecule.chemistry import (
    Decoded,
    Fragment,
    Graph,
    Vocabulary,
    canonical,
    decode,
    formula_of,
    holds,
    read_formula,
    without_dummies,
)
from invdiff_molecule.formula import Formula, OneMolecule
from invdiff_molecule.mass import REACH, MassValues, formulas_within
from invdiff_molecule.metrics import References
from invdiff_molecule.objective import Experts, Term, Values, consistent, term_of, value_of
from invdiff_molecule.properties import PROPERTIES, Property, containing
from invdiff_molecule.regressor import Predicted, load_regressor
from invdiff_molecule.state import graphs_of

TEMPERING = 0.05  # sigma_y of integers
BUNDLED_REGRESSOR = Path(__file__).resolve().parent / "weights" / "qm9_properties.safetensors"


@dataclass(frozen=True)
class Merged:
    """A molecule among the draws.

    Attributes:
        decoded: the molecule, or what is wrong.
        count: how many draws are it.
        hit: whether it is an answer.
        values: of the question's terms.
        key: number of the first draw that is it.
    """

    decoded: Decoded
    count: int
    hit: bool
    values: tuple[float, ...]
    key: int


@dataclass(frozen=True)
class Item:
    """The question.

    Attributes:
        vocabulary, most: atoms of the prior, and how many at most.
        words: the question in words.
        hit: whether a connected molecule answers it.
        measurement: the same for samplers.
        terms: properties asked for.
        fragment: what is known of the graph, for the prior.
        size: heavy atoms, where known.
        sizes: numbers of heavy atoms that are possible; None for all.
        truth: canonical SMILES that the data were simulated from.
        core: pattern to highlight in pictures.
        prior: the prior given the fragment and the size, for draws that do not see the rest.
        draws, seed: of them.
        references: real molecules to compare with; None for none.
        counts: atoms of every token, where the question says so.
    """

    vocabulary: Vocabulary
    most: int
    words: str
    hit: Callable[[Any], bool]
    measurement: Measurement
    terms: tuple[Term, ...] = ()
    fragment: Graph | None = None
    size: int | None = None
    sizes: tuple[int, ...] | None = None
    truth: str | None = None
    core: Any = None
    prior: Any = None
    draws: int = 32
    seed: int = 0
    references: References | None = None
    counts: tuple[int, ...] | None = None

    def decoded(self, x: torch.Tensor) -> list[Decoded]:
        """Of every state; where the counts of the atoms are known, the nearest assignment that has them."""
        graphs = graphs_of(x, len(self.vocabulary))
        if self.counts is not None and not torch.equal(x, x.round()):
            graphs = [counted_atoms(graph, row, self.counts) for graph, row in zip(graphs, x, strict=True)]
        return [decode(graph, self.vocabulary) for graph in graphs]

    def hits(self, decoded: Sequence[Decoded]) -> list[bool]:
        """Which are answers."""
        return [one.valid_connected and self.hit(one.molecule) for one in decoded]

    def merged(self, posterior: Posterior) -> list[Merged]:
        """Draws by canonical SMILES, hits and frequent ones first; what is no molecule at the end."""
        decoded = self.decoded(posterior.samples)
        hits = self.hits(decoded)
        counts = Counter(one.smiles for one in decoded if one.smiles is not None)
        rows, seen = [], set()
        values = Values(self.terms, self.vocabulary, self.most)
        for key, (one, hit) in enumerate(zip(decoded, hits, strict=True)):
            if one.smiles is not None and one.smiles in seen:
                continue
            seen.add(one.smiles)
            found = values.of_molecule(one.molecule, one.smiles) if one.smiles is not None else ()
            rows.append(Merged(one, counts.get(one.smiles, 1), hit, found, key))
        return sorted(
            rows, key=lambda row: (not row.hit, not row.decoded.valid_connected, -row.count, row.key)
        )


def counted_atoms(graph: Graph, x: torch.Tensor, counts: Sequence[int]) -> Graph:
    """The graph whose atoms have these counts and are nearest to the node columns of a state."""
    tokens = np.repeat(np.arange(len(counts)), counts)
    if len(tokens) != graph.size:
        return graph
    _, order = linear_sum_assignment(-x[: graph.size, : len(counts)].numpy()[:, tokens])
    return Graph(tokens[order].astype(np.int64), graph.bonds)


def question(
    settings: Mapping[str, Any], vocabulary: Vocabulary, most: int, truth: Any = None, linear: bool = False
) -> dict[str, Any]:
    """Keyword arguments of an `Item` for the operator of a configuration.

    Args:
        settings: the operator's.
        vocabulary, most: of the prior.
        truth: a molecule that the data are simulated from; None where they are given.
        linear: whether a formula is its linear operator alone; else a datum says that it is one molecule.

    Raises:
        InputError: for what cannot be asked of this prior.
    """
    kind = str(settings.get("kind") or settings["name"])
    if kind == "formula":
        text = str(settings["formula"]) if truth is None else formula_of(truth)
        return _formula(text, vocabulary, most, linear)
    if kind == "substructure":
        if truth is not None:
            raise InputError(
                "operator substructure asks for a pattern and takes no input; give operator.smarts"
            )
        return _substructure(str(settings.get("smarts") or ""), vocabulary, most)
    if kind == "mass":
        return _mass(settings, vocabulary, most, truth)
    if kind == "property":
        return _terms([settings], vocabulary, most, truth)
    if kind == "product":
        terms = settings.get("operators")
        if not isinstance(terms, Sequence) or not terms or not all(isinstance(one, Mapping) for one in terms):
            raise InputError(
                "operator product needs operator.operators, a list such as [{name: logp, target: 1}, "
                "{name: qed, direction: maximise}]"
            )
        return _terms(terms, vocabulary, most, truth)
    if kind == "learned":
        return _learned(settings, vocabulary, most, truth)
    raise InputError(f"the molecule domain has no operator {kind!r}")


def _formula(text: str, vocabulary: Vocabulary, most: int, linear: bool) -> dict[str, Any]:
    plain = Formula(vocabulary, most)
    operator = plain if linear else OneMolecule(plain)
    y = operator.data(text)
    wanted = read_formula(text)

    def hit(molecule: Any) -> bool:
        return read_formula(formula_of(molecule)) == wanted

    measurement = Measurement(operator, GaussianNoise(TEMPERING), y)
    size = int(plain.data(text)[: len(plain.elements)].sum())
    asked = {"words": f"formula {text}", "hit": hit, "measurement": measurement, "size": size}
    if len(plain.elements) == len(vocabulary):
        asked["counts"] = tuple(int(number) for number in plain.data(text)[: len(vocabulary)])
    return asked


def _substructure(smarts: str, vocabulary: Vocabulary, most: int) -> dict[str, Any]:
    """A reward of six nats; where the pattern is one definite fragment, its tokens are known beside.

    Attachment points [*] say where the fragment goes on, and that it does so nowhere else; fragments that
    are apart (`c1ccccc1[*].[*]N1CCNCC1`) ask for what links them.
    """
    present = containing(smarts)
    core = Chem.MolFromSmarts(smarts)
    definite = Chem.MolFromSmiles(smarts)
    fragment = None
    if definite is not None:
        plain, points = without_dummies(definite)
        graph = vocabulary.graph(plain)
        fragment = graph
        if points.any():
            fragment, core = Fragment(graph.atoms, graph.bonds, points), plain
            inside = functools.partial(holds, fragment=plain, points=points)
            present = Property(lambda molecule: float(inside(molecule)), present.sigma, present.words)
        if fragment.size > most:
            raise InputError(
                f"{smarts} has {fragment.size} heavy atoms and this prior knows molecules of up to {most}"
            )

    def hit(molecule: Any) -> bool:
        return present.value(molecule) > 0

    base = {"words": f"contains {smarts}", "hit": hit, "core": core}
    term = Term("substructure", present, "maximise", 0.5, 1 / 6, 0.0)
    operator = Values([term], vocabulary, most)
    measurement = Measurement(operator, Experts((term,)), torch.tensor([term.target], dtype=torch.float64))
    base |= {"measurement": measurement, "terms": (term,)}
    return base if fragment is None else {**base, "fragment": fragment}


def _mass(settings: Mapping[str, Any], vocabulary: Vocabulary, most: int, truth: Any) -> dict[str, Any]:
    """A mass and its error in parts per million."""
    ppm = float(settings["ppm"])
    target = settings["mass"] if truth is None else PROPERTIES["mass"].value(truth)
    if target is None or not float(target) > 0 or not ppm > 0:
        raise InputError(f"operator mass needs a mass and ppm above 0; found {target} and {ppm:g}")
    asked = _terms(
        [{"name": "mass", "target": float(target), "sigma": 1e-6 * ppm * float(target)}], vocabulary, most
    )
    (term,) = asked["terms"]
    formulas = formulas_within(term.target, REACH * term.sigma, vocabulary, most)
    operator = MassValues(term, formulas, vocabulary, most)
    asked["measurement"] = Measurement(operator, asked["measurement"].noise, asked["measurement"].y)
    sizes = tuple(sorted(set(formulas.sum(1).tolist())))
    words = f"mass {term.target:.4f} to {ppm:g} ppm, that of {len(formulas)} formulas"
    return asked | {"sizes": sizes, "words": words}


def _learned(settings: Mapping[str, Any], vocabulary: Vocabulary, most: int, truth: Any) -> dict[str, Any]:
    """Targets that a network predicts for the sampler; RDKit says what is a hit."""
    path = Path(str(settings["path"])) if settings.get("path") else BUNDLED_REGRESSOR
    network = load_regressor(path)
    known = Vocabulary.of(network.names)
    if known != vocabulary or network.most != most:
        raise InputError(
            f"{path.name} predicts graphs of up to {network.most} of {known}, and the prior is of up to "
            f"{most} of {vocabulary}; give a regressor of the same atoms, or prior=qm9_edm"
        )
    asked = _terms(settings.get("operators") or [settings], vocabulary, most, truth)
    operator = Predicted(network, asked["terms"])
    asked["measurement"] = Measurement(operator, GaussianNoise(1.0), operator.data(asked["terms"]))
    size = int(settings["heavy_atoms"]) if truth is None else truth.GetNumHeavyAtoms()
    return asked | {"size": size}


def _terms(
    settings: Sequence[Mapping[str, Any]], vocabulary: Vocabulary, most: int, truth: Any = None
) -> dict[str, Any]:
    terms = []
    for one in settings:
        if truth is not None:
            value = value_of(term_of({**one, "target": 0.0}), truth, canonical(truth))
            one = {**one, "target": value, "direction": "target"}
        terms.append(term_of(one))
    consistent(terms)
    operator = Values(terms, vocabulary, most)
    y = torch.tensor([term.target for term in terms], dtype=torch.float64)
    measurement = Measurement(operator, Experts(tuple(terms)), y)

    def hit(molecule: Any) -> bool:
        values = operator.of_molecule(molecule, canonical(molecule))
        return all(term.hit(value) for term, value in zip(terms, values, strict=True))

    words = " and ".join(term.words for term in terms)
    return {"words": words, "hit": hit, "measurement": measurement, "terms": tuple(terms)}
