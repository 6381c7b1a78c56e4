"""One axis of a resampling: weights of a coarse sample over the fine ones.

Grids are voxel-centred: coarse sample k lies at fine position (k + 1/2) s - 1/2. Weights are normalised to
sum to one; beyond the border the index is reflected (the edge sample is repeated). `bicubic` is the cubic
kernel of Keys (IEEE TASSP 29:1153, 1981; a = -1/2) widened by s on the way down: the convention of the
field's benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from invdiff import InputError

Matrix = Float[np.ndarray, "out in"]
FWHM = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian, in its standard deviations


def cubic(t: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Keys' kernel, a = -1/2, support 2."""
    t = np.abs(t)
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def triangle(t: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Linear interpolation, support 1."""
    return np.clip(1 - np.abs(t), 0, None)


def lanczos(t: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """sinc(t) sinc(t / 3), support 3."""
    return np.where(np.abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0.0)


def box(t: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Average, support 1/2; half at the edge."""
    return np.where(np.abs(t) < 0.5 - 1e-9, 1.0, np.where(np.abs(t) <= 0.5 + 1e-9, 0.5, 0.0))


KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bicubic": (cubic, 2.0),
    "bilinear": (triangle, 1.0),
    "lanczos": (lanczos, 3.0),
    "average": (box, 0.5),
}


def weights(
    positions: Float[np.ndarray, "out"],
    size: int,
    kernel: Callable[[np.ndarray], np.ndarray],
    support: float,
    width: float = 1.0,
) -> Matrix:
    """Rows `kernel((j - position) / width)`, normalised, indices reflected into 0 .. size - 1."""
    reach = math.ceil(support * width) + 1
    near = np.floor(positions)[:, None] + np.arange(-reach, reach + 2)
    value = kernel((near - positions[:, None]) / width)
    total = value.sum(axis=1, keepdims=True)
    index = np.mod(near, 2 * size)
    index = np.where(index < size, index, 2 * size - 1 - index).astype(np.int64)
    matrix = np.zeros((len(positions), size))
    np.add.at(matrix, (np.arange(len(positions))[:, None], index), value / total)
    return matrix


def down(size: int, scale: int, kernel: str, antialias: bool = True) -> Matrix:
    """`size` samples to `size / scale`.

    Raises:
        InputError: for an unknown kernel, a scale below 2, or one that does not divide the size.
    """
    if kernel not in KERNELS:
        raise InputError(f"the kernel is {kernel!r}; expected one of {', '.join(KERNELS)}")
    function, support = KERNELS[kernel]
    return weights(_centres(size, scale), size, function, support, float(scale) if antialias else 1.0)


def gaussian(size: int, scale: int, sigma: float) -> Matrix:
    """A Gaussian point spread of std `sigma` fine samples, then every `scale`-th."""
    if not sigma > 0:
        raise InputError(f"the blur is {sigma:g} pixels wide; give a width above zero")
    return weights(_centres(size, scale), size, lambda t: np.exp(-0.5 * t**2), 5.0, sigma)


def slices(size: int, factor: int, thickness: float, profile: str) -> Matrix:
    """Thick slices: one every `factor` fine samples, each `thickness` of them thick.

    `gaussian` has the thickness as its full width at half maximum, `box` is flat over it.
    """
    if profile == "gaussian":
        return gaussian(size, factor, thickness / FWHM)
    if profile != "box":
        raise InputError(f"the slice profile is {profile!r}; expected gaussian or box")
    # A flat profile covers parts of samples: its share of each is what a triangle of two edges integrates to.
    centres = _centres(size, factor)

    def covered(t: np.ndarray) -> np.ndarray:
        return np.clip(np.minimum(t + 0.5, thickness / 2) - np.maximum(t - 0.5, -thickness / 2), 0, None)

    return weights(centres, size, covered, thickness / 2 + 1)


def up(size: int, scale: int, kernel: str) -> Matrix:
    """`size` samples to `size * scale` by interpolation with the kernel as it is."""
    function, support = KERNELS[kernel]
    return weights((np.arange(size * scale) + 0.5) / scale - 0.5, size, function, support)


def _centres(size: int, scale: int) -> Float[np.ndarray, "out"]:
    if scale < 1 or size % scale:
        raise InputError(f"a side of {size} samples is not a multiple of the scale {scale}; crop it first")
    return (np.arange(size // scale) + 0.5) * scale - 0.5
