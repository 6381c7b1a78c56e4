"""A prior of slices applied to a stack: `p(x) = prod_z p(x_z)`, a bounded number of slices at a time."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.prior.prior import Prior, PriorCard, Sigma

PIXELS = 1 << 18  # of one network call, where the run does not say


class SlicewisePrior:
    """Every slice of [slice, *event] by itself. What couples slices is the sampler's business.

    Args:
        prior: of one slice.
        batch: slices of one network call; None: as many as `PIXELS` allow, at least one.

    Raises:
        InputError: for a batch below one.
    """

    def __init__(self, prior: Prior, batch: int | None = None) -> None:
        if batch is not None and batch < 1:
            raise InputError(f"a slice batch of {batch} holds no slice; give 1 or more, or null")
        self.prior, self.batch = prior, batch

    @property
    def card(self) -> PriorCard:
        """The slice prior's; shape and channels are those of a slice."""
        return replace(self.prior.card, shape=None, channels=None)

    def size(self, pixels: int) -> int:
        """Slices of one call for slices of that many pixels."""
        return self.batch or max(1, PIXELS // max(1, pixels))

    def denoise(
        self, x: Float[Tensor, "batch slice *event"], sigma: Sigma
    ) -> Float[Tensor, "batch slice *event"]:
        slices = x.flatten(0, 1)
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if level.ndim == 1 and level.numel() == len(x):
            level = level.repeat_interleave(x.shape[1])
        step = self.size(x.shape[-1] * x.shape[-2])
        parts = [
            self.prior.denoise(slices[i : i + step], level if level.ndim == 0 else level[i : i + step])
            for i in range(0, len(slices), step)
        ]
        return torch.cat(parts).reshape(x.shape)


class CrossedPrior:
    """The mean of a slice prior's two denoisers, of the slices and of those across them.

        D(x) = (D_slices(x) + D_across(x)) / 2,      x [slice, channel, y, x], across: [x, channel, y, slice]

    A heuristic: the mean of two denoisers is that of no known law. Neighbouring slices agree better, at twice
    the cost (Lee et al., arXiv 2303.08440, alternate two orientations of 2-D priors instead).
    """

    def __init__(self, prior: SlicewisePrior) -> None:
        self.prior = prior

    @property
    def card(self) -> PriorCard:
        """That of the slices."""
        return self.prior.card

    def denoise(
        self, x: Float[Tensor, "batch slice channel y x"], sigma: Sigma
    ) -> Float[Tensor, "batch slice channel y x"]:
        across = self.prior.denoise(x.transpose(1, 4), sigma).transpose(1, 4)
        return 0.5 * (self.prior.denoise(x, sigma) + across)
