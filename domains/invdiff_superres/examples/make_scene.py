"""Make the bundled example: a picture of our own invention.

    python -m invdiff_superres.examples.make_scene [FILE]

A harbour in evening light, 192 x 192: sky with clouds of fractal noise, hills, a lighthouse with bands and a
railing, houses with windows, water that mirrors them in ripples, a boat with rigging. Drawn at four times the
size and averaged, as a camera does. It is no draw from the prior, so what the example shows is not flattered.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

SIDE, FINE = 192, 4


def clouds(random: np.random.Generator, shape: tuple[int, int], slope: float, squeeze: float) -> np.ndarray:
    """Gaussian noise of power-law spectrum, zero mean, unit variance, wider than high."""
    v, u = np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1]), indexing="ij")
    radius = np.hypot(u, v / squeeze) + 1e-4
    field = np.fft.irfft2(np.fft.rfft2(random.standard_normal(shape)) * radius**-slope, s=shape)
    return np.asarray((field - field.mean()) / field.std())


def scene(seed: int = 3) -> np.ndarray:
    """The picture, float [y, x, 3] in [0, 1]."""
    random = np.random.default_rng(seed)
    n = SIDE * FINE
    y, x = np.mgrid[:n, :n] / n
    horizon = 0.62

    def paint(mask: np.ndarray, colour: tuple[float, float, float], shade: np.ndarray | float = 1.0) -> None:
        image[mask] = (np.array(colour) * np.broadcast_to(np.asarray(shade), mask.shape)[..., None])[mask]

    top, low = np.array([0.28, 0.42, 0.68]), np.array([0.95, 0.72, 0.5])
    share = np.clip(y / horizon, 0, 1)[..., None]
    image = top * (1 - share) + low * share
    cover = np.clip(clouds(random, (n, n), 1.5, 2.5) * 0.35 + 0.1, 0, 0.8)[..., None]
    image = image * (1 - cover) + np.array([0.98, 0.9, 0.86]) * cover
    far = horizon - 0.1 - 0.05 * np.sin(5 * x + 1) - 0.012 * clouds(random, (1, n), 1.4, 1.0)[0]
    paint(y > far, (0.35, 0.42, 0.5), 1 + 0.05 * clouds(random, (n, n), 1.0, 1.0))
    near = horizon - 0.05 + 0.09 * (x - 0.35) ** 2 - 0.004 * clouds(random, (1, n), 1.0, 1.0)[0]
    paint(y > near, (0.27, 0.36, 0.2), 1 + 0.18 * clouds(random, (n, n), 0.7, 1.0))

    def houses() -> None:
        left = 0.36
        for _ in range(7):
            width, height = random.uniform(0.06, 0.09), random.uniform(0.06, 0.11)
            wall = [(0.86, 0.8, 0.7), (0.74, 0.42, 0.33), (0.9, 0.87, 0.8), (0.62, 0.66, 0.6)][
                random.integers(4)
            ]
            base, roof = horizon - 0.005, horizon - 0.005 - height
            inside = (x > left) & (x < left + width) & (y > roof) & (y < base)
            paint(inside, wall, 1 - 0.25 * (x - left) / width + 0.03 * clouds(random, (n, n), 0.3, 1.0))
            slant = np.abs(x - left - width / 2) / (width / 2)
            paint((slant < 1.08) & (y < roof) & (y > roof - 0.035 * (1.08 - slant)), (0.45, 0.2, 0.15))
            for column in range(2):
                for row in range(2 + (height > 0.085)):
                    u, v = left + width * (0.2 + 0.4 * column), roof + 0.012 + 0.03 * row
                    lit = random.random() < 0.4
                    pane = (x > u) & (x < u + 0.018) & (y > v) & (y < v + 0.018)
                    paint(pane, (0.98, 0.85, 0.5) if lit else (0.2, 0.22, 0.28))
                    paint(pane & (np.abs(x - u - 0.009) < 0.0015), (0.9, 0.9, 0.88))
            left += width + random.uniform(0.0, 0.008)

    def lighthouse() -> None:
        middle, base, peak = 0.2, horizon + 0.015, 0.17
        half = 0.026 + 0.022 * (y - peak) / (base - peak)
        tower = (np.abs(x - middle) < half) & (y > peak) & (y < base)
        round_ = np.sqrt(np.clip(1 - ((x - middle) / half) ** 2, 0, 1))
        light = 0.45 + 0.55 * np.clip(round_ * 0.8 + 0.5 * (middle - x) / half, 0, 1)
        paint(tower, (0.95, 0.94, 0.92), light)
        paint(tower & (np.floor((y - peak) / 0.075) % 2 == 1), (0.78, 0.14, 0.12), light)
        paint((np.abs(x - middle) < 0.042) & (np.abs(y - peak) < 0.006), (0.15, 0.15, 0.17))
        posts = (
            (np.abs(x - middle) < 0.042)
            & (np.abs((x / 0.007) % 1 - 0.5) < 0.15)
            & (y < peak)
            & (y > peak - 0.028)
        )
        paint((np.abs(x - middle) < 0.018) & (y < peak - 0.004) & (y > peak - 0.06), (0.99, 0.93, 0.66))
        paint(posts | ((np.abs(x - middle) < 0.042) & (np.abs(y - peak + 0.028) < 0.002)), (0.15, 0.15, 0.17))
        paint(
            (np.abs(x - middle) < 0.024 * (y - peak + 0.095) / 0.035)
            & (y > peak - 0.095)
            & (y < peak - 0.06),
            (0.6, 0.1, 0.1),
        )

    houses()
    lighthouse()
    # Water mirrors what is above it, shifted by ripples that are finer near the horizon.
    depth = np.clip((y - horizon) / (1 - horizon), 1e-3, 1)
    wave = clouds(random, (n, n), 0.9, 0.25) * (0.3 + depth) + np.sin(60 / (depth + 0.15) + 4 * np.sin(9 * x))
    source_y = np.clip(2 * horizon - y * 0.92 - 0.05 + 0.006 * wave, 0, horizon - 1e-3)
    source_x = np.clip(x + 0.004 * wave, 0, 1 - 1e-3)
    mirrored = image[(source_y * n).astype(int), (source_x * n).astype(int)]
    water = mirrored * np.array([0.55, 0.65, 0.75]) + 0.05 * np.clip(wave, -1, 2)[..., None]
    image = np.where((y > horizon)[..., None], water, image)
    hull = (y > 0.8) & (y < 0.86) & (np.abs(x - 0.66) < 0.15 - 0.9 * np.clip(y - 0.8, 0, 1) ** 1.2)
    paint(hull, (0.16, 0.3, 0.42), 1 - 2.0 * (y - 0.8))
    paint(hull & (y < 0.812), (0.95, 0.94, 0.9))
    paint((np.abs(x - 0.64) < 0.004) & (y > 0.5) & (y < 0.8), (0.42, 0.28, 0.18))
    for end in (0.53, 0.79):
        along = (y - 0.5) / 0.3
        paint((np.abs(x - 0.64 - (end - 0.64) * along) < 0.0014) & (y > 0.5) & (y < 0.8), (0.2, 0.18, 0.17))
    sail = (x > 0.648) & (x < 0.648 + 0.115 * (y - 0.53) / 0.22) & (y > 0.53) & (y < 0.75)
    paint(sail, (0.95, 0.91, 0.82), 1 - 0.25 * np.abs(np.sin(14 * (y - 0.53))) * (x - 0.648) / 0.115)
    image = gaussian_filter(image, (0.6, 0.6, 0)) * (1 + 0.01 * random.standard_normal((n, n, 1)))
    return np.clip(image.reshape(SIDE, FINE, SIDE, FINE, 3).mean(axis=(1, 3)), 0, 1)


def main() -> None:
    """Write the picture."""
    from PIL import Image

    default = Path(__file__).resolve().parent / "harbour.png"
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    Image.fromarray(np.rint(255 * scene()).astype(np.uint8)).save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main()
