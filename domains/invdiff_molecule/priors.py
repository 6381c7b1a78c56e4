"""The bundled molecule priors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invdiff_molecule.masked import MaskedGraphPrior, load_masked

WEIGHTS = Path(__file__).resolve().parent / "weights"


def qm9_masked(settings: Mapping[str, Any]) -> MaskedGraphPrior:
    """Up to nine heavy atoms of C, N, O, F; see weights/qm9_masked.md."""
    return load_masked({**settings, "path": WEIGHTS / "qm9_masked.safetensors"})
