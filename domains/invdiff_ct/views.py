"""Which rays a scan has: few views, a limited range, a region of interest; and where its centre is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from invdiff import InputError
from invdiff_ct.geometry import BEAMS, Geometry, uniform_angles


def _number(operator: Mapping[str, Any], key: str, default: float) -> float:
    value = operator.get(key)
    return default if value is None else float(value)


def simulated_geometry(operator: Mapping[str, Any], size: int, pixel_mm: float) -> Geometry:
    """The scan that the operator's settings describe, around an image of `size` pixels a side.

    Angles are `start`, `start + step`, ... below `stop` in degrees where a range is given, else
    `views` angles over half a turn (a whole one for a fan). Without `pitch_mm` the detector covers the
    image's inscribed circle.

    Raises:
        InputError: for an unknown beam, an empty or backward range, no views.
    """
    beam = str(operator.get("beam") or "parallel")
    if beam not in BEAMS:
        raise InputError(f"operator.beam is {beam!r}; expected one of {', '.join(BEAMS)}")
    if operator.get("stop") is not None:
        start, stop, step = (
            _number(operator, key, value) for key, value in (("start", 0), ("stop", 0), ("step", 1))
        )
        if not (step > 0 and stop > start and stop - start <= 360):
            raise InputError(
                f"operator.start, stop and step are {start:g}, {stop:g} and {step:g} degrees; expected a "
                "range upwards of at most 360 and a step above zero"
            )
        angles = np.deg2rad(np.arange(start, stop - 1e-9, step))
    else:
        angles = uniform_angles(int(_number(operator, "views", 180)), beam)  # type: ignore[arg-type]
    detectors = int(_number(operator, "detectors", size))
    source, axis = _number(operator, "source_axis_mm", 541.0), _number(operator, "axis_detector_mm", 408.0)
    if operator.get("pitch_mm") is not None:
        pitch = float(operator["pitch_mm"])
    else:
        width = size * pixel_mm
        if beam != "parallel":
            if source <= width / 2:
                raise InputError(
                    f"the source is {source:g} mm from the axis and the image reaches {width / 2:g} mm; give "
                    "operator.source_axis_mm"
                )
            angle = math.asin(width / 2 / source)
            width = 2 * (source + axis) * (math.tan(angle) if beam == "fan_flat" else angle)
        pitch = width / detectors
    centre = operator.get("centre")
    middle = None if centre in (None, "auto") else float(centre)  # type: ignore[arg-type]
    return Geometry(angles, detectors, pitch, middle, beam, source, axis)  # type: ignore[arg-type]


def chosen_views(operator: Mapping[str, Any], geometry: Geometry) -> Int[np.ndarray, "some"]:
    """Views of a measured scan that the operator keeps: a range of angles, or `views` spread evenly.

    Raises:
        InputError: where more views are asked for than there are, or none lies in the range.
    """
    count = len(geometry.angles)
    if operator.get("stop") is not None:
        degrees = np.rad2deg(geometry.angles)
        start, stop = _number(operator, "start", 0), float(operator["stop"])
        kept = np.flatnonzero((degrees >= start - 1e-6) & (degrees < stop - 1e-6))
        if len(kept) == 0:
            raise InputError(
                f"no view lies in operator.start={start:g} to stop={stop:g} degrees; the scan has "
                f"{degrees.min():g} to {degrees.max():g}"
            )
        return kept
    wanted = operator.get("views")
    if wanted is None:
        return np.arange(count)
    if not 1 <= int(wanted) <= count:
        raise InputError(f"operator.views is {wanted} and the scan has {count} views; choose at most as many")
    order = np.argsort(geometry.angles, kind="stable")
    return np.sort(order[np.floor(np.arange(int(wanted)) * count / int(wanted)).astype(int)])


def region_of_interest(geometry: Geometry, radius_mm: float) -> tuple[Geometry, Int[np.ndarray, "kept"]]:
    """The scan whose detector only sees a circle of that radius around the axis, and the detectors kept."""
    reach = radius_mm
    if geometry.beam != "parallel":
        if radius_mm >= geometry.source_axis_mm:
            raise InputError(f"operator.region_mm is {radius_mm:g}, beyond the source")
        angle = math.asin(radius_mm / geometry.source_axis_mm)
        distance = geometry.source_axis_mm + geometry.axis_detector_mm
        reach = distance * (math.tan(angle) if geometry.beam == "fan_flat" else angle)
    kept = np.flatnonzero(np.abs(geometry.positions) <= reach)
    if len(kept) < 2:
        raise InputError(
            f"operator.region_mm is {radius_mm:g}, which leaves {len(kept)} detectors; enlarge it"
        )
    centre = (geometry.middle if geometry.centre is None else geometry.centre) - kept[0]
    smaller = replace(geometry, detectors=len(kept), centre=None)
    return replace(smaller, centre=float(centre)), kept


def rotation_centre(sinogram: Float[np.ndarray, "view detector"], geometry: Geometry) -> tuple[float, str]:
    """Detector index under the axis by correlating a view with its opposite mirrored, and how it was found.

    A parallel beam half a turn later is the same view mirrored: p(t + pi, s) = p(t, -s). The mirrored
    row is best aligned at centre c where p[i] meets p'[2 c - i]; found to a quarter of a detector.
    """
    angles = geometry.angles
    middle = geometry.middle
    if geometry.beam != "parallel":
        return middle, "taken in the middle of the detector"
    gaps = np.abs(angles[None, :] - angles[:, None] - math.pi)
    first, second = np.unravel_index(int(gaps.argmin()), gaps.shape)
    if gaps[first, second] > math.radians(2):
        return middle, "taken in the middle of the detector (no opposite views)"
    a, b = sinogram[first], sinogram[second][::-1]
    index = np.arange(len(a))
    best, score = middle, -np.inf
    for centre in np.arange(0.25 * len(a), 0.75 * len(a), 0.25):
        # b[j] is the mirrored row; detector i of the first view meets index i + (D - 1) - 2 c of it.
        there = index + (len(a) - 1) - 2 * centre
        inside = (there >= 0) & (there <= len(a) - 1)
        if inside.sum() < 0.4 * len(a):
            continue
        left, right = a[inside], np.interp(there[inside], index, b)
        left, right = left - left.mean(), right - right.mean()
        norm = float(np.sqrt((left**2).sum() * (right**2).sum()))
        value = float((left * right).sum()) / norm if norm > 0 else -np.inf
        if value > score:
            best, score = float(centre), value
    if score < 0.9:
        return middle, f"taken in the middle of the detector (opposite views correlate by {score:.2f} only)"
    return best, f"found at {best:g} from opposite views (correlation {score:.4f})"


def truncated(sinogram: Float[np.ndarray, "view detector"]) -> float:
    """Mean of the outermost ten detectors over the maximum: above .02 the object leaves the field."""
    edge = max(1, min(10, sinogram.shape[1] // 8))
    outer = np.concatenate([sinogram[:, :edge], sinogram[:, -edge:]], axis=1)
    return float(outer.mean() / max(float(sinogram.max()), 1e-12))
