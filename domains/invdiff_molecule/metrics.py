"""What a set of molecules is worth. Shares are of all that were drawn, failures included."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from invdiff_molecule.chemistry import Decoded
from invdiff_molecule.properties import fingerprint

CONVENTION = (
    "valid: sanitises, fragments allowed; valid, connected: sanitises and is one fragment, nothing repaired; "
    "hit: a connected molecule that has what was asked for, checked after decoding; shares are of all draws. "
    "unique: distinct canonical SMILES (no stereo) of the connected. diversity: 1 - mean Tanimoto "
    "similarity over ordered pairs of different draws (Morgan, radius 2, 2048 bits)"
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


def entropy(counts: Sequence[int]) -> float:
    """Entropy in nats of the merged draws."""
    share = np.asarray(counts, dtype=np.float64) / max(sum(counts), 1)
    return float(-(share * np.log(share)).sum())
