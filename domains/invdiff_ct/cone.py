"""Cone beam: line integrals from a point source to a flat detector, through a volume, as one sparse matrix.

Joseph's method in three dimensions: along the in-plane axis that a ray crosses faster, one bilinear
interpolation between the four voxels around the ray in every plane, times the length of ray between planes,

    (A x)_ray = sum_planes  voxel / |cos|  * ( bilinear interpolation of x at the ray ),

in mm times the unit of x. z is the rotation axis; in the plane everything is as in `geometry`. The adjoint is
exact, which the unmatched GPU kernels of other packages do not offer and samplers that solve normal equations
need; the price is memory, 4 views rows columns size entries at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff import InputError, LinearOperator
from invdiff_ct.projector import LARGEST
from invdiff_ct.sparse import SparseMatrix


@dataclass(frozen=True)
class ConeGeometry:
    """One circular scan of a flat detector.

    Attributes:
        angles: view angles in radians.
        rows, columns: detector elements along z and across.
        row_mm, column_mm: their spacing on the detector.
        source_axis_mm, axis_detector_mm: distances of the source and of the detector.

    The rotation axis falls on the middle column, the plane of the source on the middle row.
    """

    angles: Float[np.ndarray, "views"]
    rows: int
    columns: int
    row_mm: float
    column_mm: float
    source_axis_mm: float = 541.0
    axis_detector_mm: float = 408.0

    def __post_init__(self) -> None:
        if len(self.angles) < 1 or self.rows < 1 or self.columns < 2:
            raise InputError(
                f"the scan has {len(self.angles)} views of {self.rows} x {self.columns} detectors; "
                "at least one view, one row and two columns are needed"
            )
        for name in ("row_mm", "column_mm", "source_axis_mm"):
            length = getattr(self, name)
            if not (length > 0 and math.isfinite(length)):
                raise InputError(f"{name} is {length:g}; give a length above zero in millimetres")

    def rays(self, view: int) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "rays 3"]]:
        """The source and the unit directions of a view as (x, y, z) in mm, row by row."""
        t = self.angles[view]
        e, f = np.array([math.cos(t), math.sin(t), 0]), np.array([-math.sin(t), math.cos(t), 0])
        across = (np.arange(self.columns) - (self.columns - 1) / 2) * self.column_mm
        up = (np.arange(self.rows) - (self.rows - 1) / 2) * self.row_mm
        distance = self.source_axis_mm + self.axis_detector_mm
        direction = distance * f + across[None, :, None] * e + up[:, None, None] * np.array([0.0, 0.0, 1.0])
        direction = direction.reshape(-1, 3)
        return -self.source_axis_mm * f, direction / np.linalg.norm(direction, axis=1, keepdims=True)


def interpolation(
    geometry: ConeGeometry, view: int, shape: tuple[int, int, int], voxel_mm: float, slice_mm: float
) -> tuple[Int[np.ndarray, "rays planes 4"], Float[np.ndarray, "rays planes 4"]]:
    """Voxels (flat index of `shape` = [z, y, x]) and weights in mm of every ray; weight 0 outside."""
    source, direction = geometry.rays(view)
    slices, height, width = shape
    along_y = np.abs(direction[:, 1]) >= np.abs(direction[:, 0])
    main = np.where(along_y, 1, 0)
    rays, planes = np.arange(len(direction)), np.arange(max(height, width))
    column_x, row_y = (planes - (width - 1) / 2) * voxel_mm, ((height - 1) / 2 - planes) * voxel_mm
    length = (np.where(along_y[:, None], row_y, column_x) - source[main][:, None]) / direction[rays, main][
        :, None
    ]
    other = (source[1 - main][:, None] + length * direction[rays, 1 - main][:, None]) / voxel_mm
    across = np.where(along_y[:, None], other + (width - 1) / 2, (height - 1) / 2 - other)
    level = (source[2] + length * direction[:, 2:]) / slice_mm + (slices - 1) / 2

    def neighbours(position: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low = np.floor(position)
        part = position - low
        near = low[..., None] + np.array([0, 1])
        share = np.stack([1 - part, part], axis=-1) * ((near >= 0) & (near < count))
        return np.clip(near, 0, count - 1).astype(np.int64), share

    near, share = neighbours(across, np.where(along_y, width, height)[:, None, None])
    floor, part = neighbours(level, np.array(slices))
    line = np.minimum(planes, np.where(along_y, height, width)[:, None] - 1)[..., None]
    inside = planes < np.where(along_y, height, width)[:, None]
    in_plane = np.where(along_y[:, None, None], line * width + near, near * width + line)
    flat = floor[..., :, None] * (height * width) + in_plane[..., None, :]
    weight = part[..., :, None] * share[..., None, :]
    step_mm = voxel_mm / np.abs(direction[rays, main])
    weight = weight * (step_mm[:, None] * inside)[..., None, None]
    return flat.reshape(*across.shape, 4), weight.reshape(*across.shape, 4)


class ConeBeam(LinearOperator):
    """`scale * A x`: x [batch, *slice, y, x] (slices in rising z) to data [batch, view, row, column].

    Args:
        geometry: the rays.
        shape: event shape; the last two axes are y and x, all before them are slices. Centred on the axis.
        voxel_mm, slice_mm: spacing of voxels in the plane and along z.

    Raises:
        InputError: where the source lies inside the volume, a ray is steeper along z than in the plane, no
            ray meets the volume, or the matrix is too large.
    """

    def __init__(
        self, geometry: ConeGeometry, shape: tuple[int, ...], voxel_mm: float = 1.0, slice_mm: float = 1.0
    ) -> None:
        size = max(shape[-2:])
        radius = math.hypot(*shape[-2:]) / 2 * voxel_mm
        if geometry.source_axis_mm <= radius:
            raise InputError(
                f"the source is {geometry.source_axis_mm:g} mm from the axis, inside the volume, whose "
                f"corners are at {radius:g} mm; give source_axis_mm or a smaller voxel_mm"
            )
        entries = 4 * len(geometry.angles) * geometry.rows * geometry.columns * size
        if entries > LARGEST:
            raise InputError(
                f"{len(geometry.angles)} views of {geometry.rows} x {geometry.columns} detectors through "
                f"{size} planes need a matrix of {entries:.1e} entries; use fewer views, detectors or voxels"
            )
        steep = geometry.rows * geometry.row_mm / 2
        if steep > geometry.source_axis_mm + geometry.axis_detector_mm:
            raise InputError("rays climb steeper than 45 degrees; use fewer rows of detectors")
        self.geometry, self.scale = geometry, 1.0
        self.event_shape = shape
        self.data_shape = (len(geometry.angles), geometry.rows, geometry.columns)
        matrix = self._rows((math.prod(shape[:-2]), shape[-2], shape[-1]), voxel_mm, slice_mm)
        if matrix.nnz == 0:
            raise InputError("no ray meets the volume; check voxel_mm, slice_mm and the detector's spacing")
        self._matrix = SparseMatrix(matrix)

    def _rows(self, shape: tuple[int, int, int], voxel_mm: float, slice_mm: float) -> Any:
        from scipy.sparse import csr_matrix

        columns, values, counts = [], [], []
        for view in range(len(self.geometry.angles)):
            flat, weight = interpolation(self.geometry, view, shape, voxel_mm, slice_mm)
            flat, weight = flat.reshape(len(flat), -1), weight.reshape(len(flat), -1)
            kept = weight > 0
            columns.append(flat[kept].astype(np.int32))
            values.append(weight[kept].astype(np.float32))
            counts.append(kept.sum(axis=1))
        starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
        size = (math.prod(self.data_shape), math.prod(shape))
        return csr_matrix((np.concatenate(values), np.concatenate(columns), starts), shape=size)

    def scaled(self) -> ConeBeam:
        """This operator with its norm brought to 1."""
        self.scale = 1.0
        self.scale = 1 / self.norm(self.event_shape)
        self.__dict__.pop("_norms", None)
        return self

    def forward(self, x: Float[Tensor, "batch *slice y x"]) -> Float[Tensor, "batch view row column"]:
        y = self._matrix.times(x.reshape(len(x), -1)) * self.scale
        return y.reshape(-1, *self.data_shape)

    def adjoint(self, y: Float[Tensor, "batch view row column"]) -> Float[Tensor, "batch *slice y x"]:
        x = self._matrix.transposed(y.reshape(len(y), -1) * self.scale)
        return x.reshape(-1, *self.event_shape)

    def data_size(self, y: Float[Tensor, "*data"]) -> int:
        """Rays that meet the volume."""
        return int(torch.count_nonzero(self._matrix.occupied()))
