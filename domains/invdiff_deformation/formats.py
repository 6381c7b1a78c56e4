"""Images, labels and points in; NIfTI with its affine, pictures, arrays, and what SimpleITK reads.

NIfTI affines are taken as nibabel gives them (RAS mm). Files that SimpleITK reads are LPS and are turned.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from invdiff import InputError
from invdiff_deformation import flow
from invdiff_deformation.grid import LPS, Grid

NIFTI = (".nii", ".nii.gz")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr", ".dcm")
ENDINGS = (*NIFTI, ".npy", *PICTURES, *ITK)
FRAMES = ("RAS", "LPS", "voxels")
NO_AFFINE = "no affine in the file: mm are voxels"


@dataclass(frozen=True)
class Image:
    """Values on a grid.

    Attributes:
        name: of the file.
        values: in the array order of `grid`.
        rows: whether the first array axis runs down the page, as in pictures (NIfTI's runs to the right).
    """

    name: str
    values: Float[np.ndarray, "*grid"]
    grid: Grid
    rows: bool = False

    @property
    def range(self) -> tuple[float, float]:
        """The .5th and 99.5th percentile."""
        low, high = np.percentile(self.values, (0.5, 99.5))
        return float(low), float(high)


def ending_of(path: Path) -> str:
    """The ending, `.nii.gz` as one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def stem_of(path: Path) -> str:
    """The name without its ending, file-system safe."""
    base = path.name[: len(path.name) - len(ending_of(path))]
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in base)


def read_image(path: Path) -> Image:
    """A grey image of two or three axes.

    Raises:
        InputError: for a missing or damaged file, an unknown ending, the wrong number of axes, colours, NaN,
            an affine that cannot be, or an image that is constant.
    """
    image = _read(path)
    if not np.isfinite(image.values).all():
        count = int((~np.isfinite(image.values)).sum())
        raise InputError(f"{path.name} holds {count} values that are NaN or infinite; repair or mask them")
    if float(np.ptp(image.values)) == 0:
        raise InputError(f"{path.name} is constant ({image.values.flat[0]:g}); there is nothing to register")
    return image


def read_labels(path: Path) -> Image:
    """A map of integer labels.

    Raises:
        InputError: as `read_image`, and for values that are no integers.
    """
    image = _read(path)
    if not np.isfinite(image.values).all() or bool((image.values != np.round(image.values)).any()):
        raise InputError(f"{path.name} holds values that are no whole numbers; expected a label map")
    return image


def _read(path: Path) -> Image:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    ending = ending_of(path)
    if ending not in ENDINGS:
        raise InputError(f"{path.name} ends in {ending or 'nothing'!r}; expected one of {', '.join(ENDINGS)}")
    read = _nifti if ending in NIFTI else _array if ending == ".npy" else None
    read = read or (_picture if ending in PICTURES else _itk)
    try:
        image = read(path)
    except (InputError, ModuleNotFoundError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path.name} cannot be read ({reason}); the file is damaged or not what its ending says"
        ) from None
    if min(image.grid.shape) < 4:
        raise InputError(f"{path.name} has shape {image.grid.shape}; each axis needs at least 4 voxels")
    return image


def _squeezed(values: np.ndarray, name: str) -> np.ndarray:
    """Two or three axes, a plane of one slice as two."""
    if np.iscomplexobj(values):
        raise InputError(f"{name} is complex; expected a real image, such as its magnitude")
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim == 4:
        raise InputError(
            f"{name} is a series of {values.shape[3]} volumes (shape {values.shape}); choose one of them"
        )
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim == 3 and values.shape[2] in (3, 4) and min(values.shape[:2]) > 8:
        raise InputError(f"{name} has shape {values.shape}: a picture in colours; convert it to grey values")
    if values.ndim not in (2, 3):
        raise InputError(f"{name} has shape {values.shape}; expected an image of two or three axes")
    return np.ascontiguousarray(values, dtype=np.float32)


def _nifti(path: Path) -> Image:
    import nibabel

    loaded = nibabel.load(path)
    affine = np.asarray(loaded.affine, dtype=np.float64)
    size = float(np.abs(np.linalg.det(affine[:3, :3])))
    if not np.isfinite(affine).all() or size < 1e-9:
        raise InputError(f"the affine of {path.name} is singular; repair its header")
    header = loaded.header
    if int(header["qform_code"]) > 0 and int(header["sform_code"]) > 0:
        other = header.get_qform()
        if np.sign(np.linalg.det(other[:3, :3])) != np.sign(np.linalg.det(affine[:3, :3])):
            raise InputError(
                f"the sform and the qform of {path.name} are mirror images of each other; repair its header"
            )
    known = int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0
    values = _squeezed(np.asarray(loaded.dataobj), path.name)
    return Image(path.name, values, Grid(values.shape, affine, known))


def _array(path: Path) -> Image:
    values = _squeezed(np.load(path, allow_pickle=False), path.name)
    return Image(path.name, values, Grid(values.shape, np.eye(4), known=False), rows=True)


def _picture(path: Path) -> Image:
    from PIL import Image as Pillow

    with Pillow.open(path) as opened:
        if opened.mode not in ("L", "I", "I;16", "F", "1"):
            raise InputError(f"{path.name} has colours of mode {opened.mode}; convert it to grey values")
        values = _squeezed(np.asarray(opened), path.name)
    return Image(path.name, values, Grid(values.shape, np.eye(4), known=False), rows=True)


def _itk(path: Path) -> Image:
    import SimpleITK

    loaded = SimpleITK.ReadImage(str(path))
    if loaded.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{path.name} has {loaded.GetNumberOfComponentsPerPixel()} components; expected one")
    values = _squeezed(SimpleITK.GetArrayFromImage(loaded).T, path.name)
    return Image(path.name, values, Grid(values.shape, affine_of(loaded)))


def affine_of(image: object) -> Float[np.ndarray, "4 4"]:
    """Voxel (x, y, z) to RAS mm of a SimpleITK image."""
    d = image.GetDimension()  # type: ignore[attr-defined]
    direction = np.eye(3)
    direction[:d, :d] = np.asarray(image.GetDirection()).reshape(d, d)  # type: ignore[attr-defined]
    spacing, origin = np.ones(3), np.zeros(3)
    spacing[:d], origin[:d] = image.GetSpacing(), image.GetOrigin()  # type: ignore[attr-defined]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    turned: np.ndarray = LPS @ affine
    return turned


def on_grid(labels: Image, image: Image) -> tuple[Int[np.ndarray, "*grid"], str | None]:
    """Labels on the grid of their image, by the nearest voxel where they come on another; and a notice then.

    Raises:
        InputError: where the affines do not say how.
    """
    same = labels.grid.shape == image.grid.shape
    if same and (
        not (labels.grid.known and image.grid.known)
        or np.allclose(labels.grid.affine, image.grid.affine, atol=1e-3)
    ):
        return labels.values.astype(np.int64), None
    if not (labels.grid.known and image.grid.known):
        raise InputError(
            f"{labels.name} has shape {labels.grid.shape} and {image.name} {image.grid.shape}, and no affine "
            "says how they lie; give both on one grid"
        )
    from invdiff_deformation.grid import between

    to_labels = torch.from_numpy(between(image.grid, labels.grid))
    still = torch.zeros((1, image.grid.dimensions, *image.grid.shape), dtype=torch.float64)
    values = torch.from_numpy(labels.values.astype(np.float64))[None, None]
    found = flow.warp(values, still, to_moving=to_labels, mode="nearest", padding="zeros")[0, 0]
    return found.numpy().astype(np.int64), f"{labels.name} was resampled to the grid of {image.name}"


@dataclass(frozen=True)
class Points:
    """Points with what was seen of them.

    Attributes:
        fixed: voxels of the fixed grid.
        vectors: displacement seen at each, in world mm (RAS).
        std: of each, in mm.
    """

    fixed: Float[np.ndarray, "n d"]
    vectors: Float[np.ndarray, "n 3"]
    std: Float[np.ndarray, "n"]


def read_points(
    path: Path, fixed: Grid, moving: Grid, frame: str, std: float, kind: str = "landmarks"
) -> Points:
    """Landmarks (`fixed_x, fixed_y, fixed_z, moving_x, ...`) or displacements (`x, y, z, ux, uy, uz`) from a
    CSV.

    A column `std` (mm) overrides the common one. In frame `voxels` the columns are array indices (a plane
    needs no z), vectors in voxels of the fixed grid; else mm.

    Raises:
        InputError: for a missing column or number, points outside the image, or duplicates that disagree.
    """
    if frame not in FRAMES:
        raise InputError(f"operator.frame is {frame!r}; expected one of {', '.join(FRAMES)}")
    if not std > 0:
        raise InputError(f"operator.point_std is {std:g}; expected a standard deviation above zero, in mm")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    axes = "xyz" if frame != "voxels" or fixed.dimensions == 3 else "xy"
    first = [f"fixed_{a}" for a in axes] if kind == "landmarks" else list(axes)
    second = [f"moving_{a}" for a in axes] if kind == "landmarks" else [f"u{a}" for a in axes]
    if not rows:
        raise InputError(f"{path.name} holds no points; expected columns {', '.join([*first, *second])}")
    missing = [name for name in (*first, *second) if name not in rows[0]]
    if missing:
        raise InputError(
            f"{path.name} has no column {', '.join(missing)}; expected {', '.join([*first, *second])}, and "
            "std where points differ"
        )
    table = np.empty((len(rows), 2 * len(axes) + 1))
    for number, row in enumerate(rows):
        for column, name in enumerate((*first, *second)):
            table[number, column] = _number(row[name], path.name, number, name)
        given = row.get("std")
        table[number, -1] = std if given in (None, "") else _number(given, path.name, number, "std")
    here, there = table[:, : len(axes)], table[:, len(axes) : -1]
    if bool((table[:, -1] <= 0).any()):
        raise InputError(
            f"{path.name} has a std that is not above zero in row {int(table[:, -1].argmin()) + 1}"
        )
    turn = np.array([-1.0, -1.0, 1.0]) if frame == "LPS" else np.ones(len(axes))
    if frame == "voxels":
        start = here
        world = fixed.world(here)
        ends = moving.world(there) if kind == "landmarks" else fixed.world(here + there)
        vectors = ends - world
    else:
        full = fixed.voxels(here * turn)
        start = full[:, : fixed.dimensions]
        vectors = (there - here) * turn if kind == "landmarks" else there * turn
        if fixed.dimensions == 2 and float(np.abs(full[:, 2]).max()) > 1:
            raise InputError(f"points of {path.name} lie off the plane of the fixed image; check the frame")
    outside = ((start < -0.5) | (start > np.asarray(fixed.shape) - 0.5)).any(axis=1)
    if bool(outside.any()):
        in_array = ((here >= -0.5) & (here <= np.asarray([*fixed.shape, 1][: len(axes)]) - 0.5)).all()
        hint = "they look like voxels: set operator.frame=voxels" if in_array else "check operator.frame"
        raise InputError(
            f"{int(outside.sum())} of {len(rows)} points of {path.name} lie outside the fixed image, "
            f"the first in row {int(outside.argmax()) + 1}; {hint}"
        )
    _, group = np.unique(np.round(start, 6), axis=0, return_inverse=True)
    for one in range(int(group.max()) + 1):
        same = vectors[group.reshape(-1) == one]
        if len(same) > 1 and float(np.ptp(same, axis=0).max()) > 1e-6:
            raise InputError(f"{path.name} gives one fixed point two places in the moving image")
    return Points(start, vectors, table[:, -1])


def _number(text: str | None, name: str, row: int, column: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(f"{name}, row {row + 1}: {column} is {text!r}; expected a number")
    return value
