"""What a set of molecules is worth. Shares are of all that were drawn, failures included."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from invdiff_molecule.chemistry import Decoded
from invdiff_molecule.properties import fingerprint

CONVENTION = (
    "valid: sanitises, fragments allowed; valid, connected: sanitises and is one fragment, nothing repaired; "
    "hit: a connected molecule that has what was asked for, checked after decoding; shares are of all draws. "
    "unique: distinct canonical SMILES (no stereo) of the connected. diversity: 1 - mean Tanimoto "
    "similarity over ordered pairs of different draws (Morgan, radius 2, 2048 bits). novel: share of the "
    "distinct molecules that the references lack; FCD and WL-MMD (Weisfeiler-Lehman subtrees, three "
    "rounds, linear kernel) depend on the number of draws: compare with the floor, as many real molecules"
)


def diversity(decoded: Sequence[Decoded]) -> float:
    """1 - mean Tanimoto similarity over pairs i != j of connected molecules; NaN below two."""
    from rdkit import DataStructs

    prints = [fingerprint(one.molecule) for one in decoded if one.valid_connected]
    if len(prints) < 2:
        return math.nan
    total = sum(sum(DataStructs.BulkTanimotoSimilarity(one, prints)) - 1.0 for one in prints)
    return 1 - total / (len(prints) * (len(prints) - 1))


def rates(decoded: Sequence[Decoded], hits: Sequence[bool]) -> dict[str, float]:
    """One row of the table."""
    count = max(len(decoded), 1)
    connected = [one for one in decoded if one.valid_connected]
    good = {one.smiles for one, hit in zip(decoded, hits, strict=True) if hit}
    return {
        "hit": sum(hits) / count,
        "valid": sum(one.valid for one in decoded) / count,
        "valid, connected": len(connected) / count,
        "unique": len({one.smiles for one in connected}) / max(len(connected), 1),
        "distinct hits": float(len(good)),
        "diversity": diversity(decoded),
        "draws": float(len(decoded)),
    }


def wl_features(molecule: Any, rounds: int = 3) -> Counter[str]:
    """Weisfeiler-Lehman subtree labels of a molecule: element and charge, then neighbours by bond order."""
    from rdkit import Chem

    plain = Chem.Mol(molecule)
    Chem.Kekulize(plain, clearAromaticFlags=True)
    labels = [f"{atom.GetSymbol()}{atom.GetFormalCharge()}" for atom in plain.GetAtoms()]
    found = Counter(labels)
    for _ in range(rounds):
        around: list[list[str]] = [[] for _ in labels]
        for bond in plain.GetBonds():
            i, j, order = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), int(bond.GetBondTypeAsDouble())
            around[i].append(f"{order}{labels[j]}")
            around[j].append(f"{order}{labels[i]}")
        texts = [f"{own}({','.join(sorted(rest))})" for own, rest in zip(labels, around, strict=True)]
        labels = [hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in texts]
        found.update(labels)
    return found


def wl_mmd(a: Sequence[Any], b: Sequence[Any]) -> float:
    """|mean f(a) - mean f(b)|^2 of Weisfeiler-Lehman counts scaled to norm 1; NaN for an empty set."""
    if not a or not b:
        return math.nan
    gap: Counter[str] = Counter()
    for molecules, sign in ((a, 1.0), (b, -1.0)):
        for molecule in molecules:
            counts = wl_features(molecule)
            norm = math.sqrt(sum(value * value for value in counts.values()))
            for label, value in counts.items():
                gap[label] += sign * value / norm / len(molecules)  # type: ignore[assignment]
    return float(sum(value * value for value in gap.values()))


def fcd(smiles: Sequence[str], references: Sequence[str]) -> float:
    """Frechet ChemNet distance (Preuer et al., arXiv 1803.09518); grows as sets shrink; NaN below two."""
    if len(smiles) < 2 or len(references) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fcd_torch import FCD

        return float(FCD(device="cpu", n_jobs=1)(list(smiles), list(references)))


@dataclass(frozen=True)
class References:
    """Real molecules that draws are compared with.

    Attributes:
        name: of the file.
        smiles: canonical, distinct.
    """

    name: str
    smiles: tuple[str, ...]

    def compared(self, decoded: Sequence[Decoded]) -> dict[str, float]:
        """Share of the distinct connected molecules that are new, FCD and WL-MMD of the connected."""
        connected = [one for one in decoded if one.valid_connected]
        distinct = {one.smiles for one in connected}
        known = set(self.smiles)
        return {
            "novel": sum(text not in known for text in distinct) / max(len(distinct), 1),
            "FCD": fcd([str(one.smiles) for one in connected], self.smiles),
            "WL-MMD": wl_mmd([one.molecule for one in connected], self._molecules(self.smiles[:1000])),
        }

    def floor(self, count: int) -> dict[str, float]:
        """FCD and WL-MMD of `count` of them against the others: what real molecules reach."""
        few, others = self.smiles[:count], self.smiles[count:]
        return {
            "FCD": fcd(few, others),
            "WL-MMD": wl_mmd(self._molecules(few), self._molecules(others[:1000])),
        }

    @staticmethod
    def _molecules(smiles: Sequence[str]) -> list[Any]:
        from rdkit import Chem

        return [Chem.MolFromSmiles(text) for text in smiles]


def entropy(counts: Sequence[int]) -> float:
    """Entropy in nats of the merged draws."""
    share = np.asarray(counts, dtype=np.float64) / max(sum(counts), 1)
    return float(-(share * np.log(share)).sum())
