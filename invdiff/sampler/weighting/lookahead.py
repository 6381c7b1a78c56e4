"""Lookahead by value: SVDD and its exact form (arXiv 2408.08252).

At each level M children are proposed from the prior's kernel and one is taken with probability
softmax(v / alpha), v = r(D(x')). For finite M that chain has no stated target (and released code takes
the argmax): `exact=False`, an optimiser, more biased the more candidates there are. With the weight

    log w += log mean_j exp(v(x'_j) / alpha) - v(x) / alpha

carried and resampled, started at v / alpha and closed with r(x0) / alpha, it is a filter for
p(x0) exp(r(x0) / alpha) (an auxiliary particle filter; the formula is ours): `exact=True`, the default.
M network calls a step and particle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.sampler import feynman_kac
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.integrator import State
from invdiff.sampler.schedule import Schedule, loguniform
from invdiff.sampler.weighting.target import ANCESTRAL, Target


@dataclass(frozen=True)
class Lookahead:
    """Settings of the method.

    Attributes:
        candidates: M.
        alpha: temperature; 1 for log-likelihoods.
        exact: carry the weights; without them it is SVDD as published, an optimiser.
        greedy: take the best candidate instead of drawing one (only without `exact`).
        steps, sigma_max, sigma_min, levels: as in `steering`.
    """

    candidates: int = 10
    alpha: float = 1.0
    exact: bool = True
    greedy: bool = False
    steps: int = 100
    sigma_max: float = 80.0
    sigma_min: float = 0.02
    levels: tuple[float, ...] | None = None
    name: ClassVar[str] = "lookahead"
    reach: ClassVar[float] = 0
    needs_linear: ClassVar[bool] = False
    needs_gaussian: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.candidates < 1 or not self.alpha > 0:
            raise InputError("lookahead needs at least one candidate and alpha above 0")
        if self.greedy and self.exact:
            raise InputError("a greedy choice has no density; set sampler.exact=false")

    @property
    def claim(self) -> Claim:
        return "consistent" if self.exact else "heuristic"

    def model(self, target: Target, generator: torch.Generator) -> LookaheadModel:
        levels = self.levels or loguniform(self.steps, *target.bounds(self.sigma_max, self.sigma_min))
        return LookaheadModel(self, target, tuple(levels))


@dataclass(frozen=True)
class Particles:
    """Particles with D and v / alpha."""

    x: Float[Tensor, "n *event"]
    denoised: Float[Tensor, "n *event"]
    value: Float[Tensor, "n"]


@dataclass(frozen=True)
class LookaheadModel:
    """The Feynman-Kac model."""

    settings: Lookahead
    target: Target
    levels: Schedule

    @property
    def steps(self) -> int:
        return len(self.levels)

    def evaluate(self, x: Float[Tensor, "n *event"], sigma: float) -> Particles:
        denoised = self.target.denoise(x, sigma)
        with torch.no_grad():
            value = self.target.measurement.log_likelihood(denoised).double() / self.settings.alpha
        if not bool(torch.isfinite(value).all()):
            raise FloatingPointError(f"the log-likelihood is not finite at sigma = {sigma:.4g}")
        return Particles(x, denoised, value)

    def start(self, count: int, generator: torch.Generator) -> tuple[Particles, Float[Tensor, "n"]]:
        x = self.target.first(self.levels[0], count, generator)
        particles = self.evaluate(x, self.levels[0])
        return particles, particles.value if self.settings.exact else torch.zeros_like(particles.value)

    def move(
        self, k: int, particles: Particles, generator: torch.Generator
    ) -> tuple[Particles, Float[Tensor, "n"]]:
        p, options = particles, self.settings
        none = torch.zeros_like(p.value)
        if k == self.steps - 1:
            # v of the last level is r(D) = r(x0): nothing is left to weigh.
            return Particles(p.denoised, p.denoised, p.value), none
        sigma, fresh = self.levels[k], self.levels[k + 1]
        mean, std = ANCESTRAL.kernel(State(p.x, sigma), p.denoised, fresh)
        count, many = len(mean), options.candidates
        spread = std * self.target.normal(count * many, generator)
        children = self.evaluate(mean.repeat_interleave(many, dim=0) + spread, fresh)
        values = children.value.reshape(count, many)
        if options.greedy:
            picked = values.argmax(dim=1)
        else:
            chances = values.softmax(dim=1).cpu()
            picked = torch.multinomial(chances, 1, generator=generator)[:, 0].to(values.device)
        chosen = feynman_kac.gather(children, torch.arange(count, device=values.device) * many + picked)
        if not options.exact:
            return chosen, none
        top = torch.logsumexp(values, dim=1) - torch.tensor(float(many)).double().log()
        return chosen, top - p.value
