"""Projections of an image, never made with the operator that reconstructs it.

The data come from a grid at least twice as fine: the image itself where it is
reconstructed at half its size or less (the truth is then the mean over blocks), else the
image with every pixel split in four.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from invdiff import InputError, Noise, keyed_stream
from invdiff_ct.geometry import Geometry
from invdiff_ct.projector import line_integrals


def squared(hu: Float[np.ndarray, "y x"]) -> Float[np.ndarray, "side side"]:
    """The slice in a square of an even number of pixels, air around it."""
    side = max(hu.shape)
    side += side % 2
    out = np.full((side, side), -1000.0, dtype=np.float32)
    top, left = (side - hu.shape[0]) // 2, (side - hu.shape[1]) // 2
    out[top : top + hu.shape[0], left : left + hu.shape[1]] = hu
    return out


def truth_and_fine(
    x: Float[np.ndarray, "side side"], size: int
) -> tuple[Float[np.ndarray, "size size"], Float[np.ndarray, "fine fine"]]:
    """The truth on the reconstruction grid and the image that is projected.

    Raises:
        InputError: where `size` does not divide the image's side.
    """
    side = len(x)
    if size < 16 or side % size:
        raise InputError(
            f"operator.size is {size} and the image has {side} pixels a side; choose a divisor of it"
        )
    block = side // size
    truth = x.reshape(size, block, size, block).mean(axis=(1, 3))
    fine = x if block > 1 else np.kron(x, np.ones((2, 2), dtype=x.dtype))
    return truth, fine


def simulated_lines(
    fine: Float[np.ndarray, "fine fine"], width_mm: float, geometry: Geometry
) -> Float[np.ndarray, "views detectors"]:
    """Line integrals in mm of an image of that width."""
    return line_integrals(fine, width_mm / len(fine), geometry)


def simulated_counts(
    lines: Float[np.ndarray, "views detectors"],
    unit: float,
    flux: float,
    noise: Noise | None,
    seed: int,
    item: int,
) -> Float[np.ndarray, "views detectors"]:
    """Counts of rays of `unit * lines`; Poisson with `flux`, or from a noise model of the core."""
    generator = keyed_stream(seed, item)
    transmission = torch.from_numpy(np.exp(-unit * lines))
    if noise is not None:
        return noise.sample(transmission, generator).double().numpy()
    return torch.poisson(flux * transmission, generator=generator).numpy()
