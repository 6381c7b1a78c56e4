"""Does the error of a particle method fall as N^-1/2? On a two-dimensional mixture seen through one number.

RMSE of the posterior mean over independent filters of N particles, N = 100 to 6400, and the slope of its
logarithm in log N. A method that is consistent has -1/2; one whose weights are wrong, or dropped, levels
off at its bias. Methods run with three times their shipped steps, since the error of the steps does not
fall with N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from invdiff.benchmark.toys import Toy, fk2d
from invdiff.sampler import feynman_kac
from invdiff.sampler.weighting.target import Target

SIZES = (100, 400, 1600, 6400)
FILTERS = 12
SLOPE = (-0.75, -0.25)  # that is called consistent; the slope of 12 filters has a std of .07 to .1
REFINED = 3


@dataclass(frozen=True)
class Slope:
    """Attributes:
    errors: RMSE of the posterior mean (worst component) at each of `SIZES`.
    slope: from the first to the last, in logarithms.
    """

    errors: tuple[float, ...]
    slope: float

    @property
    def holds(self) -> bool:
        """Whether the error falls as that of a consistent method."""
        return SLOPE[0] <= self.slope <= SLOPE[1]

    @property
    def words(self) -> str:
        """The figures in a line."""
        return f"slope {self.slope:+.2f}: RMSE " + ", ".join(f"{error:.3g}" for error in self.errors)


def refined(method: Any) -> Any:
    """The method, or the one inside a control, with `REFINED` times its steps."""
    if hasattr(method, "method"):
        return replace(method, method=refined(method.method))
    return replace(method, steps=method.steps * REFINED)


def slope(method: Any, seed: int = 0, toy: Toy | None = None) -> Slope:
    """The slope of a method (its settings as they are)."""
    toy = fk2d() if toy is None else toy
    target = Target(toy.prior, toy.measurement, toy.shape, torch.device("cpu"), torch.float64)
    model = method.model(target, torch.Generator().manual_seed(seed))
    errors = []
    for size in SIZES:
        square = torch.zeros(toy.shape, dtype=torch.float64)
        for number in range(FILTERS):
            generator = torch.Generator().manual_seed(seed * 1000 + number)
            out = feynman_kac.run(model, feynman_kac.Settings(size), generator)
            x = out.particles if isinstance(out.particles, torch.Tensor) else out.particles.x
            square += (out.weights @ x - toy.mean) ** 2 / FILTERS
        errors.append(math.sqrt(float(square.max())))
    return Slope(tuple(errors), math.log(errors[-1] / errors[0]) / math.log(SIZES[-1] / SIZES[0]))
