"""The projector: line integrals as one sparse matrix, with its exact adjoint.

Joseph's method (IEEE TMI 1:192, 1982): along the image axis that a ray crosses
fastest, one linear interpolation between two pixels a row (or column), times
the length of ray between rows,

    (A x)_ray = sum_rows  pixel / |cos|  * ( (1 - a) x[j] + a x[j + 1] ),

in mm times the unit of x. ASTRA's kernels can fill the matrix instead (see `astra`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from invdiff import InputError, LinearOperator
from invdiff_ct.astra import KERNELS, astra_matrix
from invdiff_ct.geometry import Geometry
from invdiff_ct.sparse import SparseMatrix

LARGEST = 4e8  # non-zeros, about 6 GB with the transpose


def interpolation(
    geometry: Geometry, view: int, size: int, pixel_mm: float
) -> tuple[Int[np.ndarray, "detectors size 2"], Float[np.ndarray, "detectors size 2"]]:
    """Pixels (flat index) and weights in mm of every ray of a view; weight 0 outside the image."""
    point, direction = geometry.rays(view)
    middle = (size - 1) / 2
    steps = np.arange(size)
    along_y = np.abs(direction[:, 1]) >= np.abs(direction[:, 0])
    main = np.where(along_y, 1, 0)[:, None]
    side = 1 - main
    # Coordinates of the crossed rows (y falls with the row) or columns, in mm.
    row_y, column_x = (middle - steps) * pixel_mm, (steps - middle) * pixel_mm
    crossed = np.where(along_y[:, None], row_y, column_x)
    take = np.take_along_axis
    slope = take(direction, side, 1) / take(direction, main, 1)
    other = take(point, side, 1) + (crossed - take(point, main, 1)) * slope
    position = np.where(along_y[:, None], other / pixel_mm + middle, middle - other / pixel_mm)
    low = np.floor(position)
    part = position - low
    near = low[..., None] + np.array([0, 1])
    step_mm = pixel_mm / np.abs(take(direction, main, 1))
    weight = np.stack([1 - part, part], axis=-1) * step_mm[..., None]
    inside = (near >= 0) & (near < size)
    near = np.where(inside, near, 0).astype(np.int64)
    line = steps[None, :, None]
    flat = np.where(along_y[:, None, None], line * size + near, near * size + line)
    return flat, np.where(inside, weight, 0.0)


def line_integrals(
    image: Float[np.ndarray, "size size"], pixel_mm: float, geometry: Geometry
) -> Float[np.ndarray, "views detectors"]:
    """`A x` without the matrix, in mm times the unit of the image (float64)."""
    flat = image.astype(np.float64).ravel()
    out = np.empty((len(geometry.angles), geometry.detectors))
    for view in range(len(out)):
        pixels, weights = interpolation(geometry, view, len(image), pixel_mm)
        out[view] = (flat[pixels] * weights).sum(axis=(1, 2))
    return out


def joseph(geometry: Geometry, size: int, pixel_mm: float) -> Any:
    """The scipy matrix of `line_integrals`, in compressed rows."""
    from scipy.sparse import csr_matrix

    columns, values, counts = [], [], []
    for view in range(len(geometry.angles)):
        pixels, weights = interpolation(geometry, view, size, pixel_mm)
        kept = weights.reshape(geometry.detectors, -1) > 0
        columns.append(pixels.reshape(geometry.detectors, -1)[kept].astype(np.int32))
        values.append(weights.reshape(geometry.detectors, -1)[kept].astype(np.float32))
        counts.append(kept.sum(axis=1))
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    shape = (len(geometry.angles) * geometry.detectors, size * size)
    return csr_matrix((np.concatenate(values), np.concatenate(columns), starts), shape=shape)


class Projector(LinearOperator):
    """`w * (A x) * scale`: x [batch, 1, y, x] to data [batch, view, detector].

    Args:
        geometry: the rays.
        size: pixels along a side of the square image, centred on the rotation axis.
        pixel_mm: their spacing.
        kernel: how a ray weighs pixels, joseph or one of `astra.KERNELS`.

    `weights` [view, detector] whiten data of unequal noise (1 / std_i up to a factor), which makes
    them Gaussian with one level; `scale` makes the norm 1. Both are 1 until `scaled` sets them.

    Raises:
        InputError: where the source lies inside the image, no ray meets it, or the matrix is too large.
    """

    def __init__(self, geometry: Geometry, size: int, pixel_mm: float, kernel: str = "joseph") -> None:
        if kernel != "joseph" and kernel not in KERNELS:
            raise InputError(
                f"operator.kernel is {kernel!r}; expected joseph or, with the astra-toolbox, "
                + ", ".join(KERNELS)
            )
        if geometry.beam != "parallel" and geometry.source_axis_mm <= size * pixel_mm * 2**-0.5:
            raise InputError(
                f"the source is {geometry.source_axis_mm:g} mm from the axis, inside the image of "
                f"{size * pixel_mm:g} mm; give source_axis_mm, operator.pixel_mm or operator.size"
            )
        entries = 2 * len(geometry.angles) * geometry.detectors * size
        if entries > LARGEST:
            raise InputError(
                f"{len(geometry.angles)} views of {geometry.detectors} detectors on {size} x {size} pixels "
                f"need a matrix of {entries:.1e} entries; use fewer views or a smaller operator.size"
            )
        self.geometry, self.size, self.pixel_mm = geometry, size, pixel_mm
        self.slices: int | None = None
        self.event_shape: tuple[int, ...] = (1, size, size)
        self.data_shape: tuple[int, ...] = (len(geometry.angles), geometry.detectors)
        matrix = (joseph if kernel == "joseph" else astra_matrix(kernel))(geometry, size, pixel_mm)
        if matrix.nnz == 0:
            raise InputError("no ray meets the image; check pixel_mm, pitch_mm and the rotation centre")
        self._matrix = SparseMatrix(matrix)
        self.weights: Tensor | None = None
        self.scale = 1.0

    def scaled(self, weights: Float[Tensor, "*slice view detector"] | None = None) -> Projector:
        """This projector with rows weighted and its norm brought to 1; the matrix is shared."""
        out = self.unweighted()
        out.weights = weights
        scale = 1 / out.norm(self.event_shape)
        out.__dict__.pop("_norms", None)
        out.scale = scale
        return out

    def unweighted(self) -> Projector:
        """This projector as it was built: line integrals in mm."""
        out = Projector.__new__(Projector)
        out.__dict__.update(self.__dict__)
        out.__dict__.pop("_norms", None)
        out.weights, out.scale = None, 1.0
        return out

    def subset(self, views: Sequence[int]) -> Projector:
        """The same rays of some of the views, with the same weights and scale."""
        detectors = self.data_shape[-1]
        rows = (np.asarray(views)[:, None] * detectors + np.arange(detectors)).ravel()
        out = Projector.__new__(Projector)
        out.__dict__.update(self.__dict__)
        out.__dict__.pop("_norms", None)
        out._matrix = self._matrix.rows(rows)
        out.geometry = self.geometry.views(np.asarray(views))
        out.data_shape = (len(views), detectors)
        out.weights = None if self.weights is None else self.weights[..., list(views), :]
        return out

    def stacked(self, slices: int) -> Projector:
        """This projector on a stack: x [batch, slice, 1, y, x] to [batch, slice, view, detector]."""
        out = self.unweighted()
        out.slices = slices
        out.event_shape, out.data_shape = (slices, 1, self.size, self.size), (slices, *self.data_shape[-2:])
        return out

    def single(self) -> Projector:
        """The projector of one slice of a stack."""
        out = self.unweighted()
        out.slices = None
        out.event_shape, out.data_shape = self.event_shape[-3:], self.data_shape[-2:]
        return out

    def whiten(self, y: Float[Tensor, "*batch view detector"]) -> Float[Tensor, "*batch view detector"]:
        """Line integrals of x in mm, to the units of this operator's output."""
        return self._weighted(y)

    def _weighted(self, y: Tensor) -> Tensor:
        return y * self.scale if self.weights is None else y * (self.weights * self.scale).to(y)

    def forward(self, x: Float[Tensor, "batch *slice 1 y x"]) -> Float[Tensor, "batch *slice view detector"]:
        y = self._matrix.times(x.reshape(-1, self.size**2))
        return self._weighted(y.reshape(-1, *self.data_shape))

    def adjoint(self, y: Float[Tensor, "batch *slice view detector"]) -> Float[Tensor, "batch *slice 1 y x"]:
        rows = self.data_shape[-2] * self.data_shape[-1]
        x = self._matrix.transposed(self._weighted(y).reshape(-1, rows))
        return x.reshape(-1, *self.event_shape)

    def data_size(self, y: Float[Tensor, "*data"]) -> int:
        """Rays that meet the image and have a weight above zero."""
        meets = self._matrix.occupied().reshape(self.data_shape[-2:]).expand(self.data_shape)
        return int(meets.sum() if self.weights is None else (meets & (self.weights > 0)).sum())
