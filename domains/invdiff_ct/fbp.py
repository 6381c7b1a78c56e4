"""Filtered back-projection (Kak & Slaney 1988, chapter 3), parallel and fan beam.

    f(u, v) = sum_views  dt * W * (h * (c p))(s(u, v)),     h the ramp, band-limited to the pitch

with c = W = 1 and s = u cos t + v sin t for a parallel beam; for a fan c is the cosine of the ray's
fan angle times the source distance, W one over the squared distance to the source along the axis, and
half of the sum is taken, since a whole turn sees every line twice.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from invdiff_ct.geometry import Geometry


def ramp_filtered(
    rows: Float[np.ndarray, "views detectors"], pitch: float, sine: bool = False
) -> Float[np.ndarray, "views detectors"]:
    """Rows convolved with the ramp; `sine` uses the kernel of equal angles (pitch in radians)."""
    detectors = rows.shape[1]
    length = 2 ** int(np.ceil(np.log2(2 * detectors)))
    n = np.fft.fftfreq(length, 1 / length)
    reach = np.sin(n * pitch) if sine else n * pitch
    odd = (n.astype(int) % 2) == 1
    kernel = np.where(odd, -1 / (np.pi * np.where(odd, reach, 1)) ** 2, 0.0)
    kernel[0] = 1 / (4 * pitch**2)
    spectrum = np.fft.rfft(kernel) * pitch
    return np.fft.irfft(np.fft.rfft(rows, length) * spectrum, length)[:, :detectors]


def angle_steps(geometry: Geometry) -> Float[np.ndarray, "views"]:
    """Angle that each view stands for: half the gap to either neighbour, no more than the usual gap.

    Scaled to half a turn (a whole one for a fan) in all, so that a limited range keeps the mean.
    """
    angles = geometry.angles
    if len(angles) == 1:
        return np.array([np.pi])
    order = np.argsort(angles)
    gaps = np.diff(angles[order])
    usual = float(np.median(gaps))
    gaps = np.minimum(np.concatenate([[usual], gaps, [usual]]), 2 * usual)
    steps = np.empty(len(angles))
    steps[order] = 0.5 * (gaps[:-1] + gaps[1:])
    turn = np.pi if geometry.beam == "parallel" else 2 * np.pi
    return steps * (turn / steps.sum())


def filtered_back_projection(
    sinogram: Float[np.ndarray, "views detectors"], geometry: Geometry, size: int, pixel_mm: float
) -> Float[np.ndarray, "size size"]:
    """The image of line integrals (mm times its unit); zero outside the field of view."""
    grid = (np.arange(size) - (size - 1) / 2) * pixel_mm
    u, v = grid[None, :], -grid[:, None]
    steps, s = angle_steps(geometry), geometry.positions
    parallel = geometry.beam == "parallel"
    source = geometry.source_axis_mm
    distance = source + geometry.axis_detector_mm
    axis, pitch = s, geometry.pitch_mm
    rows = np.asarray(sinogram, dtype=np.float64)
    if geometry.beam == "fan_flat":
        axis, pitch = s / geometry.magnification, geometry.pitch_mm / geometry.magnification
        rows = rows * source / np.sqrt(source**2 + axis**2)
    elif geometry.beam == "fan_curved":
        axis, pitch = s / distance, geometry.pitch_mm / distance
        rows = rows * source * np.cos(axis)
    filtered = ramp_filtered(rows, pitch, geometry.beam == "fan_curved")
    image = np.zeros((size, size))
    for row, t, step in zip(filtered, geometry.angles, steps, strict=True):
        across = u * np.cos(t) + v * np.sin(t)
        if parallel:
            image += step * np.interp(across, axis, row, left=0, right=0)
            continue
        along = source - u * np.sin(t) + v * np.cos(t)
        if geometry.beam == "fan_flat":
            weight, where = (source / along) ** 2, source * across / along
        else:
            weight, where = 1 / (along**2 + across**2), np.arctan2(across, along)
        image += 0.5 * step * weight * np.interp(where, axis, row, left=0, right=0)
    return np.where(field_of_view(geometry, size, pixel_mm), image, 0.0)


def field_of_view(geometry: Geometry | None, size: int, pixel_mm: float) -> np.ndarray:
    """Pixels within the circle that every view sees, no larger than size / 2 - 1 pixels."""
    grid = (np.arange(size) - (size - 1) / 2) * pixel_mm
    radius = (size / 2 - 1) * pixel_mm
    if geometry is not None:
        radius = min(radius, geometry.field_radius_mm)
    inside: np.ndarray = grid[None, :] ** 2 + grid[:, None] ** 2 <= radius**2
    return inside
