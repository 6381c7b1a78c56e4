"""Hounsfield units and the image unit of the pack.

    x = (HU - low) / (high - low), clipped to [0, 1];     low, high = -1000, 1000

so air is 0 and water .5. The linear attenuation coefficient of a pixel is

    mu(x) = mu_water * (1 + HU / 1000) = mu_scale * x,     mu_scale = mu_water (high - low) / 1000,

in 1/mm, exact while low is -1000, the HU of vacuum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from invdiff import InputError

MU_WATER = 0.02  # 1/mm, at about 60 keV


@dataclass(frozen=True)
class Window:
    """The HU range that becomes [0, 1].

    Raises:
        InputError: where `low` is not -1000 (attenuation would not be proportional to x) or `high` is
            not above it.
    """

    low: float = -1000.0
    high: float = 1000.0

    def __post_init__(self) -> None:
        if self.low != -1000.0 or not self.high > self.low:
            raise InputError(
                f"hu_range is [{self.low:g}, {self.high:g}]; it begins at -1000 (vacuum, where attenuation "
                "is zero) and ends above that"
            )

    @property
    def width(self) -> float:
        """HU of one unit of x."""
        return self.high - self.low

    def to_unit(self, hu: Shaped[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """x = (HU - low) / width, clipped to [0, 1]."""
        scaled = (np.asarray(hu, dtype=np.float32) - np.float32(self.low)) / np.float32(self.width)
        return np.clip(scaled, 0, 1)

    def to_hu(self, x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """HU = low + width x; not clipped."""
        return np.asarray(x, dtype=np.float32) * np.float32(self.width) + np.float32(self.low)

    def clipped_share(self, hu: Shaped[np.ndarray, "*shape"]) -> float:
        """Share of the values above `high` (dense bone and metal, which the window loses)."""
        return float((np.asarray(hu) > self.high).mean())

    def attenuation(self, mu_water: float = MU_WATER) -> float:
        """mu_scale in 1/mm: attenuation of x = 1."""
        return mu_water * self.width / 1000.0
