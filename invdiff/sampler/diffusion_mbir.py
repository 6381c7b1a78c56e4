"""DiffusionMBIR: a prior of slices in the plane, total variation across them, in one reverse diffusion.

At every level, with D = D(x; sigma) slice by slice (Chung et al., arXiv 2211.10655; on D and with DDS'
step as in arXiv 2303.05754):

    x0' = one ADMM sweep of `axial_tv` from D, gamma = r^2 / sigma_y^2,  r^2 = Var(x0 | x_sigma)
    x   = x0' + sigma' (sqrt(1 - eta^2) (x - D) / sigma + eta z)

z may be the same for all slices (`shared_noise`), which keeps what the data leave open from being
decided differently in neighbours. With rho = 0 it is DDS slice by slice in one batch. The published form has
no r^2: gamma -> infinity with five CG steps as the regulariser (`gamma` sets it by hand).

A heuristic: the law it samples is none that is known, its spread is too small as DDS' is, and with shared
noise the slices of a sample are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.prior.prior import Prior
from invdiff.sampler.axial_tv import AxialTV
from invdiff.sampler.guidance.guidance import Claim, Guided
from invdiff.sampler.integrator import ExponentialMultistep
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.loop import Draws, Progress, descend, require_finite
from invdiff.sampler.schedule import Schedule
from invdiff.sampler.start import prior_marginal


@dataclass(frozen=True)
class DiffusionMBIR:
    """Attributes:
    schedule: noise levels.
    rho, tau, periodic: of the coupling, see `AxialTV`; rho = 0 for none.
    eta: share of fresh noise.
    gamma: weight of the data; None for r^2 / sigma_y^2.
    cg: CG steps of a sweep.
    shared_noise: one noise for all slices.
    """

    schedule: Schedule
    rho: float = 0.003
    tau: float = 0.005
    periodic: bool = False
    eta: float = 0.85
    gamma: float | None = None
    cg: int = 10
    shared_noise: bool = False
    coupling: AxialTV = field(init=False)
    name: ClassVar[str] = "diffusion_mbir"
    claim: ClassVar[Claim] = "heuristic"
    needs_stack: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.cg < 1 or not 0 <= self.eta <= 1 or (self.gamma is not None and not self.gamma > 0):
            raise InputError("diffusion_mbir needs cg >= 1, 0 <= eta <= 1 and gamma above zero or null")
        object.__setattr__(self, "coupling", AxialTV(self.rho, self.tau, self.periodic))

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
        variance = measurement.gaussian(self.name).variance()
        data = operator.adjoint(measurement.y.to(noise.device, noise.dtype)[None])
        norm2 = operator.norm(shape, noise.device, noise.dtype) ** 2

        def normal(event: tuple[int, ...]) -> Tensor:
            if not self.shared_noise:
                return noise.normal(event)
            return noise.normal((1, *event[1:])).expand(-1, *event)

        x = prior_marginal(prior.card, self.schedule[0], normal(shape))
        state = self.coupling.begin(x)

        def denoise(x: Tensor, sigma: float, sigma_next: float) -> Guided:
            denoised = prior.denoise(x, sigma)
            gamma = self.gamma or prior.card.conditional_variance(sigma) / variance
            guided = self.coupling.sweep(
                measurement, denoised, gamma, state, data=data, norm2=norm2, iterations=self.cg
            )
            return Guided(guided, direction=denoised)

        integrator = ExponentialMultistep(order=1, eta=self.eta, churn="published")
        x = descend(denoise, x, (*self.schedule, 0.0), integrator, normal, progress)
        require_finite(x, self.name)
        return Draws(x)
