"""Properties of molecules by RDKit: what a reward or a target can be.

All are functions of a sanitised molecule; `register` adds your own in one line.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdkit import Chem, DataStructs, RDConfig
from rdkit.Chem import QED, Crippen, Descriptors, rdFingerprintGenerator, rdMolDescriptors

from invdiff import InputError
from invdiff_molecule.chemistry import read_smiles

Value = Callable[[Any], float]


@dataclass(frozen=True)
class Property:
    """A property.

    Attributes:
        value: of an RDKit molecule.
        sigma: width of a target, in its unit, where none is given.
        words: what it is, for the report.
    """

    value: Value
    sigma: float
    words: str


def nmr_carbons(molecule: Chem.Mol) -> float:
    """Number of symmetry classes of carbon: distinct environments in a 13C spectrum."""
    ranks = Chem.CanonicalRankAtoms(molecule, breakTies=False)
    return float(
        len({rank for atom, rank in zip(molecule.GetAtoms(), ranks, strict=True) if atom.GetSymbol() == "C"})
    )


@functools.lru_cache(maxsize=1)
def _scorer() -> Value:
    sys.path.append(str(Path(RDConfig.RDContribDir) / "SA_Score"))
    import sascorer

    sys.path.pop()
    score: Value = sascorer.calculateScore
    return score


def sa(molecule: Chem.Mol) -> float:
    """Synthetic accessibility, 1 (easy) to 10 (Ertl & Schuffenhauer, J. Cheminform. 1:8, 2009)."""
    return float(_scorer()(molecule))


@functools.lru_cache(maxsize=1)
def _catalog() -> Any:
    from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams

    wanted = FilterCatalogParams()
    for name in ("PAINS", "BRENK"):
        wanted.AddCatalog(getattr(FilterCatalogParams.FilterCatalogs, name))
    return FilterCatalog(wanted)


def alerts(molecule: Chem.Mol) -> float:
    """Number of structural alerts: PAINS (Baell & Holloway 2010) and Brenk's list (2008)."""
    return float(len(_catalog().GetMatches(molecule)))


PROPERTIES: dict[str, Property] = {
    "logp": Property(Crippen.MolLogP, 0.2, "octanol-water partition, Crippen's logP"),
    "tpsa": Property(rdMolDescriptors.CalcTPSA, 5.0, "topological polar surface area, square angstrom"),
    "qed": Property(QED.qed, 0.05, "quantitative estimate of drug-likeness, 0 to 1"),
    "sa": Property(sa, 0.2, "synthetic accessibility, 1 (easy) to 10"),
    "mass": Property(Descriptors.ExactMolWt, 0.01, "monoisotopic mass, dalton"),
    "nmr_carbons": Property(nmr_carbons, 0.35, "distinct carbon environments"),
    "rings": Property(rdMolDescriptors.CalcNumRings, 0.35, "rings (SSSR)"),
    "alerts": Property(alerts, 0.35, "structural alerts, PAINS and Brenk"),
    "connected": Property(lambda molecule: float(len(Chem.GetMolFrags(molecule)) == 1), 0.3, "one fragment"),
}


def known_properties(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each of a property.

    Raises:
        InputError: for one that is not.
    """
    found = tuple(str(name) for name in names)
    if unknown := [name for name in found if name not in PROPERTIES]:
        raise InputError(f"unknown property {unknown[0]!r}; known are {', '.join(PROPERTIES)}")
    return found


def register(name: str, value: Value, sigma: float, words: str = "") -> None:
    """Make an RDKit function a property: `register("chlorines", lambda mol: ..., sigma=.3)`."""
    PROPERTIES[name] = Property(value, sigma, words or name)


def fingerprint(molecule: Chem.Mol) -> Any:
    """Morgan, radius 2, 2048 bits."""
    return _generator().GetFingerprint(molecule)


@functools.lru_cache(maxsize=1)
def _generator() -> Any:
    return rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)


def similarity_to(smiles: str) -> Property:
    """Tanimoto similarity of Morgan fingerprints to a reference."""
    reference = fingerprint(read_smiles(smiles, "operator.reference: "))

    def value(molecule: Chem.Mol) -> float:
        return float(DataStructs.TanimotoSimilarity(fingerprint(molecule), reference))

    return Property(value, 0.05, f"Tanimoto similarity to {smiles}")


def containing(smarts: str) -> Property:
    """1 where a SMARTS pattern is present.

    Raises:
        InputError: where it does not parse.
    """
    pattern = Chem.MolFromSmarts(smarts)
    if pattern is None or not pattern.GetNumAtoms():
        raise InputError(f"{smarts!r} is not a SMARTS that RDKit parses")
    return Property(lambda molecule: float(molecule.HasSubstructMatch(pattern)), 0.3, f"contains {smarts}")


def property_of(term: Mapping[str, Any]) -> Property:
    """The property that a term names.

    Raises:
        InputError: for an unknown name, or what its kind needs and is not given.
    """
    name = str(term.get("name") or "")
    if name == "similarity":
        if not term.get("reference"):
            raise InputError("property similarity needs operator.reference, a SMILES")
        return similarity_to(str(term["reference"]))
    if name == "network":
        if not term.get("path"):
            raise InputError("property network needs operator.path, the file of a published property network")
        from invdiff_molecule.gdss_property import network_property

        return network_property(Path(str(term["path"])))
    if name == "substructure":
        return containing(str(term.get("smarts") or ""))
    if name not in PROPERTIES:
        known = ", ".join([*PROPERTIES, "similarity", "substructure", "network"])
        raise InputError(f"unknown property {name!r}; known are {known}")
    return PROPERTIES[name]
