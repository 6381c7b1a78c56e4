"""Make the bundled example: a chest of our own invention, in HU.

    python -m invdiff_ct.examples.make_chest [FILE]

An axial slice of ellipses with borders that wave, lungs full of branching vessels, ribs, spine,
heart with vessels, breasts of fat and muscle, and a table, on 384 x 384 pixels of 1 mm, to be
reconstructed on 192 x 192. It copies no patient; it is no draw from the prior either, so what
the example shows is not flattered by the prior knowing it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

SIDE, SIZE, PIXEL_MM = 384, 192, 1.0


def ellipse(
    cx: float, cy: float, rx: float, ry: float, angle: float = 0.0, wave: float = 0.0, lobes: int = 3
) -> np.ndarray:
    """Membership of a wavy ellipse; centre and radii in mm from the middle, y up, angle in degrees."""
    axis = (np.arange(SIDE) - (SIDE - 1) / 2) * PIXEL_MM
    u, v = axis[None, :] - cx, -axis[:, None] - cy
    t = np.deg2rad(angle)
    a, b = (u * np.cos(t) + v * np.sin(t)) / rx, (v * np.cos(t) - u * np.sin(t)) / ry
    radius = 1 + wave * np.sin(lobes * np.arctan2(b, a) + lobes)
    inside: np.ndarray = a * a + b * b < radius**2
    return inside


def vessels(
    image: np.ndarray, lung: np.ndarray, root: tuple[float, float], random: np.random.Generator
) -> None:
    """A tree of discs growing from `root` through a lung, thinner at each branching."""
    axis = (np.arange(SIDE) - (SIDE - 1) / 2) * PIXEL_MM
    side = np.sign(root[0])
    tips = [(root[0], root[1], np.pi * (side < 0) + a, 3.5) for a in (-1.2, -0.6, 0.0, 0.6, 1.2)]
    while tips:
        x, y, heading, radius = tips.pop()
        for _ in range(int(random.integers(8, 16))):
            x, y = x + 1.5 * np.cos(heading), y + 1.5 * np.sin(heading)
            heading += random.normal(0, 0.12)
            row, column = round((SIDE - 1) / 2 - y / PIXEL_MM), round((SIDE - 1) / 2 + x / PIXEL_MM)
            if not (0 <= row < SIDE and 0 <= column < SIDE) or not lung[row, column]:
                break
            disc = (axis[None, :] - x) ** 2 + (-axis[:, None] - y) ** 2 < radius**2
            image[disc & lung] = 40
        else:
            if radius > 0.8:
                for turn in (-0.5, 0.5):
                    tips.append(
                        (x, y, heading + turn * random.uniform(0.5, 1.5), radius * random.uniform(0.5, 0.8))
                    )


def chest(seed: int = 7) -> np.ndarray:
    """The slice in HU, int16 [384, 384]."""
    random = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE), -1000.0)
    body = ellipse(0, 5, 158, 108, wave=0.02, lobes=4)
    image[body] = -100
    image[ellipse(0, 3, 148, 96, wave=0.025, lobes=4)] = 45
    image[ellipse(0, 0, 131, 83, wave=0.02)] = -95
    image[ellipse(0, 0, 126, 79, wave=0.02)] = 40
    left, right = ellipse(66, 4, 50, 66, 8, 0.04, 5), ellipse(-66, 4, 52, 68, -8, 0.04, 4)
    heart = ellipse(18, 14, 46, 38, 35, 0.03)
    lungs = (left | right) & ~heart
    image[lungs] = -860 + 60 * gaussian_filter(random.standard_normal((SIDE, SIDE)), 14)[lungs] * 14
    for lung, root in ((left & ~heart, (36.0, -24.0)), (right & ~heart, (-30.0, -4.0))):
        vessels(image, lung, root, random)
    image[heart] = 45
    image[ellipse(30, 20, 20, 16, 35)] = 160
    image[ellipse(4, -18, 13, 13)] = 170
    image[ellipse(-12, 28, 15, 14)] = 150
    image[ellipse(-4, -4, 7, 6)] = -950  # trachea
    image[ellipse(-72, 22, 6, 5)] = 30  # a nodule
    image[ellipse(60, -30, 3, 3)] = 20
    image[ellipse(0, -58, 23, 17)] = 250
    image[ellipse(0, -58, 20, 14)] = 160
    image[ellipse(0, -82, 6, 16)] = 300
    image[ellipse(0, -74, 7, 6)] = 20
    for angle in np.arange(15, 360, 30):
        t = np.deg2rad(angle)
        x, y = 128 * np.cos(t), 82 * np.sin(t)
        if abs(x) > 20:
            image[ellipse(x, y, 13, 5.5, angle + 75)] = 420
            image[ellipse(x, y, 10, 3.0, angle + 75)] = 180
    image[ellipse(0, 84, 20, 5)] = 300
    texture = gaussian_filter(random.standard_normal((SIDE, SIDE)), 1.2)
    image += 12 * texture / texture.std() * (image > -900)
    flow = 2.5 * np.stack([gaussian_filter(random.standard_normal((SIDE, SIDE)), 20) for _ in range(2)]) * 40
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")) + flow
    image = map_coordinates(image, grid, order=1, mode="nearest")
    image[ellipse(0, -128, 120, 3)] = -250  # table
    return np.clip(np.round(image), -1000, 1000).astype(np.int16)


def main() -> None:
    default = Path(__file__).resolve().parent / "chest.npz"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    np.savez_compressed(path, hu=chest(), pixel_mm=PIXEL_MM, size=SIZE)


if __name__ == "__main__":
    main()
