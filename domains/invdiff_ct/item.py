"""What a slice or a volume needs to be written and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from invdiff import Posterior
from invdiff_ct.prepare import Prepared
from invdiff_ct.projector import Projector


@dataclass(frozen=True)
class Complete:
    """A complete scan, of which views are chosen.

    Attributes:
        data: in the units of the input.
        projector: line integrals in mm.
        logarithm: from the units of the input to line integrals.
        part: the item of some of the views of such data.
    """

    data: Float[np.ndarray, "view detector"]
    projector: Projector
    logarithm: Callable[[np.ndarray], np.ndarray]
    part: Callable[[np.ndarray, list[int]], Item]


@dataclass(frozen=True)
class Item:
    """One slice, or a volume of them.

    Attributes:
        name: file-system safe.
        prepared: measurement and the way back to HU.
        seen: pixels that every view sees, inside which errors are taken.
        affine: of what is written, voxel (y, x, slice) to mm.
        reference: the truth in x, where one is known.
        std_scale: factor on the std map (see configs/domain/ct.yaml).
        warnings: sentences that a reader must not miss.
        notes: for the report.
        dicom: whether mean and std are written as DICOM too.
        slice_batch: slices of a volume in one network call; None: by their size.
    """

    name: str
    prepared: Prepared
    seen: Bool[np.ndarray, "y x"]
    affine: Float[np.ndarray, "4 4"]
    reference: Float[np.ndarray, "*slice y x"] | None
    std_scale: float
    warnings: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    slice_batch: int | None = None
    dicom: bool = False

    @property
    def mean_axes(self) -> int:
        """Axes of an image: 2 of a slice, 3 of a volume."""
        return 2 if self.prepared.projector.slices is None else 3

    def maps(
        self, posterior: Posterior
    ) -> tuple[
        Float[np.ndarray, "*slice y x"],
        Float[np.ndarray, "*slice y x"],
        Float[np.ndarray, "samples *slice y x"],
    ]:
        """Mean, (scaled) std and samples, in x."""
        samples = self.prepared.image(posterior.samples)
        mean = self.prepared.image(posterior.mean)
        std = self.std_scale * samples.std(axis=0, ddof=1) if len(samples) > 1 else np.zeros_like(mean)
        return mean, std, samples
