"""The bundled phantom: a chest-like plane with a beating heart, and the deformation that was put in.

    f(x) = m(phi(x)) + noise,   phi = exp(v),   v drawn from the Gaussian prior of lengths 5, 10, 20 voxels

m is a sum of smooth shapes known at every point, so that f is not interpolated from a grid. Made once, by
`python -m invdiff_deformation.example`; spacing 2.5 x 2 mm, axes of the file turned, so that a reader that
mixes up axes, signs or spacings fails on it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from invdiff import keyed_stream
from invdiff_deformation import flow, output
from invdiff_deformation.grid import Grid
from invdiff_deformation.prior import Modes, Spectrum

SHAPE = (64, 72)
AFFINE = np.array(
    [[-2.5, 0.0, 0.0, 75.0], [0.0, 2.0, 0.0, -60.0], [0.0, 0.0, 8.0, 12.0], [0.0, 0.0, 0.0, 1.0]]
)
NOISE = 0.02
EDGE = 0.7  # mm over which a boundary fades
# Centre and half axes in mm, angle, grey value over what lies below, label.
SHAPES = (
    ((0.0, 2.0), (72.0, 60.0), 0.0, 0.35, 0),
    ((-34.0, 8.0), (22.0, 34.0), 0.2, -0.27, 1),
    ((38.0, 12.0), (18.0, 30.0), -0.2, -0.27, 1),
    ((6.0, -6.0), (25.0, 22.0), 0.5, 0.25, 2),
    ((8.0, -5.0), (15.0, 13.0), 0.5, 0.35, 3),
    ((-18.0, -14.0), (9.0, 14.0), -0.6, 0.45, 4),
    ((0.0, -46.0), (9.0, 8.0), 0.0, 0.4, 0),
    ((-2.0, 36.0), (6.0, 5.0), 0.0, 0.4, 0),
    ((-40.0, 18.0), (3.0, 4.0), 0.3, 0.5, 0),
    ((-30.0, -6.0), (4.0, 2.5), 0.9, 0.45, 0),
    ((40.0, 22.0), (3.0, 5.0), -0.5, 0.5, 0),
    ((34.0, -2.0), (2.5, 4.0), 0.4, 0.45, 0),
)


def phantom(
    points: Float[np.ndarray, "n 2"],
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Grey value and label at world points in mm."""
    grey, label = np.zeros(len(points)), np.zeros(len(points), dtype=np.int64)
    for centre, half, angle, value, name in SHAPES:
        c, s = math.cos(angle), math.sin(angle)
        along = (points - centre) @ np.array([[c, -s], [s, c]])
        radius = np.linalg.norm(along / half, axis=1)
        depth = (1 - radius) * float(np.mean(half))
        grey += value / (1 + np.exp(-np.clip(depth / EDGE, -50, 50)))
        if name:
            label[radius < 1] = name
    return grey, label


def make(folder: Path, seed: int = 4) -> None:
    """Write the two images, their labels and the displacement."""
    grid = Grid(SHAPE, AFFINE)
    modes = Modes(Spectrum(lengths=(5.0, 10.0, 20.0), strain=0.5), grid)
    z = torch.randn((1, *modes.event_shape), generator=keyed_stream(seed, 0), dtype=torch.float64)
    u = flow.exponential(modes.velocity(z), modes.squarings)[0]
    here = flow.identity(SHAPE, torch.float64)
    noise = torch.randn((2, *SHAPE), generator=keyed_stream(seed, 1), dtype=torch.float64).numpy()
    for number, (name, where) in enumerate((("moving", here), ("fixed", here + u))):
        voxels = where.flatten(1).mT.numpy()
        grey, label = phantom(grid.world(voxels)[:, :2])
        values = 1000 * (grey.reshape(SHAPE) + NOISE * noise[number])
        output.write_volume(folder / f"{name}.nii.gz", np.rint(values).astype(np.int16), grid)
        output.write_volume(folder / f"{name}_labels.nii.gz", label.reshape(SHAPE), grid)
    output.write_displacement(folder / "truth.nii.gz", u.float(), grid)


if __name__ == "__main__":
    make(Path(__file__).resolve().parent / "examples")
