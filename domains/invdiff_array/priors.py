"""A stationary Gaussian field, in closed form at any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import GaussianPrior, InputError, Prior, PriorCard


def power_spectrum(height: int, width: int, std: float, cutoff: float, decay: float) -> Float[Tensor, "y x"]:
    """`S(k) ~ (1 + |k / cutoff|^2)^(-decay)`, |k| in cycles per field of view, mean std^2."""
    ky = torch.fft.fftfreq(height, dtype=torch.float64) * height
    kx = torch.fft.fftfreq(width, dtype=torch.float64) * width
    spectrum = (1 + (ky[:, None] ** 2 + kx[None, :] ** 2) / cutoff**2) ** (-decay)
    return spectrum * (std**2 / spectrum.mean())


class GaussianField:
    """A circulant Gaussian prior that takes the size of whatever it is asked about."""

    def __init__(self, std: float, cutoff: float, decay: float) -> None:
        if std <= 0 or cutoff <= 0:
            raise InputError("the gaussian prior needs std > 0 and cutoff > 0")
        self.std, self.cutoff, self.decay = std, cutoff, decay

    @property
    def card(self) -> PriorCard:
        return PriorCard(name="gaussian", std=self.std, exact=True, data="closed form")

    def at(self, shape: tuple[int, ...]) -> GaussianPrior:
        """The prior for one event shape: vectors are rows of one line."""
        if len(shape) == 1:
            spectrum = power_spectrum(1, shape[0], self.std, self.cutoff, self.decay)[0]
            return GaussianPrior.diagonal(torch.zeros(shape), torch.full(shape, self.std**2).to(spectrum))
        spectrum = power_spectrum(shape[-2], shape[-1], self.std, self.cutoff, self.decay)
        channels = shape if len(shape) == 3 else (1, *shape)
        return GaussianPrior.circulant(torch.zeros(channels, dtype=torch.float64), spectrum)

    def denoise(
        self, x: Float[Tensor, "batch *event"], sigma: float | Tensor
    ) -> Float[Tensor, "batch *event"]:
        event = tuple(x.shape[1:])
        prior = self.at(event)
        if len(event) == 2:
            return prior.denoise(x[:, None], sigma)[:, 0]
        return prior.denoise(x, sigma)


def gaussian(settings: Mapping[str, Any]) -> Prior:
    """Settings: std, cutoff (cycles per field of view), decay."""
    allowed = {"name", "std", "cutoff", "decay"}
    if set(settings) - allowed:
        raise InputError(f"the gaussian prior does not know {sorted(set(settings) - allowed)}")
    return GaussianField(
        float(settings.get("std", 0.25)),
        float(settings.get("cutoff", 4)),
        float(settings.get("decay", 1.5)),
    )
