"""Annealed plug-and-play with momentum: the fast point estimate.

Half-quadratic splitting with a denoiser that is told a falling noise level
(Zhang et al., arXiv 2008.13751), the iterates extrapolated:

    d = D(z; sigma_k),  x' = argmin trust |y - A x|^2 / sigma_y^2 + |x - d|^2 / sigma_k^2,
    z' = x' + m (x' - x)

It is deterministic and returns one image: every particle gets the same, and
its spread (zero) means nothing. `trust` above 1 weighs the data more than their
noise warrants: what is measured is fitted early, the denoiser removes its noise.

With `rho` above zero the slices of a stack are coupled by total variation along z in the same step (see
`axial_tv`); its split and dual go from level to level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.measurement.measurement import Measurement
from invdiff.prior.prior import Prior
from invdiff.sampler.axial_tv import AxialTV
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.loop import Draws, Progress, require_finite
from invdiff.sampler.schedule import Schedule


@dataclass(frozen=True)
class PlugAndPlay:
    """Attributes:
    schedule: the denoiser's levels.
    trust: weight of the data over what the noise level gives (1 by theory).
    momentum: extrapolation m, 0 for none.
    cg: CG steps of the data term, warm-started at the denoised image.
    rho, tau: coupling of the slices of a stack; rho = 0 for none.
    """

    schedule: Schedule
    trust: float = 5.0
    momentum: float = 0.7
    cg: int = 6
    rho: float = 0.0
    tau: float = 0.005
    name: ClassVar[str] = "plug_and_play"
    claim: ClassVar[Claim] = "point"

    @property
    def needs_stack(self) -> bool:
        """Whether it refuses events that are no stack of slices."""
        return self.rho > 0

    @property
    def steps(self) -> int:
        return len(self.schedule)

    @torch.no_grad()
    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        shape: tuple[int, ...],
        noise: ParticleNoise,
        progress: Progress | None = None,
    ) -> Draws:
        operator = measurement.linear(self.name)
        weight = self.trust / measurement.gaussian(self.name).variance()
        data = operator.adjoint(measurement.y.to(noise.device, noise.dtype)[None])
        x = measurement.proximal(
            torch.zeros_like(data),
            weight * prior.card.std**2,
            data=data,
            iterations=10,
            tolerance=1e-6,
            direct=False,
        ).x
        z = x
        coupling = AxialTV(self.rho, self.tau) if self.rho > 0 else None
        if coupling is not None:
            state = coupling.begin(x)
            norm2 = operator.norm(shape, noise.device, noise.dtype) ** 2
        for k, sigma in enumerate(self.schedule):
            denoised = prior.denoise(z, sigma)
            gamma = weight * sigma**2
            if coupling is not None:
                fresh = coupling.sweep(
                    measurement, denoised, gamma, state, data=data, norm2=norm2, iterations=self.cg
                )
            else:
                fresh = measurement.proximal(
                    denoised, gamma, data=data, iterations=self.cg, tolerance=1e-6, direct=False
                ).x
            z = fresh + self.momentum * (fresh - x)
            x = fresh
            if progress is not None:
                progress(k + 1, len(self.schedule))
        require_finite(x, self.name)
        return Draws(x.expand(len(noise.streams), *x.shape[1:]).clone())
