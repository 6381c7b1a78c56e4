"""Files of a registration: displacement fields that ITK, ANTs and Slicer read, maps, labels, points.

A displacement field is a NIfTI [X, Y, Z, 1, 3] (planes: [X, Y, 1, 1, 2] where they lie in the x-y plane of
the world, else 3 components), intent 1007 (vector), in mm, pull-back from the fixed to the moving image, in
LPS unless RAS is asked for: ITK reads the grid to LPS and leaves the vectors as they are, so that they have
to be LPS already.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from invdiff import InputError
from invdiff_deformation.grid import Grid

VECTOR = 1007
DESCRIPTION = b"invdiff displacement, pull-back; not for clinical use"


def write_volume(path: Path, values: Shaped[np.ndarray, "..."], grid: Grid) -> None:
    """Numbers on a grid (with trailing axes, if any) as NIfTI; whole or not at all."""
    import nibabel

    kind = np.int16 if values.dtype.kind in "iub" else np.float32
    data = values.astype(kind)
    if data.ndim > grid.dimensions and grid.dimensions == 2:
        data = np.expand_dims(data, 2)
    image = nibabel.Nifti1Image(data, grid.affine)
    _finish(image, path)


def _finish(image: object, path: Path) -> None:
    import nibabel

    image.header["descrip"] = DESCRIPTION  # type: ignore[attr-defined]
    image.header.set_xyzt_units("mm")  # type: ignore[attr-defined]
    part = path.with_name("." + path.name)
    nibabel.save(image, part)
    os.replace(part, path)


def in_plane(grid: Grid) -> bool:
    """Whether a plane lies in x and y of the world, so that two components say all."""
    return grid.dimensions == 2 and bool(np.abs(grid.affine[2, :2]).max() < 1e-6)


def write_displacement(path: Path, u: Float[Tensor, "d *grid"], grid: Grid, frame: str = "LPS") -> None:
    """u in voxels as vectors in mm."""
    import nibabel

    vectors = grid.mm(u[None].double())[0]
    if frame == "LPS":
        vectors = vectors * vectors.new_tensor([-1.0, -1.0, 1.0]).reshape(3, *([1] * grid.dimensions))
    kept = 2 if in_plane(grid) else 3
    data = vectors[:kept].movedim(0, -1).numpy().astype(np.float32)
    if grid.dimensions == 2:
        data = np.expand_dims(data, 2)
    image = nibabel.Nifti1Image(np.expand_dims(data, 3), grid.affine)
    image.header.set_intent(VECTOR, (), "displacement")
    _finish(image, path)


def read_displacement(path: Path, grid: Grid, frame: str = "LPS") -> Float[np.ndarray, "d *grid"]:
    """The field of `write_displacement`, in voxels of its grid.

    Raises:
        InputError: for a file that is no vector field, lies on another grid, or has NaN.
    """
    import nibabel

    if not path.is_file():
        raise InputError(f"there is no file {path}")
    loaded = nibabel.load(path)
    data = np.asarray(loaded.dataobj, dtype=np.float64)
    if data.ndim != 5 or data.shape[3] != 1 or data.shape[4] not in (2, 3):
        raise InputError(
            f"{path.name} has shape {data.shape}; expected a displacement field [X, Y, Z, 1, components]"
        )
    data = data[:, :, :, 0]
    if grid.dimensions == 2:
        data = data[:, :, 0]
    if data.shape[:-1] != grid.shape or not np.allclose(loaded.affine, grid.affine, atol=1e-3):
        raise InputError(f"{path.name} lies on another grid than the fixed image; resample it")
    if not np.isfinite(data).all():
        raise InputError(f"{path.name} holds values that are NaN or infinite; repair them")
    vectors = np.zeros((*data.shape[:-1], 3))
    vectors[..., : data.shape[-1]] = data
    if frame == "LPS":
        vectors *= (-1, -1, 1)
    u = vectors @ np.linalg.inv(grid.affine[:3, :3]).T
    return np.moveaxis(u[..., : grid.dimensions], -1, 0)


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    """A CSV, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """A text, whole or not at all."""
    part = path.with_name("." + path.name)
    part.write_text(text)
    os.replace(part, path)


def write_velocity(path: Path, z: Float[Tensor, "samples *event"], mean: Tensor, squarings: int) -> None:
    """States of the samples, the representative velocity in voxels, K."""
    from safetensors.torch import save_file

    part = path.with_name("." + path.name)
    save_file(
        {"states": z.contiguous(), "velocity": mean.contiguous(), "squarings": torch.tensor(squarings)}, part
    )
    os.replace(part, path)
