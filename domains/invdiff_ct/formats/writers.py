"""NIfTI and npz output, written under a temporary name and renamed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped


def write_nifti(
    path: Path, volume: Shaped[np.ndarray, "slice y x"], affine: Float[np.ndarray, "4 4"]
) -> None:
    """A real volume as float32, array axes (y, x, slice)."""
    import nibabel

    image = nibabel.Nifti1Image(np.moveaxis(np.asarray(volume, dtype=np.float32), 0, 2), affine)
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
