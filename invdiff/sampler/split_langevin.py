"""Annealed split Langevin: the likelihood exactly, the prior through Tweedie.

One sweep at level rho is a Langevin step of length rho^2 on log p_rho(x) + log p(y | x),
split in two, for `y = A x + sigma_y e`:

    z  = P ( x + sqrt(2) rho n + gamma A^T (y + sigma_y e) ),     P = (1 + gamma A^T A)^-1
    x' = D(z; rho) = z + rho^2 grad log p_rho(z),                 gamma = rho^2 / sigma_y^2

The first half leaves exp(-|y - Ax|^2 / 2 sigma_y^2) invariant whatever rho is (its
noise has the covariance P (2 rho^2 + rho^4 A^T A / sigma_y^2) P that an implicit
Ornstein-Uhlenbeck step needs), so measured components may be stiff; it costs one
CG solve. The second is one network call and needs no derivative. rho falls from
`schedule[0]` to `schedule[-1]`; unlike in guided reverse diffusion the network
always sees the measured part at the precision of the data instead of hidden
under noise of level sigma, and no model of Cov[x0 | x_sigma] is needed.

Law: consistent as rho -> 0 with many sweeps. For a Gaussian prior the chain is
linear and its stationary law is known: a component of prior variance v that is
not measured has variance v / (1 + rho^2 / (2 v)) (tested), so details of std
below the last rho are underrepresented. Sources: the plug-and-play unadjusted
Langevin algorithm (Laumont et al. 2022, SIAM J. Imaging Sci. 15:701) with its
data step made exact, as in split Gibbs (Vono et al. 2019; Wu et al., arXiv
2405.18782), and annealed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.prior.prior import Prior
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.loop import Progress, require_finite
from invdiff.sampler.schedule import Schedule


@dataclass(frozen=True)
class SplitLangevin:
    """Attributes:
    schedule: the levels rho, one sweep each.
    iterations, tolerance: of the CG solve.
    """

    schedule: Schedule
    iterations: int = 25
    tolerance: float = 1e-3
    name: ClassVar[str] = "split_langevin"
    claim: ClassVar[Claim] = "approximate"

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise InputError("split_langevin needs at least one CG iteration")

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
    ) -> Float[Tensor, particles * event]:
        operator = measurement.linear(self.name)
        y = measurement.y.to(noise.device, noise.dtype)[None]
        variance = measurement.noise.variance()
        level = math.sqrt(variance)
        mean = torch.full((1, *shape), prior.card.mean, device=noise.device, dtype=noise.dtype)

        def draw(center: Tensor, gamma: float) -> Tensor:
            data = operator.adjoint(y + level * noise.normal(tuple(y.shape[1:])))
            return measurement.proximal(
                center, gamma, data=data, iterations=self.iterations, tolerance=self.tolerance
            ).x

        # Start from the least-squares solution nearest the prior mean: what is
        # measured is there from the first sweep on.
        weight = 1e2 * prior.card.std**2 / variance
        x = measurement.proximal(mean, weight, iterations=10, direct=False).x
        x = x.expand(len(noise.streams), *shape)
        for k, rho in enumerate(self.schedule):
            z = draw(x + math.sqrt(2) * rho * noise.normal(shape), rho**2 / variance)
            x = prior.denoise(z, rho)
            if progress is not None:
                progress(k + 1, len(self.schedule))
        require_finite(x, self.name)
        return x
