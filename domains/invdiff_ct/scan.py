"""What the readers return: projections, or images to simulate projections of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from invdiff import InputError
from invdiff_ct.geometry import Geometry

Kind = Literal["line_integral", "counts"]


@dataclass(frozen=True)
class Volume:
    """Slices in HU.

    Attributes:
        hu: [slice, y, x].
        pixel_mm: in-plane spacing, None where the file does not say.
        affine: of the file (NIfTI convention, voxel (y, x, slice) to mm), None without one.
        size: reconstruction side that the file asks for, None for its own.
        notes: for the report.
    """

    hu: Float[np.ndarray, "slice y x"]
    pixel_mm: float | None = None
    affine: Float[np.ndarray, "4 4"] | None = None
    size: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Projections:
    """Measured data.

    Attributes:
        sinogram: [row, view, detector], line integrals (dimensionless) or counts.
        geometry: with the views in the order of the data; `centre` None where it is not known.
        kind: line_integral or counts.
        flux: photons of an unattenuated ray, for counts.
        calibrated: lengths are in mm, so that HU follow.
        reference_hu: [row, y, x] where a truth is known.
        notes: for the report.
    """

    sinogram: Float[np.ndarray, "row view detector"]
    geometry: Geometry
    kind: Kind = "line_integral"
    flux: float | None = None
    calibrated: bool = False
    reference_hu: Float[np.ndarray, "row y x"] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def finite(values: Shaped[np.ndarray, "*shape"], what: str) -> np.ndarray:
    """The array, refused where it holds NaN or infinity."""
    bad = ~np.isfinite(values)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"{what} holds {int(bad.sum())} values that are NaN or infinite, the first at index {first}; "
            "repair or mask them"
        )
    return values


def checked_hu(values: Shaped[np.ndarray, "slice y x"], name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """HU as float32 with padding made air, and what was done; refused where these cannot be HU.

    Raises:
        InputError: for grey values (0 to 255), unsigned offsets, and anything outside [-1100, 4000].
    """
    hu = finite(np.asarray(values, dtype=np.float32), name)
    low, high = float(hu.min()), float(hu.max())
    if low >= 0 and high > 0:
        kind = "grey values" if high <= 255 else "CT numbers with an offset"
        raise InputError(
            f"{name} holds values from {low:g} to {high:g}, which look like {kind} and not HU (air is "
            "-1000); give operator.hu_slope= and operator.hu_intercept="
        )
    notes: dict[str, Any] = {}
    below = hu < -1100
    if below.any() and float(np.ptp(hu[below])) == 0 and float(below.mean()) < 0.7:
        notes["padding"] = f"{100 * float(below.mean()):.1f} % of {low:g} made air"
        hu = np.where(below, np.float32(-1000), hu)
        low = float(hu.min())
    if low < -1100 or high > 4000:
        raise InputError(
            f"{name} holds values from {low:g} to {high:g}, outside the HU of -1100 to 4000; give "
            "operator.hu_slope= and operator.hu_intercept=, or cut out the metal"
        )
    return hu, notes


def check_counts(sinogram: Float[np.ndarray, "row view detector"], kind: str, name: str) -> None:
    """Refuse counts that look like line integrals and the reverse, and negative counts."""
    low, high, mean = float(sinogram.min()), float(sinogram.max()), float(sinogram.mean())
    if kind == "counts" and low < 0:
        raise InputError(
            f"{name} holds {int((sinogram < 0).sum())} negative counts, the lowest {low:g}; photon counts "
            "are zero or more"
        )
    if kind == "counts" and high < 20:
        raise InputError(
            f"{name} is read as counts and its largest value is {high:g}, which looks like line integrals; "
            "use operator.kind=line_integral"
        )
    if kind == "line_integral" and mean > 20:
        raise InputError(
            f"{name} is read as line integrals and its mean is {mean:g}, which looks like photon counts; "
            "use operator.kind=counts operator.flux=PHOTONS"
        )


def check_angles(
    degrees: Float[np.ndarray, "views"], name: str, unit: str = "deg"
) -> Float[np.ndarray, "views"]:
    """Angles in radians, refused where the unit looks wrong or views repeat.

    Raises:
        InputError: as said; `degrees` holds radians where `unit` is "rad".
    """
    finite(degrees, f"the angles of {name}")
    span = float(np.ptp(degrees)) if len(degrees) else 0.0
    largest = float(np.abs(degrees).max(initial=0.0))
    if unit == "rad" and largest > 2 * np.pi + 0.1:
        raise InputError(
            f"the angles of {name} are given in radians and reach {largest:g}, more than a turn; "
            "they look like degrees (name them angles_deg)"
        )
    if unit == "deg" and len(degrees) > 8 and span <= 2 * np.pi + 0.01:
        raise InputError(
            f"the {len(degrees)} angles of {name} are given in degrees and span {span:.3g}; "
            "they look like radians (name them angles_rad)"
        )
    radians = np.deg2rad(degrees) if unit == "deg" else np.asarray(degrees, dtype=np.float64)
    turned = np.sort(np.round(np.mod(radians, 2 * np.pi), 7))
    repeated = int((np.diff(turned) == 0).sum())
    if repeated:
        raise InputError(
            f"{repeated} of the {len(degrees)} angles of {name} are repeated; average or remove those views"
        )
    return np.asarray(radians, dtype=np.float64)
