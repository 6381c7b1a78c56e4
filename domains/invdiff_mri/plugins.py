"""What the pack registers besides its domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invdiff import Operator
from invdiff_mri.active import CandidateLines
from invdiff_mri.coils import simulate_coils
from invdiff_mri.masks import MaskSettings, make_mask
from invdiff_mri.operators import CartesianSense


def undersample(settings: Mapping[str, Any], shape: tuple[int, ...] | None) -> Operator:
    """Cartesian undersampling with eight simulated coils, for `invdiff check` and tests.

    A solve makes its own from the scan's coil maps and mask.
    """
    height, width = (64, 64) if shape is None else (shape[-2], shape[-1])
    name = str(settings.get("mask", "equispaced"))
    name = "equispaced" if name in ("auto", "from_data", "file") else name
    mask = make_mask((height, width), MaskSettings(name, float(settings.get("acceleration", 4))))
    return CartesianSense(mask, simulate_coils(8, height, width))


def lines(settings: Mapping[str, Any], shape: tuple[int, ...] | None) -> Operator:
    """All phase-encode lines as candidates, eight simulated coils, for `invdiff check` and tests."""
    height, width = (64, 64) if shape is None else (shape[-2], shape[-1])
    return CandidateLines(simulate_coils(8, height, width), int(settings.get("axis", -1)))
