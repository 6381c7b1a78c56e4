"""What the pack registers besides its domain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from invdiff import InputError, Operator
from invdiff_ct.active import CandidateViews
from invdiff_ct.cone import ConeBeam, ConeGeometry
from invdiff_ct.geometry import uniform_angles
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
    return Projector(geometry, size, pixel, str(settings["kernel"])).scaled()


def views(settings: Mapping[str, Any], shape: tuple[int, ...] | None) -> Operator:
    """All views as candidates, norm 1, for `invdiff check`, tests and the `array` domain."""
    projector = projections(settings, shape)
    assert isinstance(projector, Projector)
    return CandidateViews(projector)


def cone_beam(settings: Mapping[str, Any], shape: tuple[int, ...] | None) -> Operator:
    """A circular cone-beam scan of a volume [*slice, y, x], norm 1; by default the detector covers it."""
    shape = shape or (16, 1, 32, 32)
    if len(shape) < 2:
        raise InputError(f"the event has shape {shape}; cone beam needs slices of y and x")
    voxel, slice_mm = float(settings["voxel_mm"]), float(settings["slice_mm"])
    source, detector = float(settings["source_axis_mm"]), float(settings["axis_detector_mm"])
    if not (voxel > 0 and slice_mm > 0 and source > 0):
        raise InputError(
            f"voxel_mm, slice_mm and source_axis_mm are {voxel:g}, {slice_mm:g} and {source:g}; "
            "give lengths above zero"
        )
    slices, magnification = math.prod(shape[:-2]), (source + detector) / source
    geometry = ConeGeometry(
        uniform_angles(int(settings["views"]), "fan_flat"),
        int(settings["rows"] or slices),
        int(settings["columns"] or max(shape[-2:])),
        float(settings["row_mm"] or slice_mm * magnification),
        float(settings["column_mm"] or voxel * magnification),
        source,
        detector,
    )
    return ConeBeam(geometry, shape, voxel, slice_mm).scaled()
