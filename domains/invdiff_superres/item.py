"""What a picture needs to be solved, written and judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import InputError, Posterior
from invdiff_superres.baselines import grey_of
from invdiff_superres.formats import Picture
from invdiff_superres.operators import LUMA, Separable, matrices


@dataclass(frozen=True)
class Item:
    """One picture.

    Attributes:
        name: file-system safe.
        picture: the data, low resolution.
        operator: high to low resolution.
        scale: pixels of x a pixel of the data, along y and x.
        reference: the truth, where one is known.
        std_scale: factor on the std map (see configs/domain/superres.yaml).
        warnings: sentences that a reader must not miss.
        notes: for the report.
        tile, overlap: of the prior, in pixels; tile 0: none.
    """

    name: str
    picture: Picture
    operator: Separable
    scale: tuple[int, int]
    reference: Float[np.ndarray, "channel Y X"] | None
    std_scale: float = 1.0
    warnings: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    tile: int = 0
    overlap: int = 0

    @property
    def data(self) -> Float[Tensor, "*channel y x"]:
        """The picture as a tensor."""
        return torch.from_numpy(self.picture.values)

    @property
    def border(self) -> int:
        """Pixels that benchmarks leave out at every side."""
        return max(self.scale)

    def image(self, x: Float[Tensor, "*batch channel Y X"]) -> Float[np.ndarray, "*batch shown Y X"]:
        """x as it is shown: grey data are solved in colour and shown as luminance."""
        shown = grey_of(x) if len(self.picture.values) == 1 and x.shape[-3] == 3 else x
        return shown.numpy()

    def maps(
        self, posterior: Posterior
    ) -> tuple[
        Float[np.ndarray, "channel Y X"],
        Float[np.ndarray, "channel Y X"],
        Float[np.ndarray, "samples channel Y X"],
    ]:
        """Mean, (scaled) std and samples, as shown."""
        samples, mean = self.image(posterior.samples), self.image(posterior.mean)
        std = self.std_scale * samples.std(axis=0, ddof=1) if len(samples) > 1 else np.zeros_like(mean)
        return mean, std, samples


def make_operator(settings: Any, data_shape: tuple[int, ...], prior_channels: int | None) -> Separable:
    """The operator whose data have that shape (channel, y, x), for a prior of so many channels.

    Grey data under a prior of colours measure the luminance of a colour image: its colours are unknowns like
    any others, and are averaged over.

    Raises:
        InputError: for colour data and a prior of one channel.
    """
    channels, height, width = data_shape
    scale = int(settings["scale"])
    tall, wide = scale, scale
    if settings["kernel"] == "slices":
        tall, wide = (scale, 1) if settings["axis"] == "y" else (1, scale)
    rows, columns, kind = matrices(settings, height * tall, width * wide)
    if prior_channels in (None, channels):
        return Separable(rows, columns, channels, kind=kind)
    if channels == 1 and prior_channels == 3:
        return Separable(rows, columns, 3, LUMA, kind)
    raise InputError(
        f"the picture has {channels} channels and the prior {prior_channels}; choose a prior for "
        f"{channels} channels, or a grey picture"
    )
