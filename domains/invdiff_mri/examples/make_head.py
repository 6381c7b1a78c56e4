"""Make the bundled example: a procedural head, scanned with eight simulated coils.

    python -m invdiff_mri.examples.make_head [OUT.npz]

Nothing of it is a real person. A T1-weighted axial slice at the level of the
lateral ventricles is drawn at three times the final resolution: skin, fat,
skull with its marrow, cerebrospinal fluid, a cortical ribbon that follows
randomly grown sulci, white matter, deep nuclei, ventricles, vessels and
texture. Then phase (background field, fat off-resonance), receive coils and
noise, and 4x undersampling with 16 calibration lines.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter, zoom

SIZE, OVER, SEED = 192, 3, 20
SIDE = SIZE * OVER
MM = 2.4 * OVER * SIZE / 576  # fine pixels a millimetre (field of view 240 mm)
COILS, SIGMA, ACCELERATION, CALIBRATION = 8, 0.008, 4, 16


def _smooth(rng: np.random.Generator, scale: float) -> np.ndarray:
    """A smooth random field of unit variance; `scale` in fine pixels."""
    field = gaussian_filter(rng.standard_normal((SIDE, SIDE)), scale, mode="wrap")
    return (field - field.mean()) / field.std()


def _grow(
    canvas: np.ndarray,
    rng: np.random.Generator,
    start: tuple[float, float],
    heading: float,
    length: float,
    width: float,
    branch: float,
) -> None:
    """Draw one sulcus as a wandering path of discs, sometimes with a branch."""
    row, column = start
    turn = 0.0
    for step in range(int(length)):
        turn = 0.93 * turn + 0.028 * rng.standard_normal()
        heading += turn
        row, column = row + np.sin(heading), column + np.cos(heading)
        radius = width * (1 - 0.55 * step / length)
        top, left = int(row - radius - 1), int(column - radius - 1)
        span = int(2 * radius + 4)
        y, x = np.mgrid[top : top + span, left : left + span]
        inside = (y - row) ** 2 + (x - column) ** 2 <= radius**2
        good = inside & (y >= 0) & (y < SIDE) & (x >= 0) & (x < SIDE)
        canvas[y[good], x[good]] = True
        if branch > 0 and step > 0.3 * length and rng.random() < branch / length:
            side = rng.choice([-1, 1]) * rng.uniform(0.6, 1.1)
            _grow(canvas, rng, (row, column), heading + side, 0.5 * length, 0.8 * width, 0.0)


def draw_magnitude(rng: np.random.Generator) -> np.ndarray:
    """The slice at the final resolution, 1 = 99.5th percentile or so."""
    axis = (np.arange(SIDE) - SIDE / 2 + 0.5) / (SIDE / 2)
    v, u = np.meshgrid(axis, axis, indexing="ij")  # v down (posterior), u to the right
    u = u + 0.008 * _smooth(rng, 60)
    v = v + 0.008 * _smooth(rng, 60)
    angle = np.arctan2(v, u)
    # Head outline: longer front to back, broader behind.
    shape = 1 + 0.03 * np.sin(angle) - 0.012 * np.cos(3 * angle)
    radius = np.hypot(u / 0.70, v / 0.87) / shape
    outside = radius > 1
    depth = distance_transform_edt(~outside) / MM  # millimetres below the skin
    bump = 0.5 * _smooth(rng, 30)
    temple = np.exp(-((np.abs(angle - 0.0) - 0.0) ** 2) / 0.12) + np.exp(
        -((np.abs(np.abs(angle) - np.pi)) ** 2) / 0.12
    )
    scalp = 5.2 + 0.8 * bump + 2.6 * temple
    skull = 7.2 + 0.7 * _smooth(rng, 40) + 1.4 * np.clip(np.sin(angle), 0, 1)
    brain = depth > scalp + skull + 2.0
    brain_depth = distance_transform_edt(brain) / MM

    image = np.zeros((SIDE, SIDE))
    image[depth > 0] = 0.42  # skin
    fat = (depth > 1.6) & (depth < scalp)
    image[fat] = 0.95
    muscle = fat & (temple > 0.35) & (depth > 2.6) & (depth < scalp - 0.8)
    image[muscle] = 0.40
    bone = (depth >= scalp) & (depth < scalp + skull)
    image[bone] = 0.05
    middle = (depth - scalp) / skull
    marrow = bone & (middle > 0.27) & (middle < 0.75)
    image[marrow] = (0.60 + 0.10 * _smooth(rng, 5))[marrow]
    fluid = depth >= scalp + skull
    image[fluid] = 0.16

    # Sulci grow inwards from the surface; the fissure separates the hemispheres.
    sulci = np.zeros((SIDE, SIDE), dtype=bool)
    edge = np.argwhere(brain & (brain_depth < 1.5 / MM * 1.2))
    edge_angle = np.arctan2(edge[:, 0] - SIDE / 2, edge[:, 1] - SIDE / 2)
    count = 58
    for k in range(count):
        target = -np.pi + 2 * np.pi * (k + rng.uniform(-0.3, 0.3)) / count
        row, column = edge[np.argmin(np.abs(np.angle(np.exp(1j * (edge_angle - target)))))]
        inward = np.arctan2(SIDE / 2 - row, SIDE / 2 - column) + rng.normal(0, 0.35)
        length = MM * rng.choice([12, 20, 29, 38], p=[0.2, 0.3, 0.3, 0.2]) * rng.uniform(0.8, 1.2)
        _grow(sulci, rng, (float(row), float(column)), inward, length, MM * rng.uniform(0.5, 0.95), 1.6)
    for row_mm in (-88, -76, -66, -55, -46, 52, 60, 68, 77, 86):  # medial sulci, from the fissure
        for side in (-1, 1):
            row = SIDE / 2 + MM * (row_mm + rng.uniform(-3, 3))
            heading = (0.0 if side > 0 else np.pi) + rng.normal(0, 0.4)
            length = MM * rng.uniform(8, 17)
            _grow(sulci, rng, (row, SIDE / 2), heading, length, MM * 0.7, 0.8)
    for side in (-1, 1):  # Sylvian fissures
        row, column = SIDE / 2 - 0.06 * SIDE, SIDE / 2 + side * 0.295 * SIDE
        heading = (np.pi if side > 0 else 0.0) + side * -0.35
        _grow(sulci, rng, (row, column), heading, MM * 26, MM * 1.5, 1.5)
    wander = 0.006 * _smooth(rng, 25)
    gap = 0.0055 + 0.006 * np.clip(np.abs(v) - 0.35, 0, 1)
    callosum = (v > -0.24) & (v < 0.26)
    sulci |= (np.abs(u + wander) < gap) & ~callosum
    sulci &= brain

    # Ventricles: frontal horns, bodies, atria; the third ventricle between the thalami.
    ventricle = np.zeros((SIDE, SIDE), dtype=bool)
    for side in (-1, 1):
        s = side * u + 0.004 * _smooth(rng, 20)
        front = ((s - 0.075 - 0.28 * np.clip(-v - 0.05, 0, 1)) / 0.036) ** 2 + ((v + 0.16) / 0.12) ** 2
        body = ((s - 0.052) / 0.026) ** 2 + ((v - 0.0) / 0.10) ** 2
        back = ((s - 0.125 - 0.55 * np.clip(v - 0.18, 0, 1)) / 0.042) ** 2 + ((v - 0.27) / 0.13) ** 2
        ventricle |= (front < 1) | (back < 1) | ((body < 1) & (v < 0.05))
    third = (np.abs(u + 0.3 * wander) < 0.011) & (v > 0.02) & (v < 0.17)
    ventricle |= third
    septum = (np.abs(u + 0.5 * wander) < 0.006) & (v < 0)
    ventricle &= ~septum

    fluid_or_out = ~brain | binary_dilation(sulci)
    cortex_depth = distance_transform_edt(~fluid_or_out) / MM
    thickness = 2.9 + 0.35 * _smooth(rng, 12)
    grey = brain & (cortex_depth < thickness)
    white = brain & ~grey
    texture = 0.016 * _smooth(rng, 2.0) + 0.014 * _smooth(rng, 6) + 0.012 * _smooth(rng, 18)
    image[grey] = (0.56 + texture)[grey]
    image[white] = (0.72 + 0.8 * texture)[white]
    for side in (-1, 1):
        s = side * u + 0.006 * _smooth(rng, 15)
        caudate = ((s - 0.135) / 0.035) ** 2 + ((v + 0.17) / 0.075) ** 2 < 1
        putamen = ((s - 0.225 - 0.2 * (v + 0.05) ** 2) / 0.04) ** 2 + ((v + 0.04) / 0.13) ** 2 < 1
        pallidum = ((s - 0.185) / 0.022) ** 2 + ((v + 0.01) / 0.07) ** 2 < 1
        thalamus = ((s - 0.085) / 0.068) ** 2 + ((v - 0.10) / 0.105) ** 2 < 1
        claustrum = (np.abs(s - 0.285 - 0.1 * v) < 0.006) & (np.abs(v + 0.03) < 0.12)
        for part, level in (
            (caudate, 0.53),
            (putamen, 0.55),
            (pallidum, 0.62),
            (thalamus, 0.59),
            (claustrum, 0.55),
        ):
            chosen = part & white & ~ventricle
            image[chosen] = (level + texture)[chosen]
    plexus = gaussian_filter((rng.random((SIDE, SIDE)) < 0.02).astype(float), 2.5)
    image[sulci] = 0.16
    image[ventricle] = (0.14 + 0.02 * _smooth(rng, 4))[ventricle]
    choroid = ventricle & (v > 0.2) & (plexus > np.quantile(plexus, 0.75))
    image[choroid] = 0.45
    # Vessels: the sagittal sinus behind and in front, and a few cortical veins.
    for row, column, size in ((0.715, 0.0, 2.4), (-0.66, 0.0, 1.5)):
        disc = (u - column) ** 2 + (v - row) ** 2 < (size * MM / (SIDE / 2)) ** 2
        image[disc & (depth > scalp + 0.5 * skull)] = 0.30
    veins = np.argwhere(sulci)
    for row, column in veins[rng.choice(len(veins), 26, replace=False)]:
        image[row - 1 : row + 3, column - 1 : column + 3] = rng.uniform(0.55, 0.95)
    shading = 1 + 0.10 * _smooth(rng, 110) + 0.30 * (radius.clip(0, 1) ** 2 - 0.5)
    image = np.clip(image, 0, None) * shading
    image = gaussian_filter(image, 0.45 * OVER)  # point spread of the acquisition
    return image.reshape(SIZE, OVER, SIZE, OVER).mean(axis=(1, 3))


def draw_phase(rng: np.random.Generator, magnitude: np.ndarray) -> np.ndarray:
    """Radians: background field, local susceptibility, fat off-resonance."""
    axis = np.linspace(-1, 1, SIZE)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    background = 0.8 + 1.1 * u - 1.6 * v + 0.5 * u * v + 0.7 * v**2 - 0.4 * u**2
    coarse = zoom(rng.standard_normal((9, 9)), SIZE / 9, order=3)
    fine = zoom(rng.standard_normal((28, 28)), SIZE / 28, order=3, grid_mode=True, mode="nearest")
    sinus = 1.5 * np.exp(-((u / 0.22) ** 2 + ((v + 0.72) / 0.16) ** 2))
    fat = 1.9 / (1 + np.exp(-(gaussian_filter(magnitude, 0.7) - 0.8) / 0.04))
    return background + 0.15 * coarse + 0.06 * fine[:SIZE, :SIZE] + sinus + fat


def coil_maps() -> np.ndarray:
    """Loops on a circle around the head: near-field falloff and phase, not normalised."""
    axis = np.linspace(-1, 1, SIZE)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    maps = []
    for c in range(COILS):
        t = 2 * np.pi * (c + 0.25) / COILS
        distance = np.hypot(u - 1.15 * np.cos(t), v - 1.25 * np.sin(t))
        profile = (0.75**2 / (distance**2 + 0.75**2)) ** 1.5
        phase = 1.3 * t + 0.9 * (u * np.sin(t) - v * np.cos(t)) + 0.5 * distance
        maps.append(profile * np.exp(1j * phase))
    return np.stack(maps)


def full_scan() -> dict[str, np.ndarray]:
    """The whole acquisition: kspace [coil, y, x], reference [y, x], a noise scan [coil, count]."""
    rng = np.random.default_rng(SEED)
    magnitude = draw_magnitude(rng)
    image = magnitude * np.exp(1j * draw_phase(rng, magnitude))
    coils = coil_maps() * image
    axes = (-2, -1)
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(coils, axes=axes), norm="ortho"), axes=axes)
    mixing = np.eye(COILS) + 0.12 * rng.standard_normal((COILS, COILS))  # correlated receivers

    def noise(*shape: int) -> np.ndarray:
        white = rng.standard_normal((COILS, *shape)) + 1j * rng.standard_normal((COILS, *shape))
        return np.asarray(SIGMA * np.einsum("ij,j...->i...", mixing, white))

    kspace = kspace + noise(SIZE, SIZE)
    return {
        "kspace": kspace.astype(np.complex64),
        "reference": np.sqrt((np.abs(coils) ** 2).sum(axis=0)).astype(np.float32),
        "noise": noise(512).astype(np.complex64),
    }


def make(path: Path) -> None:
    """Write kspace (zeros where not measured), mask, reference and a noise scan."""
    scan = full_scan()
    line = np.zeros(SIZE, dtype=bool)
    line[1::ACCELERATION] = True
    half = CALIBRATION // 2
    line[SIZE // 2 - half : SIZE // 2 + half] = True
    np.savez_compressed(path, **{**scan, "kspace": scan["kspace"] * line, "mask": line})


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("head.npz"))
