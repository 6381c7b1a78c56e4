"""A sparse matrix and its transpose in compressed rows: adjointness is exact, many images are one product."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Parts = tuple[Tensor, Tensor, Tensor]


class SparseMatrix:
    """`M` [rows, columns] for products with batches on either side, on any device and in any precision.

    Args:
        matrix: a scipy matrix in compressed rows.

    Plain tensors are kept (row starts, columns, values), which can be copied and pickled.
    """

    def __init__(self, matrix: Any) -> None:
        self.shape: tuple[int, int] = matrix.shape
        self._parts = {False: _parts(matrix), True: _parts(matrix.T.tocsr())}
        self._moved: dict[tuple[bool, torch.dtype, str], Parts] = {}
        with warnings.catch_warnings():
            # torch calls compressed rows a beta feature, once; what we use of it is tested.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
            self.tensor(False, torch.zeros(()))

    def tensor(self, back: bool, like: Tensor) -> Tensor:
        """The matrix (or its transpose) in the dtype and on the device of `like`."""
        starts, columns, values = self._parts[back]
        if like.dtype != values.dtype or like.device != values.device:
            key = (back, like.dtype, str(like.device))
            if key not in self._moved:
                self._moved[key] = (starts.to(like.device), columns.to(like.device), values.to(like))
            starts, columns, values = self._moved[key]
        shape = self.shape[::-1] if back else self.shape
        return torch.sparse_csr_tensor(starts, columns, values, size=shape, check_invariants=False)

    def times(self, x: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch rows"]:
        """`M x`."""
        product: Tensor = _Product.apply(x, self, False)
        return product

    def transposed(self, y: Float[Tensor, "batch rows"]) -> Float[Tensor, "batch columns"]:
        """`M^T y`."""
        product: Tensor = _Product.apply(y, self, True)
        return product

    def rows(self, index: Int[np.ndarray, "some"]) -> SparseMatrix:
        """The matrix of some of the rows."""
        from scipy.sparse import csr_matrix

        starts, columns, values = (part.numpy() for part in self._parts[False])
        return SparseMatrix(csr_matrix((values, columns, starts), shape=self.shape)[index])

    def occupied(self) -> Tensor:
        """Whether a row has any entry."""
        starts = self._parts[False][0]
        return starts[1:] > starts[:-1]


class _Product(torch.autograd.Function):
    """x @ M^T with the stored transpose as its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: SparseMatrix, back: bool) -> Tensor:
        ctx.matrix, ctx.back = matrix, back
        tensor = matrix.tensor(back, x)
        if len(x) == 1:
            return torch.mv(tensor, x[0])[None]  # half the time of a product with one column
        return torch.mm(tensor, x.mT.contiguous()).mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradient, ctx.matrix, not ctx.back), None, None


def _parts(matrix: Any) -> Parts:
    starts, columns = (torch.from_numpy(part.astype(np.int32)) for part in (matrix.indptr, matrix.indices))
    return starts, columns, torch.from_numpy(matrix.data.astype(np.float32))
