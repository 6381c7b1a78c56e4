"""NIfTI and npz output, written under a temporary name and renamed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def write_nifti(path: Path, volume: np.ndarray, affine: np.ndarray | None) -> None:
    """A real volume [slice, y, x] as float32, axes (y, x, slice) as in the input's affine."""
    import nibabel

    data = np.moveaxis(np.asarray(volume, dtype=np.float32), 0, 2)
    image = nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine)
    image.header["descrip"] = b"invdiff; not for clinical use"
    part = path.with_name("." + path.name)
    nibabel.save(image, part)
    os.replace(part, path)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Compressed npz."""
    part = path.with_name("." + path.name)
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(part, path)
