"""Annealed split Langevin with momentum: the likelihood exactly, the prior through Tweedie.

One sweep at level rho is a Langevin step of length rho^2 on log p_rho(x) + log p(y | x),
split in two, for `y = A x + sigma_y e`, gamma = rho^2 / sigma_y^2, momentum m:

    z' = P ( x + m (z - z_) + sqrt(2 (1 - m)) rho n + gamma A^T (y + sqrt(k) sigma_y e) )
    x' = D(z'; rho) = z' + rho^2 grad log p_rho(z'),        P = (1 + gamma A^T A)^-1

z_ is the z before. The first line is one CG solve (or the operator's resolvent),
the second one network call and no derivative. The noise is such that the first
line alone leaves exp(-|y - Ax|^2 / 2 sigma_y^2) invariant where A^T A = |A|^2, for
any rho: with g = gamma |A|^2 an AR(2) process has the right stationary variance for

    k g = (1 + g - m)(2 + g + 2 m) / (1 + g + m) - 2 (1 - m)

(k = 1 without momentum, and then for every A). So measured components may be as
stiff as they like. Heavy-ball momentum mixes what is not measured about
(1 + m)/(1 - m) times faster, at the same number of network calls. rho falls from
`schedule[0]` to `schedule[-1]`. Unlike in guided reverse diffusion the network
always sees the measured part at the precision of the data instead of hidden
under noise of level sigma, and no model of Cov[x0 | x_sigma] is needed.

With `UnknownGaussianNoise` every sweep also draws sigma_y^2 from its conditional law
given z (Gibbs), so the level is inferred together with x; it is identified once rho is
near sigma_y, and each particle has its own.

Law: consistent as rho -> 0 with many sweeps. For a Gaussian prior the chain is
linear and its stationary law is known: where nothing is measured z has variance
rho^2 / (a (1 - a / (2 (1 + m)))), a = rho^2 / (v + rho^2), for a component of prior
variance v, so x has v / (1 + rho^2 / (2 v)) at m = 0 (tested): details of std below
the last rho are underrepresented. Sources: the plug-and-play unadjusted Langevin
algorithm (Laumont et al. 2022, SIAM J. Imaging Sci. 15:701) with its data step
made exact, as in split Gibbs (Vono et al. 2019; Wu et al., arXiv 2405.18782),
annealed, and with momentum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import UnknownGaussianNoise
from invdiff.prior.prior import Prior
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.loop import Draws, Progress, require_finite
from invdiff.sampler.plug_and_play import PlugAndPlay
from invdiff.sampler.schedule import Schedule, loguniform


@dataclass(frozen=True)
class SplitLangevin:
    """Attributes:
    schedule: the levels rho, one sweep each.
    momentum: m, in [0, 1).
    start_steps: network calls of the plug-and-play estimate that all samples start from;
        0 starts from least squares. The first rho must then cover the estimate's error.
    start_trust: weight of the data in that estimate over what their noise gives; where they leave much open
        (a limited angle), 1 lets the prior say more.
    iterations, tolerance: of the CG solve.
    """

    schedule: Schedule
    momentum: float = 0.0
    start_steps: int = 0
    start_trust: float = 5.0
    iterations: int = 25
    tolerance: float = 1e-3
    start: Tensor | None = None
    norm2: float = 1.0
    name: ClassVar[str] = "split_langevin"
    claim: ClassVar[Claim] = "approximate"

    def __post_init__(self) -> None:
        if self.start_steps < 0:
            raise InputError(f"start_steps is {self.start_steps}; expected 0 or more")
        if self.iterations < 1 or not 0 <= self.momentum < 1:
            raise InputError("split_langevin needs iterations >= 1 and 0 <= momentum < 1")

    @property
    def steps(self) -> int:
        return len(self.schedule)

    @torch.no_grad()
    def prepare(
        self,
        prior: Prior,
        measurement: Measurement,
        shape: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> SplitLangevin:
        """This sampler with the start that all samples of a problem share (deterministic)."""
        if self.start is not None:
            return self
        operator = measurement.linear(self.name)
        norm2 = operator.norm(shape, device, dtype) ** 2 if self.momentum else 1.0
        if self.start_steps:
            levels = loguniform(self.start_steps, 0.3, 0.03)
            estimate = PlugAndPlay(levels, trust=self.start_trust)(
                prior, measurement, shape, ParticleNoise(0, [0], device=device, dtype=dtype)
            )
            return replace(self, start=estimate.x, norm2=norm2)
        mean = torch.full((1, *shape), prior.card.mean, device=device, dtype=dtype)
        weight = 1e2 * prior.card.std**2 / measurement.gaussian(self.name).variance()
        start = measurement.proximal(mean, weight, iterations=10, direct=False).x
        return replace(self, start=start, norm2=norm2)

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
        y = measurement.y.to(noise.device, noise.dtype)[None]
        variance = measurement.gaussian(self.name).variance()
        level = math.sqrt(variance)
        ready = self.prepare(prior, measurement, shape, noise.device, noise.dtype)
        assert ready.start is not None
        x = ready.start.expand(len(noise.streams), *shape)
        inferred = isinstance(measurement.noise, UnknownGaussianNoise)
        if inferred and len(noise.streams) > 1:
            raise InputError("an unknown noise level is inferred for one sample at a time; use run.batch=1")
        m, z = self.momentum, x
        speed = torch.zeros_like(x)
        for k, rho in enumerate(self.schedule):
            gamma = rho**2 / variance
            center = x + m * speed + math.sqrt(2 * (1 - m)) * rho * noise.normal(shape)
            blur = math.sqrt(data_noise(gamma * ready.norm2, m)) * level * noise.normal(tuple(y.shape[1:]))
            fresh = measurement.proximal(
                center,
                gamma,
                data=operator.adjoint(y + blur),
                iterations=self.iterations,
                tolerance=self.tolerance,
            ).x
            speed, z = fresh - z, fresh
            if inferred:
                square = float(measurement.residual(z).double().square().sum())
                variance = square / chi_square(measurement.size, float(noise.normal((1,))))
                level = math.sqrt(variance)
            x = prior.denoise(z, rho)
            if progress is not None:
                progress(k + 1, len(self.schedule))
        require_finite(x, self.name)
        return Draws(x)


def chi_square(degrees: int, normal: float) -> float:
    """A chi-square draw from a standard normal one (Wilson & Hilferty 1931; for degrees >= 30)."""
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + normal * math.sqrt(spread)) ** 3)


def data_noise(g: float, momentum: float) -> float:
    """k of the module's formula: the variance of the data's perturbation, in sigma_y^2."""
    if momentum == 0 or g == 0:
        return 1.0
    top = (1 + g - momentum) * (2 + g + 2 * momentum) / (1 + g + momentum)
    return (top - 2 * (1 - momentum)) / g
