"""Twisted diffusion sampling with a matrix-free twist, for data of any size.

    kernel     p(x' | x) = N(m(D), v)          ancestral step to sigma'
    proposal   q(x' | x) = N(m(D_y), v)        the same step of a guided denoiser
    twist      psi_sigma(x) = N(y; A D(x; sigma), r^2 A A^T + sigma_y^2)
    log w     += [ |x' - m(D_y)|^2 - |x' - m(D)|^2 ] / (2 v) + log psi_sigma'(x') - log psi_sigma(x)
    end        x0 = D,   log w += log p(y | x0) - log psi

(Wu et al., arXiv 2306.17775, with twist and proposal by a proximal solve.) The twist's exponent is
the value of the proximal problem that the guided denoiser solves,

    (y - A D)^T (r^2 A A^T + sigma_y^2)^-1 (y - A D) = min_z |y - A z|^2 / sigma_y^2 + |z - D|^2 / r^2 ,

so one solve serves both. Its log-determinant is the same for all particles and telescopes away: the
evidence is that of the *true* likelihood at the end, unbiased for the prior's K-step chain.

The weights are exact whatever r^2 is, their variance is not: r^2 models Cov[x0 | x] by a multiple
of the identity and must not be too small while modes are undecided (see `variance`). They correct a
few dozen observed components; on images they select particles, and reports say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.measurement.linear import squared
from invdiff.sampler.guidance.guidance import Claim, Variance, conditional_variance
from invdiff.sampler.integrator import State
from invdiff.sampler.schedule import Schedule, loguniform
from invdiff.sampler.weighting.target import ANCESTRAL, Target

Proposal: TypeAlias = Literal["proximal", "pigdm", "prior"]


@dataclass(frozen=True)
class Twisted:
    """Settings of the method.

    Attributes:
        steps: levels, equally spaced in log sigma.
        sigma_max, sigma_min: first and last level; the last is lowered to sigma_y / (3 |A|),
            since x0 = D stands for a law of that width.
        proposal: "proximal" (no network derivative), "pigdm" (one vector-Jacobian product) or "prior".
        variance: model of r^2, see `conditional_variance`; "gaussian" is the wide and safe one.
        iterations, tolerance: of the proximal solve's CG.
    """

    steps: int = 100
    sigma_max: float = 80.0
    sigma_min: float = 0.02
    proposal: Proposal = "proximal"
    variance: Variance = "gaussian"
    iterations: int = 30
    tolerance: float = 1e-5
    name: ClassVar[str] = "twisted"
    reach: ClassVar[float] = 12
    needs_linear: ClassVar[bool] = True
    claim: ClassVar[Claim] = "consistent"

    def model(self, target: Target, generator: torch.Generator) -> TwistedModel:
        target.measurement.linear(self.name)
        levels = loguniform(self.steps, *target.bounds(self.sigma_max, self.sigma_min, resolve=True))
        return TwistedModel(self, target, levels)


@dataclass(frozen=True)
class Particles:
    """Particles with their denoised and guided states and the log of the twist."""

    x: Float[Tensor, "n *event"]
    denoised: Float[Tensor, "n *event"]
    guided: Float[Tensor, "n *event"]
    log_twist: Float[Tensor, "n"]


@dataclass(frozen=True)
class TwistedModel:
    """The Feynman-Kac model."""

    settings: Twisted
    target: Target
    levels: Schedule

    @property
    def steps(self) -> int:
        return len(self.levels)

    def start(self, count: int, generator: torch.Generator) -> tuple[Particles, Float[Tensor, "n"]]:
        x = self.target.first(self.levels[0], count, generator)
        particles = self.twist(x, self.levels[0])
        return particles, particles.log_twist

    def move(
        self, k: int, particles: Particles, generator: torch.Generator
    ) -> tuple[Particles, Float[Tensor, "n"]]:
        p = particles
        if k == self.steps - 1:
            with torch.no_grad():
                likelihood = self.target.measurement.log_likelihood(p.denoised)
            return Particles(p.denoised, p.denoised, p.guided, likelihood), likelihood - p.log_twist
        return self.driven(k, p, self.noise(len(p.x), generator))

    def noise(self, count: int, generator: torch.Generator) -> Float[Tensor, "n *event"]:
        return self.target.normal(count, generator)

    def driven(
        self, k: int, p: Particles, xi: Float[Tensor, "n *event"]
    ) -> tuple[Particles, Float[Tensor, "n"]]:
        sigma, fresh = self.levels[k], self.levels[k + 1]
        plain, std = ANCESTRAL.kernel(State(p.x, sigma), p.denoised, fresh)
        mean, _ = ANCESTRAL.kernel(State(p.x, sigma), p.guided, fresh)
        x = mean + std * xi
        ratio = std**2 * xi.flatten(1).double().square().sum(1) - squared(x - plain)
        moved = self.twist(x, fresh)
        return moved, ratio / (2 * std**2) + moved.log_twist - p.log_twist

    def twist(self, x: Float[Tensor, "n *event"], sigma: float) -> Particles:
        """D, D_y and log psi up to a constant common to all particles."""
        options, measurement = self.settings, self.target.measurement
        r2 = conditional_variance(self.target.prior.card, sigma, options.variance)
        noise = measurement.noise.variance()
        with torch.set_grad_enabled(options.proposal == "pigdm"):
            leaf = x.detach().requires_grad_(options.proposal == "pigdm")
            denoised = self.target.prior.denoise(leaf, sigma)
        center = denoised.detach()
        with torch.no_grad():
            solution = measurement.proximal(
                center, r2 / noise, iterations=options.iterations, tolerance=options.tolerance
            ).x
            value = squared(measurement.residual(solution)) / noise + squared(solution - center) / r2
        guided = solution
        if options.proposal == "pigdm":
            (shift,) = torch.autograd.grad(denoised, leaf, (solution - center) / r2)
            guided = center + sigma**2 * shift
        elif options.proposal == "prior":
            guided = center
        return Particles(x, center, guided, -0.5 * value)
