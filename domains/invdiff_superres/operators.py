"""Separable resampling with its closed forms: `A x = W_h x W_w^T`, channel by channel.

With `W_h = U_h diag(s_h) V_h^T` and W_w likewise, `A A^T` is diagonal in `U_h (x) U_w`:

    (A A^T + c)^-1 b = U_h [ (U_h^T b U_w) / (|m|^2 s_h^2 s_w^2 + c) ] U_w^T,

m the channel weights where colours are mixed into one. So the resolvent, the minimum-norm solution and
log-determinants cost four small products, at any image size, without iterations.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import InputError, LinearOperator, Operator
from invdiff_superres import resampling

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Separable(LinearOperator):
    """`m . (W_h x W_w^T)`: x [batch, *plane, channel, Y, X] to [batch, *plane, channel or 1, y, x].

    Args:
        rows, columns: weights [y, Y] and [x, X], each row summing to one.
        channels: of x.
        mix: weights of the channels in the one that is measured; None: every channel is.
        kind: what it is, for reports and for priors that are conditional on it.
    """

    def __init__(
        self,
        rows: Float[np.ndarray, "y Y"],
        columns: Float[np.ndarray, "x X"],
        channels: int = 1,
        mix: tuple[float, ...] | None = None,
        kind: str = "",
    ) -> None:
        if mix is not None and len(mix) != channels:
            raise InputError(f"{len(mix)} channel weights were given for {channels} channels")
        self.kind, self.scale = kind, 1.0
        self.event_shape: tuple[int, ...] = (channels, rows.shape[1], columns.shape[1])
        self.data_shape: tuple[int, ...] = (channels if mix is None else 1, rows.shape[0], columns.shape[0])
        self._rows, self._columns = torch.from_numpy(rows), torch.from_numpy(columns)
        self._mix = None if mix is None else torch.tensor(mix, dtype=torch.float64)
        self._power = 1.0 if mix is None else float(sum(weight**2 for weight in mix))
        spectra = []
        self._bases = []
        for matrix in (self._rows, self._columns):
            basis, values, _ = torch.linalg.svd(matrix, full_matrices=False)
            self._bases.append(basis)
            spectra.append(values**2)
        self._spectrum = self._power * torch.outer(*spectra)

    @property
    def mix(self) -> tuple[float, ...] | None:
        """Weights of the channels in the one that is measured, where one is."""
        return None if self._mix is None else tuple(self._mix.tolist())

    def axes(self) -> tuple[Float[np.ndarray, "y Y"], Float[np.ndarray, "x X"]]:
        """The weights along both axes."""
        return self._rows.numpy(), self._columns.numpy()

    def scaled(self) -> Separable:
        """This operator with its norm brought to 1, as published step lengths assume; data scale with it."""
        out = copy.copy(self)
        out.scale = 1 / self.norm(self.event_shape)
        out._spectrum = self._spectrum * out.scale**2
        return out

    def stacked(self, planes: int) -> Separable:
        """This operator on every plane of a stack; channels must not be mixed."""
        if self._mix is not None:
            raise InputError("a stack of planes has one channel each")
        out = copy.copy(self)
        out.event_shape, out.data_shape = (planes, *self.event_shape), (planes, *self.data_shape)
        return out

    @property
    def spectrum(self) -> Float[Tensor, "y x"]:
        """Eigenvalues of `A A^T` of one channel."""
        return self._spectrum

    def norm(
        self, shape: tuple[int, ...], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> float:
        return math.sqrt(float(self._spectrum.max()))

    def forward(self, x: Float[Tensor, "batch *channel Y X"]) -> Float[Tensor, "batch *measured y x"]:
        if self._mix is not None:
            x = torch.einsum("c,bcyx->byx", self._mix.to(x), x)[:, None]
        return self.scale * (self._rows.to(x) @ x @ self._columns.to(x).mT)

    def adjoint(self, y: Float[Tensor, "batch *measured y x"]) -> Float[Tensor, "batch *channel Y X"]:
        x = self.scale * (self._rows.to(y).mT @ y @ self._columns.to(y))
        return x if self._mix is None else self._mix.to(x)[:, None, None] * x

    def solve(
        self, b: Float[Tensor, "batch *measured y x"], gain: float, offset: float
    ) -> Float[Tensor, "batch *measured y x"]:
        """`(gain A A^T + offset)^-1 b`."""
        left, right = (basis.to(b) for basis in self._bases)
        values = (gain * self._spectrum + offset).to(b)
        return left @ ((left.mT @ b @ right) / values) @ right.mT

    def log_det(self, gain: float, offset: float) -> float:
        """`log det (gain A A^T + offset)` over all measured channels."""
        return math.prod(self.data_shape[:-2]) * float((gain * self._spectrum + offset).log().sum())

    def resolvent(
        self, rhs: Float[Tensor, "batch *channel Y X"], gamma: float
    ) -> Float[Tensor, "batch *channel Y X"]:
        return rhs - gamma * self.adjoint(self.solve(self.forward(rhs), gamma, 1.0))

    def minimum_norm(self, y: Float[Tensor, "batch *measured y x"]) -> Float[Tensor, "batch *channel Y X"]:
        """`A^T (A A^T)^-1 y`, the smallest x that gives y."""
        return self.adjoint(self.solve(y, 1.0, 0.0))


def matrices(settings: Mapping[str, Any], height: int, width: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Weights along both axes and what they are called, of the settings of an `operator` group.

    Raises:
        InputError: for a kind or a scale that is none, or sides that the scale does not divide.
    """
    kind, scale = str(settings["kernel"]), settings["scale"]
    if isinstance(scale, bool) or float(scale) != int(scale) or int(scale) < 1:
        raise InputError(f"operator.scale is {scale}; expected a whole number from 2 on")
    scale = int(scale)
    if kind == "blur":
        sigma = float(settings["blur"])
        made = [resampling.gaussian(size, scale, sigma) for size in (height, width)]
        return made[0], made[1], f"Gaussian blur of {sigma:g} pixels, then x{scale}"
    if kind == "slices":
        axis = str(settings["axis"])
        if axis not in ("x", "y"):
            raise InputError(f"operator.axis is {axis!r}; expected x or y, the axis of the thick slices")
        thickness = float(settings["thickness"] or scale)
        size = height if axis == "y" else width
        thick = resampling.slices(size, scale, thickness, str(settings["profile"]))
        other = np.eye(width if axis == "y" else height)
        rows, columns = (thick, other) if axis == "y" else (other, thick)
        return rows, columns, f"slices of {thickness:g} every {scale} along {axis}"
    if kind not in resampling.KERNELS:
        known = ", ".join((*resampling.KERNELS, "blur", "slices"))
        raise InputError(f"operator.kernel is {kind!r}; expected one of {known}")
    antialias = bool(settings["antialias"])
    made = [resampling.down(size, scale, kind, antialias) for size in (height, width)]
    return made[0], made[1], f"{kind} x{scale}" + ("" if antialias else " without antialiasing")


def resample(settings: Mapping[str, Any], shape: tuple[int, ...] | None) -> Operator:
    """The operator of the settings for events of a shape; 1 x 16 scale x 16 scale where none is known."""
    scale = int(settings["scale"])
    shape = shape or (1, 16 * scale, 16 * scale)
    if len(shape) != 3:
        raise InputError(f"the event has shape {shape}; super-resolution needs channel, y, x")
    rows, columns, kind = matrices(settings, shape[-2], shape[-1])
    return Separable(rows, columns, shape[0], kind=kind)
