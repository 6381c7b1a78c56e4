"""What the pack registers besides its domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invdiff import InputError, Operator
from invdiff_ct.active import CandidateViews
from invdiff_ct.projector import Projector
from invdiff_ct.views import region_of_interest, simulated_geometry


def projections(settings: Mapping[str, Any], shape: tuple[int, ...] | None) -> Operator:
    """The scan that the settings describe, norm 1, for `invdiff check`, tests and the `array` domain.

    A solve makes its own from the data's geometry and noise.
    """
    size = 64 if shape is None else int(shape[-1])
    if shape is not None and shape[-1] != shape[-2]:
        raise InputError(f"the images are {shape[-2]} x {shape[-1]}; CT needs square ones")
    pixel = float(settings.get("pixel_mm") or 1.0)
    geometry = simulated_geometry(settings, size, pixel)
    if settings.get("region_mm") is not None:
        geometry, _ = region_of_interest(geometry, float(settings["region_mm"]))
    return Projector(geometry, size, pixel).scaled()


def views(settings: Mapping[str, Any], shape: tuple[int, ...] | None) -> Operator:
    """All views as candidates, norm 1, for `invdiff check`, tests and the `array` domain."""
    projector = projections(settings, shape)
    assert isinstance(projector, Projector)
    return CandidateViews(projector)
