"""`molecule`: a question about molecules, answered by draws of a graph prior given it.

Input is a file of SMILES or an SDF whose formula, mass or properties are the data (retrospective, so
labelled), or nothing: then the operator's own settings are the question.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from invdiff import (
    Config,
    Estimates,
    Figure,
    InputError,
    Posterior,
    Prior,
    Problem,
    Summary,
    Tick,
    keyed_stream,
    load_plugin,
)
from invdiff_molecule import metrics, output
from invdiff_molecule.chemistry import Graph, Vocabulary, canonical, formula_of, one_fragment, read_smiles
from invdiff_molecule.item import Item, question
from invdiff_molecule.levels import GraphDiffusionPrior
from invdiff_molecule.masked import MaskedGraphPrior
from invdiff_molecule.priors import GraphPrior, draws_alone, of_molecules, under_levels
from invdiff_molecule.training import Molecules, lines_of

PRIOR_ALONE = "prior alone"
FRAGMENT = (
    "the atoms and bonds of the fragment, in one Kekule form, stand in the graph from the start. That is "
    "exact for a given number of atoms; how many there are follows the training set alone, and a molecule "
    "that holds the fragment several times counts as often"
)


class MoleculeDomain:
    """The `molecule` domain."""

    name = "molecule"
    baseline_names = ("prior",)

    def problems(self, config: Config) -> list[Problem]:
        prior = load_plugin("priors", str(config["prior"]["name"]))(config["prior"])
        prior = of_molecules(prior)
        vocabulary, most = prior.vocabulary_of_atoms, prior.event_shape[0]
        path = config["input"].get("path")
        settings, domain = config["operator"], config["domain"]
        continuous = isinstance(prior, GraphDiffusionPrior)
        linear = continuous and config["sampler"]["name"] != "graph_diffusion"
        if path is None:
            asked = question(settings, vocabulary, most, linear=linear)
            return [self._problem("question", asked, prior, config)]
        problems: list[Problem] = []
        for row, text in lines_of(Path(str(path))):
            where = f"{Path(str(path)).name}, row {row}: "
            molecule = one_fragment(read_smiles(text, where), where, bool(domain["largest_fragment"]))
            try:
                asked = question(settings, vocabulary, most, molecule, linear)
            except InputError as error:
                raise InputError(f"{where}{error}") from None
            asked["truth"] = canonical(molecule)
            problems.append(self._problem(f"molecule{len(problems) + 1:04d}", asked, prior, config))
        if not problems:
            raise InputError(f"{Path(str(path)).name} holds no molecules")
        return problems

    @staticmethod
    def _problem(name: str, asked: dict[str, Any], prior: GraphPrior, config: Config) -> Problem:
        wanted = config["domain"]["heavy_atoms"]
        if wanted is not None:
            fixed = asked.get("size") if config["operator"].get("heavy_atoms") is None else None
            if fixed not in (None, int(wanted)):
                raise InputError(f"domain.heavy_atoms is {wanted} and {asked['words']} has {asked['size']}")
            asked["size"] = int(wanted)
        vocabulary = prior.vocabulary_of_atoms
        most = prior.event_shape[0]
        under_levels(prior, config, asked.get("size"))
        given = given_of(prior, asked.get("fragment"), asked.get("size"), asked.get("sizes"))
        draws = max(int(config["sampler"].get("particles", 0)), 32)
        item = Item(
            vocabulary,
            most,
            **asked,
            prior=given,
            draws=draws,
            seed=int(config["seed"]),
            references=read_references(config["domain"]["references"]),
        )
        notes: dict[str, Any] = {"question": item.words, "atoms known to the prior": str(vocabulary)}
        if item.truth is not None:
            notes["simulated from"] = f"{item.truth} (stereochemistry dropped)"
        if item.fragment is not None:
            notes["conditioning"] = FRAGMENT
        return Problem(name, item.measurement, prior.event_shape, item, notes)

    def adapt_prior(self, prior: Prior, problem: Problem) -> Prior:
        """The prior given what the question says of the graph itself."""
        item: Item = problem.context
        return given_of(of_molecules(prior), item.fragment, item.size, item.sizes)

    def baselines(self, problem: Problem, tick: Tick) -> Estimates:
        """As many draws of the prior, given the fragment and the size alone, as a filter has particles."""
        item: Item = problem.context
        drawn = draws_alone(item.prior, item.draws, keyed_stream(item.seed, 77))
        tick()
        return {"prior": drawn}

    def summarise(self, problem: Problem, posterior: Posterior, baselines: Estimates) -> Summary:
        item: Item = problem.context
        table = {}
        facts: dict[str, Any] = {}
        for name, x in {PRIOR_ALONE: baselines.get("prior"), "posterior samples": posterior.samples}.items():
            if x is not None:
                decoded = item.decoded(x)
                table[name] = metrics.rates(decoded, item.hits(decoded))
                if item.references is not None:
                    table[name] |= item.references.compared(decoded)
        if item.references is not None:
            few = min(len(posterior.samples), len(item.references.smiles) // 2)
            for name, value in item.references.floor(few).items():
                facts[f"{name} of {few} molecules of {item.references.name} to the others"] = round(value, 4)
        merged = item.merged(posterior)
        hits = [row for row in merged if row.hit]
        answers = sum(row.count for row in hits)
        facts |= {
            "answers": f"{answers} of {len(posterior.samples)} draws, {len(hits)} different molecules",
            "entropy of the draws (nats)": round(metrics.entropy([row.count for row in merged]), 3),
        }
        known = [row for row in merged if row.decoded.valid_connected]
        for number, term in enumerate(item.terms):
            if known and term.direction == "target":
                gaps = [abs(row.values[number] - term.target) for row in known for _ in range(row.count)]
                facts[f"mean distance of {term.name} to its target"] = round(sum(gaps) / len(gaps), 4)
        if item.sizes is not None and hits:
            shares = Counter[str]()
            for row in hits:
                shares[formula_of(row.decoded.molecule)] += row.count
            total = sum(shares.values())
            facts["formulas of the answers"] = ", ".join(
                f"{formula} {count / total:.0%}" for formula, count in shares.most_common(8)
            )
        if item.truth is not None:
            place = [number for number, row in enumerate(merged, 1) if row.decoded.smiles == item.truth]
            facts["the molecule that it was simulated from"] = (
                f"found, rank {place[0]} of {len(merged)}" if place else "not among the draws"
            )
        warnings = []
        if not hits:
            warnings.append(f"0 of {len(posterior.samples)} draws answer the question: {item.words}.")
        if len(posterior.samples) < 16:
            warnings.append("Fewer than 16 draws: shares are coarse; set samples=64.")
        return Summary(table, facts, metrics.CONVENTION, tuple(warnings), answers)

    def write(self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> None:
        """`molecules.csv`, `.smi`, `.sdf` and the states."""
        item: Item = problem.context
        output.write(item, item.merged(posterior), posterior, folder)

    def figures(
        self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path
    ) -> list[Figure]:
        item: Item = problem.context
        return output.figures(problem.id, item, item.merged(posterior), baselines.get("prior"), folder)

    def training_data(self, settings: Mapping[str, Any]) -> Molecules:
        """SMILES of `root/path` with the atoms `tokens` and at most `nodes` of them."""
        path = Path(str(settings["root"])) / str(settings["path"])
        alike = float(settings.get("alike", 0.5))
        return Molecules(path, Vocabulary.of(settings["tokens"]), int(settings["nodes"]), alike)


def given_of(
    prior: GraphPrior, fragment: Graph | None, size: int | None, sizes: tuple[int, ...] | None
) -> GraphPrior:
    """The prior given what a question says of the graph itself.

    Raises:
        InputError: where the prior cannot hold it.
    """
    given = prior.given(fragment, size)
    if sizes is None or size is not None:
        return given
    if not isinstance(given, MaskedGraphPrior):
        raise InputError(
            f"prior {prior.card.name!r} needs to know how many atoms there are; set domain.heavy_atoms to "
            f"one of {', '.join(map(str, sizes))}, or use prior=qm9_masked"
        )
    return replace(given, sizes=sizes)


@functools.lru_cache(maxsize=1)
def read_references(path: str | None) -> metrics.References | None:
    """Up to 5000 molecules of a file of SMILES, in the order of their hashes.

    Raises:
        InputError: for a file that cannot be read, or holds fewer than two molecules.
    """
    if path is None:
        return None
    if importlib.util.find_spec("fcd_torch") is None:
        raise InputError("domain.references needs the package 'fcd_torch': pip install 'invdiff[molecule]'")
    found = set()
    for row, text in lines_of(Path(path)):
        found.add(canonical(read_smiles(text, f"{Path(path).name}, row {row}: ")))
    if len(found) < 2:
        raise InputError(f"{Path(path).name} holds {len(found)} molecules; references must be two or more")
    ordered = sorted(found, key=lambda smiles: hashlib.sha256(smiles.encode()).digest())
    return metrics.References(Path(path).name, tuple(ordered[:5000]))
