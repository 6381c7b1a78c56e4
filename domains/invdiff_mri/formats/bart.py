"""BART `.cfl` / `.hdr`: complex64, column-major, up to 16 named dimensions.

The first axes are read, phase 1, phase 2, coil, maps; a misplaced coil axis
would make coils look like slices, so the axes are checked loudly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from invdiff import InputError
from invdiff_mri.formats.options import ReadOptions
from invdiff_mri.scan import MAX_COILS, Scan, arrange


def load(path: Path) -> np.ndarray:
    """The array with its trailing axes of length one kept, at least 5 axes."""
    header, data = path.with_suffix(".hdr"), path.with_suffix(".cfl")
    for part in (header, data):
        if not part.exists():
            raise InputError(f"{part.name} is missing: a BART array is a .cfl and a .hdr file")
    lines = [line for line in header.read_text(errors="replace").splitlines() if line.strip()]
    numbers = [line for line in lines if not line.startswith("#")]
    try:
        shape = tuple(int(word) for word in numbers[0].split())
    except (IndexError, ValueError):
        raise InputError(f"{header.name} does not list dimensions; it is not a BART header") from None
    shape = shape + (1,) * (5 - len(shape))
    wanted = int(np.prod(shape)) * 8
    if data.stat().st_size != wanted:
        raise InputError(
            f"{data.name} has {data.stat().st_size} bytes and its header {shape} needs {wanted}; "
            "the file is truncated or the header belongs to another"
        )
    return np.fromfile(data, dtype=np.complex64).reshape(shape, order="F")


def save(path: Path, array: np.ndarray) -> None:
    """Write a .cfl / .hdr pair."""
    shape = array.shape + (1,) * max(0, 16 - array.ndim)
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, shape)) + "\n")
    np.asfortranarray(array.astype(np.complex64)).ravel(order="F").tofile(path.with_suffix(".cfl"))


def read(path: Path, options: ReadOptions) -> Scan:
    """One slice or a stack of slices (BART dimension 13)."""
    array = load(path)
    if options.axes is not None:
        squeezed = array.reshape([length for length in array.shape if length > 1], order="F")
        return Scan(arrange(squeezed, options.axes, path.name), meta={"format": "BART"})
    extra = [axis for axis, length in enumerate(array.shape) if length > 1 and axis not in (0, 1, 2, 3, 13)]
    if extra:
        raise InputError(
            f"{path.name} has dimensions {array.shape}; expected read, phase, phase, coil (and "
            f"slice in dimension 13), found more in dimension {extra[0]}: name them with input.axes="
        )
    volume = array.reshape((*array.shape[:4], -1), order="F")  # read, phase1, phase2, coil, slice
    plane = [axis for axis in range(3) if volume.shape[axis] > 1]
    if len(plane) != 2:
        raise InputError(
            f"{path.name} has dimensions {array.shape}: two of the first three must be the image "
            "axes of a 2-D scan; for another order say input.axes="
        )
    few, coils = min(volume.shape[axis] for axis in plane), volume.shape[3]
    if few <= 32 and (coils == 1 or coils > 32):
        small = min(plane, key=lambda axis: volume.shape[axis])
        raise InputError(
            f"{path.name} has dimensions {array.shape}: the coils seem to be in dimension {small}, "
            f"expected in dimension 3 (at most {MAX_COILS}); transpose it with `bart transpose "
            f"{small} 3`, or say input.axes="
        )
    kspace = np.squeeze(volume, axis=next(axis for axis in range(3) if axis not in plane))
    return Scan(arrange(kspace, "y,x,coil,slice", path.name), meta={"format": "BART"})
