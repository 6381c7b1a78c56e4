"""The bundled photograph priors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invdiff import Prior, load_safetensors

WEIGHTS = Path(__file__).resolve().parent / "weights"


def photo_rgb(settings: Mapping[str, Any]) -> Prior:
    """RGB in [0, 1], any image size; see weights/photo_rgb.md."""
    return load_safetensors({**settings, "path": WEIGHTS / "photo_rgb.safetensors"})


def photo_x4(settings: Mapping[str, Any]) -> Prior:
    """The same given its bicubic x4 upsampling; see weights/photo_x4.md."""
    return load_safetensors({**settings, "path": WEIGHTS / "photo_x4.safetensors"})
