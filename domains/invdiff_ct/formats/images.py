"""Slices in HU from NIfTI, npy and npz: projections of these are *simulated*."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from invdiff import InputError
from invdiff_ct.formats.options import ReadOptions
from invdiff_ct.scan import Volume, checked_hu


def in_hu(values: np.ndarray, options: ReadOptions) -> np.ndarray:
    """Values with the user's slope and intercept."""
    if options.slope is None and options.intercept is None:
        return values
    slope = 1.0 if options.slope is None else options.slope
    return values.astype(np.float32) * slope + (options.intercept or 0.0)


def spacing(first: float, second: float, name: str) -> float:
    """The in-plane spacing, refused where pixels are not square."""
    if not (first > 0 and second > 0):
        raise InputError(f"{name} has pixels of {first:g} x {second:g} mm; a spacing above zero is needed")
    if abs(first - second) > 0.01 * max(first, second):
        raise InputError(
            f"{name} has pixels of {first:.4g} x {second:.4g} mm; the projector needs square ones, so "
            "resample it first"
        )
    return float(first)


def read_nifti(path: Path, options: ReadOptions) -> Volume:
    """A NIfTI volume; slices along its third axis, first axis as y, so that its affine is kept.

    Raises:
        InputError: for damaged files, values that are not HU, pixels that are not square.
    """
    import nibabel

    try:
        image = nibabel.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:
        raise InputError(
            f"{path.name} cannot be read as NIfTI ({type(error).__name__}: {error}); the file is damaged or "
            "not what its ending says"
        ) from None
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim not in (2, 3):
        raise InputError(f"{path.name} has {data.ndim} axes of sizes {data.shape}; expected 2 or 3")
    data = data[..., None] if data.ndim == 2 else data
    zooms = image.header.get_zooms()
    pixel = spacing(float(zooms[0]), float(zooms[1]), path.name)
    hu, notes = checked_hu(in_hu(np.moveaxis(data, 2, 0), options), path.name)
    return Volume(hu, pixel, np.asarray(image.affine, dtype=np.float64), notes=notes)


def read_arrays(path: Path, arrays: Mapping[str, np.ndarray], options: ReadOptions) -> Volume:
    """`hu` [y, x] or [slice, y, x] (or as `input.axes` says), with `pixel_mm`, `spacing`, `size` if there."""
    key = next((name for name in ("hu", "image", "volume", "array") if name in arrays), None)
    if key is None:
        raise InputError(
            f"{path.name} holds {', '.join(sorted(arrays))}; expected 'sinogram' with its angles, or 'hu'"
        )
    values = arrays[key]
    if np.iscomplexobj(values) or values.dtype.kind not in "iufb":
        raise InputError(f"{path.name} holds {values.dtype} values; expected real numbers in HU")
    pixel = None
    if options.axes is not None:
        values, pixel = _arranged(values, arrays.get("spacing"), options.axes, path.name)
    if values.ndim not in (2, 3) or min(values.shape[-2:]) < 16:
        raise InputError(
            f"{path.name} has shape {values.shape}; expected [y, x] or [slice, y, x] of 16 x 16 or more"
        )
    hu, notes = checked_hu(in_hu(values if values.ndim == 3 else values[None], options), path.name)
    if "pixel_mm" in arrays:
        sizes = np.unique(np.asarray(arrays["pixel_mm"], dtype=np.float64))
        pixel = float(sizes[0]) if len(sizes) == 1 else None
    size = int(arrays["size"]) if "size" in arrays else None
    return Volume(hu, pixel, size=size, notes=notes)


def _arranged(
    values: np.ndarray, steps: np.ndarray | None, axes: str, name: str
) -> tuple[np.ndarray, float | None]:
    """The array as [slice, y, x] from axes such as "x,y,z", and the in-plane spacing of `spacing`."""
    named = [part.strip() for part in axes.split(",")]
    if sorted(named) != ["x", "y", "z"] or values.ndim != 3:
        raise InputError(
            f"input.axes is {axes!r} for an array of shape {values.shape}; expected the letters x, y and z "
            "in the order of its three axes"
        )
    order = [named.index(letter) for letter in "zyx"]
    pixel = None
    if steps is not None and np.size(steps) == 3:
        _, y_mm, x_mm = (float(np.ravel(steps)[k]) for k in order)
        pixel = spacing(y_mm, x_mm, name)
    return np.ascontiguousarray(values.transpose(order)), pixel
