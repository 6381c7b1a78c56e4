"""A DICOM CT series: slices by position along the normal, rescaled to HU.

The affine is the standard's (PS3.3 C.7.6.2.1.1), turned from patient axes (left,
posterior, superior) to NIfTI's (right, anterior, superior).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from invdiff import InputError
from invdiff_ct.formats.images import in_hu, spacing
from invdiff_ct.formats.options import ReadOptions
from invdiff_ct.scan import Volume, checked_hu


def _datasets(path: Path) -> list[Any]:
    import pydicom
    from pydicom.errors import InvalidDicomError

    found = []
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if not file.is_file() or file.name.startswith(".") or file.name.upper() == "DICOMDIR":
            continue
        try:
            found.append(pydicom.dcmread(file))
        except (InvalidDicomError, OSError, EOFError) as error:
            raise InputError(
                f"{file.name} is not a DICOM file ({error}); remove it from the series"
            ) from None
    if not found:
        raise InputError(f"{path} holds no DICOM file")
    return found


def _ordered(datasets: list[Any], name: str) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Slices by position, their common orientation (row and column cosines), positions."""
    series = {str(getattr(dataset, "SeriesInstanceUID", "")) for dataset in datasets}
    if len(series) > 1:
        raise InputError(f"{name} mixes {len(series)} series; keep one in the folder")
    for dataset in datasets:
        for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            if getattr(dataset, key, None) is None:
                raise InputError(
                    f"a slice of {name} lacks {key}, so the series cannot be ordered by position"
                )
    axes = np.array([dataset.ImageOrientationPatient for dataset in datasets], dtype=float)
    if float(np.ptp(axes, axis=0).max()) > 1e-3:
        raise InputError(f"the slices of {name} have different orientations; keep one orientation")
    row, column = axes[0, :3], axes[0, 3:]
    normal = np.cross(row, column)
    places = np.array([dataset.ImagePositionPatient for dataset in datasets], dtype=float)
    order = np.argsort(places @ normal)
    return [datasets[i] for i in order], np.stack([row, column, normal]), places[order]


def _check_positions(places: np.ndarray, normal: np.ndarray, datasets: list[Any], name: str) -> float:
    tilt = float(getattr(datasets[0], "GantryDetectorTilt", 0) or 0)
    if len(places) == 1:
        if abs(tilt) > 0.5:
            raise InputError(
                f"{name} was scanned with a gantry tilt of {tilt:g} degrees, which is not supported"
            )
        return float(getattr(datasets[0], "SliceThickness", 1) or 1)
    depth = places @ normal
    gaps = np.diff(depth)
    usual = float(np.median(gaps))
    wrong = np.flatnonzero(np.abs(gaps - usual) > 0.02 * abs(usual) + 1e-3)
    if usual <= 1e-6 or (gaps <= 1e-6).any():
        raise InputError(f"{name} has several slices at one position; keep one of each")
    if len(wrong):
        k = int(wrong[0])
        raise InputError(
            f"the slices of {name} are {usual:.4g} mm apart, but {gaps[k]:.4g} mm between positions "
            f"{depth[k]:.4g} and {depth[k + 1]:.4g}: slices are missing or the spacing is mixed"
        )
    drift = np.diff(places, axis=0) - np.outer(gaps, normal)
    angle = float(np.degrees(np.arctan2(np.linalg.norm(drift, axis=1), gaps).max()))
    if angle > 0.5 or abs(tilt) > 0.5:
        raise InputError(
            f"the slices of {name} shift sideways by {max(angle, abs(tilt)):.3g} degrees (gantry tilt), "
            "which is not supported; resample the series first"
        )
    return usual


def read(path: Path, options: ReadOptions) -> Volume:
    """A series in a folder, or one slice.

    Raises:
        InputError: for mixed series, missing slices, mixed spacing, gantry tilt, no HU.
    """
    datasets, axes, places = _ordered(_datasets(path), path.name)
    thickness = _check_positions(places, axes[2], datasets, path.name)
    shapes = {(int(dataset.Rows), int(dataset.Columns)) for dataset in datasets}
    if len(shapes) > 1:
        raise InputError(f"{path.name} mixes slices of sizes {sorted(shapes)}")
    step = [float(value) for value in datasets[0].PixelSpacing]
    pixel = spacing(step[0], step[1], path.name)
    slices = []
    for dataset in datasets:
        raw = dataset.pixel_array.astype(np.float32)
        padding = getattr(dataset, "PixelPaddingValue", None)
        hu = raw * float(getattr(dataset, "RescaleSlope", 1)) + float(getattr(dataset, "RescaleIntercept", 0))
        slices.append(hu if padding is None else np.where(raw == float(padding), np.float32(-1000), hu))
    hu, notes = checked_hu(in_hu(np.stack(slices), options), path.name)
    affine = np.eye(4)
    # Array axes (y, x, slice): a step down a column of the image runs along the column cosine.
    affine[:3, 0], affine[:3, 1] = axes[1] * pixel, axes[0] * pixel
    affine[:3, 2], affine[:3, 3] = axes[2] * thickness, places[0]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return Volume(hu, pixel, affine, notes={**notes, "slice spacing": f"{thickness:.4g} mm"})
