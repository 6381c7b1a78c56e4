"""Between SMILES and labelled graphs; every call of RDKit lives here.

A molecule is its heavy atoms, each a token (element and formal charge), and a symmetric matrix of bond
orders 0 to 3, kekulised; hydrogens follow from valences. Stereochemistry is not represented.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from rdkit import Chem, RDLogger
from rdkit.Chem import rdMolDescriptors

from invdiff import InputError

RDLogger.DisableLog("rdApp.*")  # what does not parse or sanitise is reported by us, with its row

BONDS = (None, Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
FORMULA = re.compile(r"([A-Z][a-z]?)(\d*)")
CATIONS = ("N", "O", "S")
CHARGE = re.compile(r"([+-])(\d*)$")
TOKEN = re.compile(r"([A-Z][a-z]?)(\d*)(\+*|-*)")


@dataclass(frozen=True)
class Token:
    """An element with a formal charge, and the valence of hypervalent ones: `C`, `N+`, `O-`, `S6`, `P5`.

    Attributes:
        element: symbol.
        charge: formal charge.
        bonds: bonds of the atom, hydrogens included; None for the element's usual number.
    """

    element: str
    charge: int = 0
    bonds: int | None = None

    @classmethod
    def parse(cls, text: str) -> Token:
        """Of its written form.

        Raises:
            InputError: for anything else than an element, digits and signs.
        """
        found = TOKEN.fullmatch(text)
        if found is None:
            raise InputError(f"{text!r} is no atom; expected an element and a charge such as C, N+ or S6")
        element, bonds, signs = found.groups()
        return cls(element, signs.count("+") - signs.count("-"), int(bonds) if bonds else None)

    def __str__(self) -> str:
        bonds = "" if self.bonds is None else str(self.bonds)
        return self.element + bonds + ("+" if self.charge > 0 else "-") * abs(self.charge)

    @property
    def valence(self) -> int:
        """Bonds of the atom, hydrogens included: where not said, those of the neutral element with as many
        electrons.
        """
        if self.bonds is not None:
            return self.bonds
        table = Chem.GetPeriodicTable()
        number = table.GetAtomicNumber(self.element) - self.charge
        return int(table.GetDefaultValence(number))


@dataclass(frozen=True)
class Graph:
    """A molecule as labelled graph.

    Attributes:
        atoms: index of the token of each heavy atom.
        bonds: orders 0..3, symmetric with zero diagonal.
    """

    atoms: Int[np.ndarray, "n"]
    bonds: Int[np.ndarray, "n n"]

    @property
    def size(self) -> int:
        """Heavy atoms."""
        return len(self.atoms)


@dataclass(frozen=True)
class Fragment(Graph):
    """A part of a molecule of which it is said where the rest is attached.

    Attributes:
        open: how many bonds to the rest every atom has at least; none else has any.
    """

    open: Int[np.ndarray, "n"]


@dataclass(frozen=True)
class Vocabulary:
    """The atoms that a prior knows.

    Attributes:
        tokens: in the order of the prior's columns.
        cations: whether charges are left out and N, O and S with one bond above their usual number are read
            as cations, as in GDSS; anions are lost.
    """

    tokens: tuple[Token, ...]
    cations: bool = False

    @classmethod
    def of(cls, names: Sequence[str], cations: bool = False) -> Vocabulary:
        """From written tokens."""
        return cls(tuple(Token.parse(str(name)) for name in names), cations)

    def __len__(self) -> int:
        return len(self.tokens)

    def __str__(self) -> str:
        return " ".join(map(str, self.tokens))

    @property
    def valences(self) -> Int[np.ndarray, "tokens"]:
        """Of every token."""
        return np.array([token.valence for token in self.tokens])

    def graph(self, molecule: Chem.Mol) -> Graph:
        """Tokens and Kekulé bonds.

        Raises:
            InputError: for an atom that the vocabulary does not hold, a radical, or an explicit isotope.
        """
        molecule = Chem.Mol(molecule)
        Chem.Kekulize(molecule, clearAromaticFlags=True)
        index = {token: number for number, token in enumerate(self.tokens)}
        atoms = []
        for atom in molecule.GetAtoms():
            token = Token(atom.GetSymbol(), atom.GetFormalCharge())
            stretched = Token(token.element, token.charge, atom.GetTotalValence())
            if stretched in index:
                token = stretched
            if self.cations and token.charge == 1 and token.element in CATIONS:
                token = Token(token.element)
            if token not in index or atom.GetNumRadicalElectrons():
                radical = ", a radical" if atom.GetNumRadicalElectrons() else ""
                raise InputError(f"atom {atom.GetIdx()} is {token}{radical}; this prior knows {self}")
            atoms.append(index[token])
        bonds = np.zeros((len(atoms), len(atoms)), dtype=np.int64)
        for bond in molecule.GetBonds():
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            bonds[i, j] = bonds[j, i] = BONDS.index(bond.GetBondType())
        return Graph(np.array(atoms, dtype=np.int64), bonds)

    def molecule(self, graph: Graph) -> Chem.RWMol:
        """The graph as an RDKit molecule, not sanitised."""
        out = Chem.RWMol()
        for number in graph.atoms:
            token = self.tokens[int(number)]
            atom = Chem.Atom(token.element)
            atom.SetFormalCharge(token.charge)
            out.AddAtom(atom)
        for i, j in zip(*np.nonzero(np.triu(graph.bonds, 1)), strict=True):
            out.AddBond(int(i), int(j), BONDS[int(graph.bonds[i, j])])
        if self.cations:
            for atom, used in zip(out.GetAtoms(), graph.bonds.sum(1), strict=True):
                element = atom.GetSymbol()
                if element in CATIONS and int(used) == Token(element).valence + 1:
                    atom.SetFormalCharge(1)
        return out


@dataclass(frozen=True)
class Decoded:
    """What a graph is as a molecule; three verdicts that must not be mixed up.

    Attributes:
        molecule: sanitised; None where it has a valence problem.
        smiles: canonical; None where there is no molecule.
        valid: sanitises, fragments allowed (GDSS' definition).
        valid_fragment: its largest fragment sanitises (what DiGress and MOSES score).
        valid_connected: sanitises and is one fragment: the headline.
        problem: RDKit's own words, empty where there is none.
    """

    molecule: Any
    smiles: str | None
    valid: bool
    valid_fragment: bool
    valid_connected: bool
    problem: str = ""


def decode(graph: Graph, vocabulary: Vocabulary) -> Decoded:
    """The molecule of a graph; never raises, never repairs."""
    molecule = vocabulary.molecule(graph)
    problem, smiles = sanitised(molecule)
    if smiles is not None:
        return Decoded(molecule, smiles, True, True, "." not in smiles)
    pieces = Chem.GetMolFrags(vocabulary.molecule(graph), asMols=True, sanitizeFrags=False)
    largest = max(pieces, key=lambda piece: piece.GetNumAtoms(), default=None)
    fragment = largest is not None and sanitised(Chem.RWMol(largest))[1] is not None
    return Decoded(None, None, False, fragment, False, problem)


def sanitised(molecule: Chem.RWMol) -> tuple[str, str | None]:
    """Sanitise in place; RDKit's complaint, and canonical SMILES where there is none."""
    try:
        Chem.SanitizeMol(molecule)
        smiles = Chem.MolToSmiles(molecule)
    except (Chem.MolSanitizeException, ValueError, RuntimeError) as error:
        return str(error).splitlines()[0], None
    return ("", smiles) if smiles else ("no atoms", None)


def read_smiles(text: str, where: str = "") -> Chem.Mol:
    """A molecule without stereochemistry.

    Raises:
        InputError: where RDKit does not parse it, or it has no atoms.
    """
    molecule = Chem.MolFromSmiles(text)
    if molecule is None or not molecule.GetNumAtoms():
        raise InputError(f"{where}{text!r} is not a SMILES that RDKit parses")
    Chem.RemoveStereochemistry(molecule)
    return molecule


def read_sdf(path: Path) -> Iterator[tuple[int, str]]:
    """Number and SMILES of every record of an SDF or MOL file, hydrogens dropped.

    Raises:
        InputError: for a record that RDKit does not read.
    """
    for number, molecule in enumerate(Chem.SDMolSupplier(str(path)), 1):
        if molecule is None or not molecule.GetNumAtoms():
            raise InputError(f"{path.name}, record {number} is not a molecule that RDKit reads")
        yield number, canonical(molecule)


def without_dummies(molecule: Chem.Mol) -> tuple[Chem.Mol, Int[np.ndarray, "n"]]:
    """A fragment written with attachment points (`c1ccccc1[*:1]`) without them, and how many each atom had.

    Raises:
        InputError: for an attachment point that is bonded to another, or not by one single bond.
    """
    edited = Chem.RWMol(molecule)
    for atom in edited.GetAtoms():
        if atom.GetAtomicNum():
            continue
        bonds = atom.GetBonds()
        other = bonds[0].GetOtherAtom(atom) if len(bonds) == 1 else None
        if other is None or not other.GetAtomicNum() or bonds[0].GetBondType() != Chem.BondType.SINGLE:
            raise InputError("an attachment point [*] must be bonded to one atom by a single bond")
        other.SetIntProp("_open", (other.GetIntProp("_open") if other.HasProp("_open") else 0) + 1)
        atom.SetAtomicNum(1)
        atom.SetAtomMapNum(0)
        atom.SetIsotope(0)
        atom.SetNoImplicit(True)
    plain = Chem.RemoveHs(edited)
    points = [atom.GetIntProp("_open") if atom.HasProp("_open") else 0 for atom in plain.GetAtoms()]
    return plain, np.array(points, dtype=np.int64)


def holds(molecule: Chem.Mol, fragment: Chem.Mol, points: Int[np.ndarray, "n"]) -> bool:
    """Whether the molecule has the fragment, bonded to the rest at its attachment points and nowhere else."""
    inside = [atom.GetDegree() for atom in fragment.GetAtoms()]
    for match in molecule.GetSubstructMatches(fragment, uniquify=False, maxMatches=10_000):
        more = [molecule.GetAtomWithIdx(k).GetDegree() - own for k, own in zip(match, inside, strict=True)]
        if all(extra >= point if point else extra == 0 for extra, point in zip(more, points, strict=True)):
            return True
    return False


def one_fragment(molecule: Chem.Mol, where: str = "", largest: bool = False) -> Chem.Mol:
    """The molecule, or its largest fragment where that is asked for.

    Raises:
        InputError: for several fragments.
    """
    pieces = Chem.GetMolFrags(molecule, asMols=True)
    if len(pieces) == 1:
        return molecule
    if not largest:
        raise InputError(
            f"{where}has {len(pieces)} fragments (a salt or a mixture?); set domain.largest_fragment=true "
            "to keep the largest"
        )
    return max(pieces, key=lambda piece: piece.GetNumAtoms())


def read_formula(text: str) -> Counter[str]:
    """Counts of the elements of `C7H9NO`, and `charge` where the text ends in one (`C7H10NO+`, `C3H4O3-2`).

    Raises:
        InputError: for anything else than element symbols, numbers and a charge.
    """
    body, charge = text, CHARGE.search(text)
    if charge is not None:
        body = text[: charge.start()]
    counts: Counter[str] = Counter()
    for element, number in FORMULA.findall(body):
        counts[element] += int(number or 1)
    if not body or FORMULA.sub("", body):
        raise InputError(f"{text!r} is not a molecular formula such as C7H9NO")
    table = Chem.GetPeriodicTable()
    for element in counts:
        try:
            table.GetAtomicNumber(element)
        except RuntimeError:
            raise InputError(f"{text!r} names {element!r}, which is no element") from None
    if charge is not None:
        counts["charge"] = int(charge.group(1) + (charge.group(2) or "1"))
    return counts


def formula_of(molecule: Chem.Mol) -> str:
    """Hill formula, the net charge at its end."""
    return str(rdMolDescriptors.CalcMolFormula(molecule))


def canonical(molecule: Chem.Mol) -> str:
    """Canonical SMILES without stereochemistry."""
    return str(Chem.MolToSmiles(molecule, isomericSmiles=False))
