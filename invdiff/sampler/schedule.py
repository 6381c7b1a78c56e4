"""Decreasing noise levels, as Python floats computed once. The step to 0 is implied."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeAlias

from invdiff.errors import InputError

Schedule: TypeAlias = tuple[float, ...]


def _check(steps: int, sigma_max: float, sigma_min: float) -> None:
    if steps < 1:
        raise InputError(f"a schedule needs at least one level; found steps={steps}")
    if not 0 < sigma_min < sigma_max:
        raise InputError(
            f"noise levels must satisfy 0 < sigma_min < sigma_max; found {sigma_min} and {sigma_max}"
        )


def karras(steps: int, sigma_max: float, sigma_min: float, rho: float = 7.0) -> Schedule:
    """`(s_max^(1/rho) + i/(n-1) (s_min^(1/rho) - s_max^(1/rho)))^rho` (arXiv 2206.00364, eq. 5)."""
    _check(steps, sigma_max, sigma_min)
    if steps == 1:
        return (sigma_max,)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return tuple((top + i / (steps - 1) * (bottom - top)) ** rho for i in range(steps))


def loguniform(steps: int, sigma_max: float, sigma_min: float) -> Schedule:
    """Equal steps in log sigma."""
    _check(steps, sigma_max, sigma_min)
    if steps == 1:
        return (sigma_max,)
    ratio = sigma_min / sigma_max
    return tuple(sigma_max * ratio ** (i / (steps - 1)) for i in range(steps))


def vp_linear(steps: int, beta0: float = 1e-4, beta1: float = 2e-2, times: int = 1000) -> Schedule:
    """Every (times / steps)-th level of the linear-beta VP table, ending at its first entry.

    The levels of DDPM checkpoints (arXiv 2006.11239): sigma = sqrt((1 - abar) / abar).
    """
    if not 1 <= steps <= times:
        raise InputError(f"vp_linear has {times} levels; found steps={steps}")
    logs, total = [], 0.0
    for i in range(times):
        total += math.log1p(-(beta0 + (beta1 - beta0) * i / (times - 1)))
        logs.append(total)
    stride = times // steps
    picks = [stride * i for i in range(steps)]
    return tuple(math.sqrt(math.expm1(-logs[pick])) for pick in reversed(picks))


def explicit(levels: Sequence[float]) -> Schedule:
    """A list as given, refused unless positive and strictly decreasing."""
    schedule = tuple(float(level) for level in levels)
    pairs = itertools.pairwise(schedule)
    if not schedule or min(schedule) <= 0 or any(a <= b for a, b in pairs):
        raise InputError(
            f"explicit levels must be positive and decrease strictly; found {list(schedule)[:6]}"
        )
    return schedule


def cut(schedule: Schedule, sigma: float) -> Schedule:
    """The part of a schedule below `sigma`, starting at `sigma` itself (for warm starts)."""
    return (sigma, *(level for level in schedule if level < sigma * (1 - 1e-9)))
