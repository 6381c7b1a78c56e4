"""What a slice needs to be written and judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from invdiff import Posterior
from invdiff_ct.prepare import Prepared


@dataclass(frozen=True)
class Item:
    """One slice.

    Attributes:
        name: file-system safe.
        prepared: measurement and the way back to HU.
        seen: pixels that every view sees, inside which errors are taken.
        affine: of what is written, voxel (y, x, slice) to mm.
        reference: the truth in x, where one is known.
        std_scale: factor on the std map (see configs/domain/ct.yaml).
        warnings: sentences that a reader must not miss.
        notes: for the report.
    """

    name: str
    prepared: Prepared
    seen: Bool[np.ndarray, "y x"]
    affine: Float[np.ndarray, "4 4"]
    reference: Float[np.ndarray, "y x"] | None
    std_scale: float
    warnings: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    def maps(
        self, posterior: Posterior
    ) -> tuple[Float[np.ndarray, "y x"], Float[np.ndarray, "y x"], Float[np.ndarray, "samples y x"]]:
        """Mean, (scaled) std and samples, in x."""
        samples = self.prepared.image(posterior.samples)
        mean = self.prepared.image(posterior.mean)
        std = self.std_scale * samples.std(axis=0, ddof=1) if len(samples) > 1 else np.zeros_like(mean)
        return mean, std, samples
