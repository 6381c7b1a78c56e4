"""A prior of images too large for one network call: the denoiser alone is tiled, at every level.

    D(x; sigma) = sum_t w_t D_t(x_t; sigma) / sum_t w_t

over overlapping windows with raised-cosine weights w_t (in the spirit of MultiDiffusion, arXiv 2302.08113).
The state, the noise and the data step stay whole, so nothing is ever reconstructed tile by tile. Exact where
what the network sees of a pixel fits into the overlap; memory does not depend on the size of the image.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.prior.network import NetworkPrior
from invdiff.prior.prior import Prior, PriorCard, Sigma


class TiledPrior:
    """`D` by tiles of the last two axes.

    Args:
        prior: of images of any size.
        tile: side of a window in pixels.
        overlap: pixels that neighbouring windows share at least; the outer quarter of it has no weight, so
            that what a network makes of its own border is not used.

    Raises:
        InputError: for an overlap that leaves no step, or a prior of one size.
    """

    def __init__(self, prior: Prior, tile: int = 256, overlap: int = 64) -> None:
        if not 0 < overlap <= tile // 2:
            raise InputError(f"tiles of {tile} pixels that overlap by {overlap}; expected 1 to {tile // 2}")
        if prior.card.shape is not None and tuple(prior.card.shape[-2:]) != (tile, tile):
            raise InputError(
                f"prior {prior.card.name!r} is for images of {tuple(prior.card.shape)}; tiles of {tile} "
                "do not fit"
            )
        self.prior, self.tile, self.overlap = prior, tile, overlap

    @property
    def card(self) -> PriorCard:
        return self.prior.card

    def denoise(self, x: Float[Tensor, "batch *event"], sigma: Sigma) -> Float[Tensor, "batch *event"]:
        height, width = x.shape[-2:]
        if height <= self.tile and width <= self.tile:
            return self.prior.denoise(x, sigma)
        total = torch.zeros_like(x)
        weight = x.new_zeros(height, width)
        for rows, row_weight in self.windows(height):
            for columns, column_weight in self.windows(width):
                share = torch.outer(row_weight, column_weight).to(x)
                prior = self.at(rows, columns)
                total[..., rows, columns] += share * prior.denoise(x[..., rows, columns], sigma)
                weight[rows, columns] += share
        return total / weight

    def at(self, rows: slice, columns: slice) -> Prior:
        """The prior in a window: a conditional one with that part of its condition."""
        condition = getattr(self.prior, "condition", None)
        if condition is None:
            return self.prior
        assert isinstance(self.prior, NetworkPrior)
        return self.prior.given(condition[..., rows, columns])

    def windows(self, length: int) -> Iterator[tuple[slice, Float[Tensor, "side"]]]:
        """Windows over an axis, evenly spread, with their weights; full weight at the image's own border."""
        side = min(self.tile, length)
        count = 1 if side == length else -(-(length - self.overlap) // (side - self.overlap))
        place = torch.arange(side, dtype=torch.float64) + 0.5
        dead, ramp = self.overlap / 4, self.overlap / 2
        rise = ((place - dead) / ramp).clamp(0, 1)
        rise = 0.5 - 0.5 * torch.cos(torch.pi * rise)
        for number in range(count):
            first = 0 if count == 1 else round(number * (length - side) / (count - 1))
            weight = torch.ones(side, dtype=torch.float64)
            if number > 0:
                weight = weight * rise
            if number < count - 1:
                weight = weight * rise.flip(0)
            yield slice(first, first + side), weight
