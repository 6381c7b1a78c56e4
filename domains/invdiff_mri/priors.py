"""The bundled MR prior."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invdiff import Prior, load_safetensors

WEIGHTS = Path(__file__).resolve().parent / "weights"


def brain_mr(settings: Mapping[str, Any]) -> Prior:
    """One channel, any matrix size, unit 1 = 99.5th percentile; see weights/brain_mr.md."""
    return load_safetensors({**settings, "path": WEIGHTS / "brain_mr.safetensors"})
