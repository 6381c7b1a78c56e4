"""The bundled CT prior."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invdiff import Prior, load_safetensors

WEIGHTS = Path(__file__).resolve().parent / "weights"


def lung_ct(settings: Mapping[str, Any]) -> Prior:
    """One channel, any image size, x = (HU + 1000) / 2000; see weights/lung_ct.md."""
    return load_safetensors({**settings, "path": WEIGHTS / "lung_ct.safetensors"})
