"""Classical upsampling, each from the data alone."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import Estimates, Tick
from invdiff_superres import resampling
from invdiff_superres.operators import LUMA, Separable

TITLES = {
    "nearest": "nearest",
    "bicubic": "bicubic",
    "lanczos": "Lanczos-3",
    "consistent": "Lanczos-3, made consistent",
}


def upsampled(operator: Separable, y: Float[Tensor, "*measured y x"], kernel: str) -> Float[Tensor, "*c Y X"]:
    """Interpolation of the data to the size of x; data of mixed colours become equal channels."""
    channels, height, width = operator.event_shape[-3:]
    rows, columns = (
        torch.from_numpy(
            np.eye(size)
            if size == full
            else resampling.up(size, full // size, kernel)
            if kernel != "nearest"
            else np.repeat(np.eye(size), full // size, axis=0)
        ).to(y)
        for size, full in zip(operator.data_shape[-2:], (height, width), strict=True)
    )
    image = rows @ y @ columns.mT
    return image if image.shape[-3] == channels else image.expand(channels, -1, -1).clone()


def all_baselines(operator: Separable, y: Float[Tensor, "*measured y x"], tick: Tick) -> Estimates:
    """Nearest, bicubic, Lanczos-3, and `x + A^+ (y - A x)` from Lanczos-3.

    The last is the image nearest to Lanczos' that gives the data exactly: where back-projection converges to.
    """
    found = {}
    for name in ("nearest", "bicubic", "lanczos"):
        found[name] = upsampled(operator, y, name)
        tick()
    start = found["lanczos"]
    found["consistent"] = start + operator.minimum_norm((y - operator(start[None])[0])[None])[0]
    tick()
    return found


def grey_of(image: Float[Tensor, "*batch c y x"]) -> Float[Tensor, "*batch 1 y x"]:
    """Luminance of RGB, as the mixed operator measures it."""
    weights = torch.tensor(LUMA, dtype=image.dtype, device=image.device)
    return (image * weights[:, None, None]).sum(-3, keepdim=True)
