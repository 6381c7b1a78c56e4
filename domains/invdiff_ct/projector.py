"""The projector: line integrals as one sparse matrix, with its exact adjoint.

Joseph's method (IEEE TMI 1:192, 1982): along the image axis that a ray crosses
fastest, one linear interpolation between two pixels a row (or column), times
the length of ray between rows,

    (A x)_ray = sum_rows  pixel / |cos|  * ( (1 - a) x[j] + a x[j + 1] ),

in mm times the unit of x. The matrix and its transpose are kept in compressed
rows, so adjointness is exact and many images are one product.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff import InputError, LinearOperator
from invdiff_ct.geometry import Geometry

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


def _blocks(geometry: Geometry, size: int, pixel_mm: float) -> Iterator[tuple[Any, Any, Any]]:
    for view in range(len(geometry.angles)):
        pixels, weights = interpolation(geometry, view, size, pixel_mm)
        kept = weights.reshape(geometry.detectors, -1) > 0
        yield (
            pixels.reshape(geometry.detectors, -1)[kept].astype(np.int32),
            weights.reshape(geometry.detectors, -1)[kept].astype(np.float32),
            kept.sum(axis=1),
        )


class _Product(torch.autograd.Function):
    """x @ M^T with the stored transpose as its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, projector: Projector, back: bool) -> Tensor:
        ctx.projector, ctx.back = projector, back
        matrix = projector.matrix(back, x)
        if len(x) == 1:
            return torch.mv(matrix, x[0])[None]  # half the time of a product with one column
        return torch.mm(matrix, x.mT.contiguous()).mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradient, ctx.projector, not ctx.back), None, None


class Projector(LinearOperator):
    """`w * (A x) * scale`: x [batch, 1, y, x] to data [batch, view, detector].

    Args:
        geometry: the rays.
        size: pixels along a side of the square image, centred on the rotation axis.
        pixel_mm: their spacing.

    `weights` [view, detector] whiten data of unequal noise (1 / std_i up to a factor), which makes
    them Gaussian with one level; `scale` makes the norm 1. Both are 1 until `scaled` sets them.

    Raises:
        InputError: where the source lies inside the image, no ray meets it, or the matrix is too large.
    """

    def __init__(self, geometry: Geometry, size: int, pixel_mm: float) -> None:
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
        columns, values, counts = zip(*_blocks(geometry, size, pixel_mm), strict=True)
        starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
        if starts[-1] == 0:
            raise InputError("no ray meets the image; check pixel_mm, pitch_mm and the rotation centre")
        from scipy.sparse import csr_matrix

        matrix = csr_matrix(
            (np.concatenate(values), np.concatenate(columns), starts),
            shape=(int(np.prod(self.data_shape)), size * size),
        )
        self._parts = {False: _parts(matrix), True: _parts(matrix.T.tocsr())}
        self._moved: dict[tuple[bool, torch.dtype, str], tuple[Tensor, Tensor, Tensor]] = {}
        with warnings.catch_warnings():
            # torch calls compressed rows a beta feature, once; what we use of it is tested.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
            self.matrix(False, torch.zeros(()))
        self.weights: Tensor | None = None
        self.scale = 1.0

    def matrix(self, back: bool, like: Tensor) -> Tensor:
        """The matrix (or its transpose) in the dtype and on the device of `like`."""
        starts, columns, values = self._parts[back]
        if like.dtype != values.dtype or like.device != values.device:
            key = (back, like.dtype, str(like.device))
            if key not in self._moved:
                moved = (starts.to(like.device), columns.to(like.device), values.to(like))
                self._moved[key] = moved
            starts, columns, values = self._moved[key]
        rows, pixels = self.data_shape[-2] * self.data_shape[-1], self.size**2
        shape = (pixels, rows) if back else (rows, pixels)
        return torch.sparse_csr_tensor(starts, columns, values, size=shape, check_invariants=False)

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
        from scipy.sparse import csr_matrix

        starts, columns, values = (part.numpy() for part in self._parts[False])
        count, detectors = self.data_shape[-2:]
        matrix = csr_matrix((values, columns, starts), shape=(count * detectors, self.size**2))
        rows = (np.asarray(views)[:, None] * detectors + np.arange(detectors)).ravel()
        out = Projector.__new__(Projector)
        out.__dict__.update(self.__dict__)
        out.__dict__.pop("_norms", None)
        kept = matrix[rows]
        out._parts, out._moved = {False: _parts(kept), True: _parts(kept.T.tocsr())}, {}
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
        y = _Product.apply(x.reshape(-1, self.size**2), self, False)
        return self._weighted(y.reshape(-1, *self.data_shape))

    def adjoint(self, y: Float[Tensor, "batch *slice view detector"]) -> Float[Tensor, "batch *slice 1 y x"]:
        rows = self.data_shape[-2] * self.data_shape[-1]
        x = _Product.apply(self._weighted(y).reshape(-1, rows), self, True)
        return x.reshape(-1, *self.event_shape)

    def data_size(self, y: Float[Tensor, "*data"]) -> int:
        """Rays that meet the image and have a weight above zero."""
        starts = self._parts[False][0]
        meets = (starts[1:] > starts[:-1]).reshape(self.data_shape[-2:]).expand(self.data_shape)
        return int(meets.sum() if self.weights is None else (meets & (self.weights > 0)).sum())


def _parts(matrix: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Row starts, columns and values: plain tensors, which can be copied and pickled."""
    starts, columns = (torch.from_numpy(part.astype(np.int32)) for part in (matrix.indptr, matrix.indices))
    return starts, columns, torch.from_numpy(matrix.data)
