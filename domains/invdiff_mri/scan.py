"""What every MR reader returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from invdiff import InputError


@dataclass(frozen=True)
class Scan:
    """One acquisition, slices first.

    Attributes:
        kspace: [slice, coil, y, x], centred, zeros where nothing was measured.
        mask: acquired samples [y, x], or None where the file does not say.
        coil_maps: [slice, coil, y, x] if the file brings them.
        noise: noise-only samples [coil, count] if the file brings them.
        reference: reference image [slice, y, x] if the file brings one.
        affine: voxel to millimetres, for NIfTI output.
        crop: (y, x) of the final image, where the readout is oversampled.
        simulated: None for measured k-space, else what was invented, in words.
        meta: what else the file said.
    """

    kspace: Complex[Tensor, "slice coil y x"]
    mask: Bool[Tensor, "y x"] | None = None
    coil_maps: Complex[Tensor, "slice coil y x"] | None = None
    noise: Complex[Tensor, "coil count"] | None = None
    reference: Float[Tensor, "slice ry rx"] | None = None
    affine: np.ndarray | None = None
    crop: tuple[int, int] | None = None
    simulated: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


MAX_COILS = 64


def guess_axes(shape: tuple[int, ...]) -> str:
    """Axis names of a bare k-space array: `coil,y,x` if one axis is shorter than 64 and no other is.

    Raises:
        InputError: where the guess is ambiguous, or the coils are on another axis.
    """
    small = [axis for axis, length in enumerate(shape) if length < MAX_COILS]
    if len(shape) == 2:
        return "y,x"
    if len(shape) == 3 and len(small) == 1:
        return ",".join({0: ("coil", "y", "x"), 1: ("y", "coil", "x"), 2: ("y", "x", "coil")}[small[0]])
    if len(shape) == 4 and shape[1] <= MAX_COILS and min(shape[2:]) > shape[1]:
        return "slice,coil,y,x"
    raise InputError(
        f"cannot tell the axes of a k-space array of shape {shape}; "
        'say which is which with input.axes="coil,y,x" (or slice, coil, y, x in the array\'s order)'
    )


def arrange(array: np.ndarray, axes: str | None, what: str) -> Complex[Tensor, "slice coil y x"]:
    """A bare array as [slice, coil, y, x], refused where the axes do not fit.

    Raises:
        InputError: real-valued data, wrong axes, coils on another axis, NaN.
    """
    if not np.iscomplexobj(array):
        raise InputError(
            f"{what} is real-valued ({array.dtype}); k-space must be complex. "
            "A magnitude image needs input.simulate=true with an image format (NIfTI, DICOM, PNG)"
        )
    if axes is None:
        names = guess_axes(array.shape)
        if names not in ("y,x", "coil,y,x", "slice,coil,y,x"):
            raise InputError(
                f"{what} has shape {array.shape}: the coils seem to be on axis "
                f'{names.split(",").index("coil")}; if so, say input.axes="{names}"'
            )
    else:
        names = axes.replace(" ", "")
    parts = names.split(",")
    known = ("slice", "coil", "y", "x")
    if len(parts) != array.ndim or set(parts) - set(known) or len(set(parts)) != len(parts):
        raise InputError(
            f'input.axes="{names}" does not name the {array.ndim} axes of shape {array.shape}; '
            "use each of slice, coil, y, x at most once"
        )
    if "y" not in parts or "x" not in parts:
        raise InputError(f'input.axes="{names}" must name both y and x')
    order = [parts.index(name) for name in known if name in parts]
    out = np.transpose(array, order)
    if "coil" not in parts:
        out = out[:, None] if "slice" in parts else out[None]
    if "slice" not in parts:
        out = out[None]
    if out.shape[1] > MAX_COILS:
        raise InputError(
            f"{what} would have {out.shape[1]} coils (shape {array.shape} read as {names}); at most "
            f"{MAX_COILS} are expected: give the axes with input.axes="
        )
    if min(out.shape[2:]) < 16:
        raise InputError(
            f"{what} would have images of {out.shape[2]}x{out.shape[3]} (shape {array.shape} read "
            f"as {names}); at least 16x16 is expected: give the axes with input.axes="
        )
    bad = ~np.isfinite(out)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"{what} holds {int(bad.sum())} samples that are NaN or infinite, the first at "
            f"(slice, coil, y, x) = {first}; repair the file or zero them and mask them out"
        )
    if not out.any():
        raise InputError(f"{what} is zero everywhere; check the file")
    return torch.from_numpy(np.ascontiguousarray(out.astype(np.complex64)))


def check_centred(kspace: Complex[Tensor, "slice coil y x"], what: str) -> None:
    """Refuse k-space whose strongest sample is far from the centre."""
    energy = kspace.abs().square().sum(dim=(0, 1))
    peak = int(energy.argmax())
    height, width = energy.shape
    row, column = divmod(peak, width)
    off = max(abs(row - height // 2) / height, abs(column - width // 2) / width)
    if off > 0.1:
        raise InputError(
            f"{what} has its strongest sample at ({row}, {column}) of {height}x{width}; expected "
            "centred k-space. Use input.shift=true if the origin is in the corner"
        )
