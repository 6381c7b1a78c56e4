"""Cartesian sampling masks, with the acceleration that they really have.

Lines are phase encodes along the last axis (or `axis`), as in fastMRI files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Complex
from torch import Tensor

from invdiff import InputError, unknown_name

MaskName: TypeAlias = Literal[
    "random", "equispaced", "gaussian1d", "poisson_disc", "radial_cartesian", "from_data", "file"
]
SIMULATED = ("random", "equispaced", "gaussian1d", "poisson_disc", "radial_cartesian")


@dataclass(frozen=True)
class MaskSettings:
    """A retrospective mask.

    Attributes:
        name: one of `SIMULATED`.
        acceleration: requested ratio of all samples to acquired ones.
        center_fraction: share of central lines always acquired; None: .08 up to 6x, else .04.
        exact_count: `random` acquires exactly n / R lines instead of a Bernoulli number.
        axis: phase-encode axis of [y, x].
        calibration: side of the fully sampled square of `poisson_disc`.
        seed: of the mask.
    """

    name: str = "equispaced"
    acceleration: float = 4.0
    center_fraction: float | None = None
    exact_count: bool = False
    axis: int = -1
    calibration: int = 24
    seed: int = 0


def center_lines(lines: int, settings: MaskSettings) -> int:
    """Number of central lines that are always acquired."""
    fraction = settings.center_fraction
    if fraction is None:
        fraction = 0.08 if settings.acceleration <= 6 else 0.04
    return max(1, round(lines * fraction))


def make_mask(shape: tuple[int, int], settings: MaskSettings) -> Bool[Tensor, "y x"]:
    """The mask, centred.

    Raises:
        InputError: for an unknown name, or an acceleration below 1 or above the
            number of lines.
    """
    lines = shape[settings.axis]
    if settings.name not in SIMULATED:
        raise unknown_name("mask", settings.name, (*SIMULATED, "from_data", "file"))
    if not 1 <= settings.acceleration <= lines:
        raise InputError(
            f"operator.acceleration is {settings.acceleration:g}; expected a number from 1 to the "
            f"{lines} phase-encode lines of this scan"
        )
    if settings.name == "poisson_disc":
        return _poisson_disc(shape, settings)
    if settings.name == "radial_cartesian":
        return _radial(shape, settings)
    rng = np.random.default_rng(settings.seed)
    chosen = {"random": _random, "equispaced": _equispaced, "gaussian1d": _gaussian}[settings.name](
        lines, settings, rng
    )
    line = torch.from_numpy(chosen)
    wide = line[None, :] if settings.axis % 2 == 1 else line[:, None]
    return wide.expand(shape).clone()


def _center(lines: int, count: int) -> np.ndarray:
    chosen = np.zeros(lines, dtype=bool)
    start = (lines - count + 1) // 2
    chosen[start : start + count] = True
    return chosen


def _random(lines: int, settings: MaskSettings, rng: np.random.Generator) -> np.ndarray:
    count = center_lines(lines, settings)
    chosen = _center(lines, count)
    if settings.exact_count:
        rest = np.flatnonzero(~chosen)
        extra = max(0, round(lines / settings.acceleration) - count)
        chosen[rng.choice(rest, size=min(extra, len(rest)), replace=False)] = True
        return chosen
    probability = (lines / settings.acceleration - count) / max(1, lines - count)
    return chosen | (rng.random(lines) < probability)


def _equispaced(lines: int, settings: MaskSettings, rng: np.random.Generator) -> np.ndarray:
    count, ratio = center_lines(lines, settings), settings.acceleration
    # fastMRI's "equispaced fraction": the spacing is adjusted so that lines and centre
    # together make lines / R.
    denominator = count * ratio - lines
    spacing = ratio * (count - lines) / denominator if denominator < 0 else float(lines)
    offset = rng.integers(0, max(1, round(spacing)))
    picks = np.around(np.arange(offset, lines - 1, spacing)).astype(int)
    chosen = _center(lines, count)
    chosen[picks] = True
    return chosen


def _gaussian(lines: int, settings: MaskSettings, rng: np.random.Generator) -> np.ndarray:
    chosen = _center(lines, center_lines(lines, settings))
    wanted = round(lines / settings.acceleration)
    width = lines * 15 / 128
    while chosen.sum() < min(wanted, lines):
        position = int(np.rint(lines / 2 + width * rng.standard_normal()))
        if 0 <= position < lines:
            chosen[position] = True
        width *= 1.002  # so that a dense request still ends
    return chosen


def _poisson_disc(shape: tuple[int, int], settings: MaskSettings) -> Bool[Tensor, "y x"]:
    from sigpy.mri import poisson

    side = min(settings.calibration, *shape)
    state = np.random.get_state()  # noqa: NPY002 (sigpy seeds the global one)
    try:
        mask = poisson(shape, settings.acceleration, calib=(side, side), seed=settings.seed, tol=0.1)
    except ValueError:
        raise InputError(
            f"no Poisson-disc mask of {settings.acceleration:g}x with a {side}x{side} calibration "
            f"square exists on {shape[0]}x{shape[1]}; lower the acceleration or operator.calibration"
        ) from None
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return torch.from_numpy(np.abs(np.asarray(mask)) > 0)


def _radial(shape: tuple[int, int], settings: MaskSettings) -> Bool[Tensor, "y x"]:
    height, width = shape
    wanted = height * width / settings.acceleration
    mask = np.zeros(shape, dtype=bool)
    reach = np.hypot(height, width) / 2
    radius = np.arange(-reach, reach, 0.5)
    golden = np.pi * (np.sqrt(5) - 1) / 2
    spoke = 0
    while mask.sum() < wanted and spoke < 4 * (height + width):
        angle = spoke * golden + settings.seed
        rows = np.rint(height // 2 + radius * np.sin(angle)).astype(int)
        columns = np.rint(width // 2 + radius * np.cos(angle)).astype(int)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        mask[rows[inside], columns[inside]] = True
        spoke += 1
    return torch.from_numpy(mask)


def mask_from_data(kspace: Complex[Tensor, "coil y x"]) -> Bool[Tensor, "y x"]:
    """The acquired samples: those not exactly zero in every coil.

    Raises:
        InputError: if fewer than 1 % of the samples are not zero.
    """
    mask = (kspace != 0).any(dim=0)
    share = float(mask.float().mean())
    if share < 0.01:
        raise InputError(
            f"only {100 * share:.2f} % of the k-space samples are not zero, too few to be a scan; "
            "give the mask with operator.mask=file operator.mask_file=..."
        )
    return mask


def effective_acceleration(mask: Bool[Tensor, "y x"]) -> float:
    """All samples divided by acquired ones."""
    return mask.numel() / max(1, int(mask.sum()))


def calibration_region(mask: Bool[Tensor, "y x"]) -> tuple[int, int]:
    """(rows, columns) of the largest fully sampled centred rectangle."""
    height, width = mask.shape

    def full(rows: int, columns: int) -> bool:
        top, left = (height - rows + 1) // 2, (width - columns + 1) // 2
        return bool(mask[top : top + rows, left : left + columns].all())

    best, best_area, columns = (0, 0), 0, width
    for rows in range(1, height + 1):
        while columns and not full(rows, columns):
            columns -= 1
        if columns == 0:
            break
        # Prefer the rectangle with the larger short side: maps need both.
        score = min(rows, columns, 64) * 10_000 + rows * columns
        if score > best_area:
            best, best_area = (rows, columns), score
    return best
