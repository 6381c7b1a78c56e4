"""Scan geometry: where every ray runs, in millimetres.

The rotation axis is the origin, x points right along image columns and y up
against image rows (row 0 is at the top). Angles are in radians, counter-clockwise.
At angle t the detector's axis is e = (cos t, sin t) and the rays of a parallel
beam run along f = (-sin t, cos t), so a point (u, v) falls at s = u cos t + v sin t.
A fan starts at the source -source_axis f; its detector is the line through
axis_detector f (flat, equal spacing) or the arc around the source through that
point (curved, equal angles). `centre` is the detector index, from 0, under the
axis; conventions differ by half a detector between packages, so it is explicit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from invdiff import InputError

Beam = Literal["parallel", "fan_flat", "fan_curved"]
BEAMS = ("parallel", "fan_flat", "fan_curved")


@dataclass(frozen=True)
class Geometry:
    """One circular scan.

    Attributes:
        angles: view angles in radians.
        detectors: number of detector elements.
        pitch_mm: their spacing on the detector (arc length on a curved one).
        centre: detector index under the rotation axis; None is the middle, (detectors - 1) / 2.
        beam: parallel, fan_flat or fan_curved.
        source_axis_mm, axis_detector_mm: distances of a fan.

    Raises:
        InputError: for no views, fewer than two detectors, lengths that are not positive.
    """

    angles: Float[np.ndarray, "views"]
    detectors: int
    pitch_mm: float
    centre: float | None = None
    beam: Beam = "parallel"
    source_axis_mm: float = 541.0
    axis_detector_mm: float = 408.0

    def __post_init__(self) -> None:
        if self.beam not in BEAMS:
            raise InputError(f"the beam is {self.beam!r}; expected one of {', '.join(BEAMS)}")
        if len(self.angles) < 1 or self.detectors < 2:
            raise InputError(
                f"the scan has {len(self.angles)} views and {self.detectors} detectors; "
                "at least 1 and 2 are needed"
            )
        lengths = {"pitch_mm": self.pitch_mm}
        if self.beam != "parallel":
            lengths |= {"source_axis_mm": self.source_axis_mm, "axis_detector_mm": self.axis_detector_mm}
        for name, length in lengths.items():
            if not (length > 0 and math.isfinite(length)) and name != "axis_detector_mm":
                raise InputError(f"{name} is {length:g}; give a length above zero in millimetres")
        if self.centre is not None and abs(self.centre - self.middle) > 0.25 * self.detectors:
            raise InputError(
                f"the rotation centre is detector {self.centre:g} of {self.detectors}, more than a quarter "
                "of the detector off its middle; give operator.centre in detector indices from 0"
            )

    @property
    def middle(self) -> float:
        """Index of the detector's middle."""
        return (self.detectors - 1) / 2

    @property
    def positions(self) -> Float[np.ndarray, "detectors"]:
        """Detector positions s in mm from the axis' projection."""
        centre = self.middle if self.centre is None else self.centre
        return (np.arange(self.detectors) - centre) * self.pitch_mm

    @property
    def magnification(self) -> float:
        """Detector spacing over spacing at the axis."""
        if self.beam == "parallel":
            return 1.0
        return (self.source_axis_mm + self.axis_detector_mm) / self.source_axis_mm

    @property
    def field_radius_mm(self) -> float:
        """Radius of the circle that every view sees whole."""
        reach = min(abs(self.positions[0]), abs(self.positions[-1])) + 0.5 * self.pitch_mm
        if self.beam == "parallel":
            return float(reach)
        distance = self.source_axis_mm + self.axis_detector_mm
        angle = math.atan(reach / distance) if self.beam == "fan_flat" else reach / distance
        return float(self.source_axis_mm * math.sin(min(angle, math.pi / 2)))

    def views(self, index: Int[np.ndarray, "some"]) -> Geometry:
        """The same scan with some of its views."""
        return replace(self, angles=self.angles[index])

    def rays(self, view: int) -> tuple[Float[np.ndarray, "detectors 2"], Float[np.ndarray, "detectors 2"]]:
        """A point of each ray of a view and its unit direction, as (x, y) in mm."""
        t, s = self.angles[view], self.positions[:, None]
        e, f = np.array([math.cos(t), math.sin(t)]), np.array([-math.sin(t), math.cos(t)])
        if self.beam == "parallel":
            return s * e, np.broadcast_to(f, (self.detectors, 2))
        distance = self.source_axis_mm + self.axis_detector_mm
        if self.beam == "fan_curved":
            direction = np.cos(s / distance) * f + np.sin(s / distance) * e
        else:
            direction = distance * f + s * e
            direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
        return np.broadcast_to(-self.source_axis_mm * f, (self.detectors, 2)), direction


def uniform_angles(views: int, beam: Beam) -> Float[np.ndarray, "views"]:
    """`views` angles over half a turn (parallel) or a whole one (fan)."""
    if views < 1:
        raise InputError(f"operator.views is {views}; at least one view is needed")
    turn = math.pi if beam == "parallel" else 2 * math.pi
    return np.arange(views) * (turn / views)
