"""Affine-Gaussian algebra: the law of the code, and formulas as laws to compare it with.

With a Gaussian prior and a linear operator a linear sampler's result is an affine function of all the
standard normals that it draws, x = mean + root n. `law` reads mean and root off the code exactly, without
Monte Carlo: one particle draws only zeros, and each of the others a single one. `Affine` and `Normals`
propagate the same through a formula, in numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from invdiff.sampler.keys import ParticleNoise

DOUBLE = torch.float64


@dataclass(frozen=True)
class Affine:
    """`mean + root n`, n standard normal; sums, multiples and `matrix @ x` are again of this kind."""

    mean: np.ndarray
    root: np.ndarray
    __array_ufunc__ = None

    def __add__(self, other: Any) -> Affine:
        if isinstance(other, Affine):
            return Affine(self.mean + other.mean, self.root + other.root)
        return Affine(self.mean + other, self.root)

    __radd__ = __add__

    def __mul__(self, factor: float) -> Affine:
        return Affine(factor * self.mean, factor * self.root)

    __rmul__ = __mul__

    def __sub__(self, other: Any) -> Affine:
        return self + (-1.0) * other

    def __rsub__(self, other: Any) -> Affine:
        return other + (-1.0) * self

    def __rmatmul__(self, matrix: np.ndarray) -> Affine:
        return Affine(matrix @ self.mean, matrix @ self.root)

    @property
    def covariance(self) -> np.ndarray:
        return self.root @ self.root.T


class Normals:
    """Independent standard normals, `normals(size)` at a time, of which at most `total` are drawn."""

    def __init__(self, total: int = 4000) -> None:
        self.total, self.used = total, 0

    def __call__(self, size: int) -> Affine:
        assert self.used + size <= self.total
        root = np.zeros((size, self.total))
        root[:, self.used : self.used + size] = np.eye(size)
        self.used += size
        return Affine(np.zeros(size), root)


class UnitNoise(ParticleNoise):
    """Particle 0 draws zeros only; particle j a one as its j-th number (over all draws), else zeros."""

    def __init__(self, numbers: int) -> None:
        super().__init__(0, range(numbers + 1), dtype=DOUBLE)
        self.used = 0

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        size = math.prod(shape)
        draw = torch.zeros(len(self.particles), size, dtype=DOUBLE)
        rows = draw[self.used + 1 : self.used + 1 + size]
        rows.fill_diagonal_(1.0)
        self.used += size
        return draw.reshape(-1, *shape)


class RecordedNoise(ParticleNoise):
    """One particle's draws, kept."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, [0], dtype=DOUBLE)
        self.record: list[torch.Tensor] = []

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        draw = super().normal(shape)
        self.record.append(draw.flatten())
        return draw


def law(sampler, prior, measurement, shape) -> Affine:
    """The exact law of a sampler that is affine in its noise; an error where it is not affine."""
    counter = UnitNoise(0)
    sampler(prior, measurement, shape, counter)
    x = sampler(prior, measurement, shape, UnitNoise(counter.used)).x.flatten(1).numpy()
    mean, root = x[0], (x[1:] - x[0]).T
    recorded = RecordedNoise(seed=7)
    drawn = sampler(prior, measurement, shape, recorded).x[0].flatten().numpy()
    numbers = torch.cat([*recorded.record, torch.zeros(0, dtype=DOUBLE)]).numpy()
    expected = mean + root @ numbers
    assert np.abs(drawn - expected).max() <= 1e-9 * np.abs(expected).max(), "not affine in its noise"
    return Affine(mean, root)


def assert_equal_laws(found: Affine, expected: Affine, tolerance: float = 1e-9) -> None:
    """Mean and covariance, relative to their largest entries."""
    for name, a, b in (
        ("mean", found.mean, expected.mean),
        ("covariance", found.covariance, expected.covariance),
    ):
        error, scale = np.abs(a - b).max(), np.abs(b).max()
        assert error <= tolerance * scale, f"{name} differs by {error / max(scale, 1e-300):.1e}"
