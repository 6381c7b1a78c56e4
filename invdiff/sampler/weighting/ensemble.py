"""Ensemble sampling by rate weights: AFDPS and Feynman-Kac correctors in one.

Path of densities  q_sigma(x) ~ P_sigma(x) exp(-mu_sigma(x)),  P = prod_i p_i,sigma^(b_i),
mu = |A(x) - y|^2 / (2 r^2) at the *noisy* x, tempered r^2 = sigma_y^2 + (gamma |A| sigma)^2. With the
clock delta = sigma^2 - sigma'^2, S = sum_i b_i s_i, noise scale c and guidance eta:

    x'     = x + delta [ (1 + c^2)/2 S - eta c^2 grad mu ] + c sqrt(delta) z
    log w += delta [ c^2/2 (|grad mu|^2 - lap mu) - (1 + c^2)/2 S . grad mu
                     + (1 - eta) c^2 (lap mu + (S - grad mu) . grad mu) ]
           + delta/2 (|S|^2 - sum_i b_i |s_i|^2)  -  [ mu_sigma'(x) - mu_sigma(x) ]

all at the old x. One rule generates it: adding a drift b to a path with density q costs the rate
div b + b . grad log q. With one prior this is AFDPS (Chen et al., arXiv 2506.03979); with
compositions and no data it is FKC (Skreta et al., arXiv 2503.02819), whose start has variance
sigma^2 / B, B = sum_i b_i.

eta = 1/2, c = 1 (the default) needs no Laplacian, no |grad mu|^2 and no network derivative: one
network call a step. At gamma = 0 and eta above 2 - sqrt(2) the weights have infinite variance;
eta = 1 is the paper's and is wrong there with an effective sample size of .86. Sharpening by b
needs c^2 of about 4 (c = 1: noisy; c = 0: the cloud contracts and never covers the target).

`control` adds the drift theta_1 (-grad mu) + theta_2 (x - mean(x)) with the theta of least variance of the
increment over the population, at each level (DriftLite, Ren et al., arXiv 2509.21655): no network call, eta
chooses itself. N(0, I) in d dimensions seen at noise .3, tempered, 500 particles: std of log Z .15 -> .04
(d = 4), .34 -> .05 (d = 8), error of the mean halved at d = 8; eta = 1 becomes as good as 1/2. On a mixture
with well separated modes the variance was worse (.08 -> .17). The population is taken with equal weights,
and theta_1 stays where one step is of first order. Their third basis, S, needs tr J and is not here.

Consistent as particles grow and steps shrink (the rates are of first order in the step), for at
most about eight observed components: without a twist the likelihood sees the noisy x. On images
it selects particles.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.linear import inner, squared
from invdiff.measurement.operator import LinearOperator
from invdiff.prior.compose import Composition
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.schedule import Schedule, loguniform
from invdiff.sampler.weighting.target import Target

STABLE = 0.25  # most of eta delta |A|^2 / r^2 that the control takes: the weights are of first order in it
PROBES = 64  # of the trace of A^T A where it is not computed exactly


@dataclass(frozen=True)
class Ensemble:
    """Settings of the method.

    Attributes:
        steps: levels, equally spaced in log sigma; the last step goes to 0.
        sigma_max, sigma_min: first and last level; the last is lowered to sigma_y / (3 |A|), since
            the likelihood sits at the noisy x.
        guidance: eta.
        temper: gamma; 0 keeps the likelihood as it is at every level. |A| is 1 for a nonlinear A.
        noise: c; 0 is the probability-flow ODE (add Langevin moves).
        langevin: moves at each new level, needed where c = 0.
        langevin_step: their step in units of min(sigma^2, r^2 / |A|^2).
        control: add the drift that makes the weights vary least.
        levels: explicit levels instead.
        final: take the last step to 0; without it the law is that at the last level.
    """

    steps: int = 100
    sigma_max: float = 80.0
    sigma_min: float = 0.02
    guidance: float = 0.5
    temper: float = 1.0
    noise: float = 1.0
    langevin: int = 0
    langevin_step: float = 0.1
    control: bool = False
    levels: tuple[float, ...] | None = None
    final: bool = True
    name: ClassVar[str] = "ensemble"
    reach: ClassVar[float] = 4  # 30 mixtures: right in all 16 below, wrong in 3 of 14 above
    composes: ClassVar[bool] = True
    unbiased: ClassVar[bool] = False  # the evidence is of first order in the step
    claim: ClassVar[Claim] = "consistent"

    @property
    def needs_linear(self) -> bool:
        return self.control or (self.noise > 0 and self.guidance != 0.5)

    def __post_init__(self) -> None:
        if self.noise < 0 or self.temper < 0 or self.langevin < 0:
            raise InputError("ensemble needs noise, temper and langevin of at least 0")

    def model(self, target: Target, generator: torch.Generator) -> EnsembleModel:
        target.measurement.gaussian(self.name)
        bounds = target.bounds(self.sigma_max, self.sigma_min, resolve=True)
        levels = self.levels or loguniform(self.steps, *bounds)
        whole = (*levels, 0.0) if self.final else tuple(levels)
        laplacian = squared_norm(target) if self.needs_linear else 0.0
        model = EnsembleModel(self, target, whole, target.norm, laplacian)
        self._require_stable(model)
        return model

    def _require_stable(self, model: EnsembleModel) -> None:
        """The guidance is an explicit Euler step, stable for eta delta |A|^2 / r^2 below 2."""
        steps = itertools.pairwise(model.levels)
        worst = max((a**2 - b**2) * model.norm**2 / model.scale(a) for a, b in steps)
        if self.noise and self.guidance * self.noise**2 * worst > 2:
            raise InputError(
                f"ensemble's guidance is unstable: eta delta |A|^2 / r^2 reaches "
                f"{self.guidance * self.noise**2 * worst:.3g} and must stay below 2; "
                "raise sampler.temper or sampler.steps"
            )


def squared_norm(target: Target) -> float:
    """`tr A^T A` of a linear operator: exact up to 512 measured components, else by fixed probes."""
    measurement, device, dtype = target.measurement, target.device, target.dtype
    operator = measurement.linear("ensemble with guidance other than 1/2")
    size = measurement.y.numel()
    if size <= 512:
        basis = torch.eye(size, device=device, dtype=dtype).reshape(-1, *measurement.y.shape)
        return float(operator.adjoint(basis).double().square().sum())
    g = torch.Generator().manual_seed(0)
    probes = target.normal(PROBES, g).sign()
    return float(operator.forward(probes).double().square().sum()) / PROBES


def least_varying(
    rate: Float[Tensor, "n"], rates: list[Float[Tensor, "n"]], bounds: tuple[tuple[float, float], ...]
) -> list[float]:
    """theta of least Var(rate + sum theta_i rates_i), each in its bounds."""
    basis = torch.stack([one - one.mean() for one in rates], dim=1)
    gram = basis.mT @ basis
    gram = gram + 1e-6 * torch.diag(gram.diagonal().clamp_min(1e-300))
    found = -torch.linalg.solve(gram, basis.mT @ (rate - rate.mean()))
    return [min(max(float(one), low), high) for one, (low, high) in zip(found, bounds, strict=True)]


@dataclass(frozen=True)
class EnsembleModel:
    """The Feynman-Kac model; particles are plain tensors."""

    settings: Ensemble
    target: Target
    levels: Schedule
    norm: float
    laplacian: float

    @property
    def steps(self) -> int:
        return len(self.levels) - 1

    def start(self, count: int, generator: torch.Generator) -> tuple[Tensor, Float[Tensor, "n"]]:
        sigma = self.levels[0]
        # The marginal of prod q_i^(b_i) has variance (sigma^2 + v) / B at a level that dwarfs the data.
        prior = self.target.prior
        power = prior.total if isinstance(prior, Composition) else 1.0
        x = self.target.first(sigma / math.sqrt(power), count, generator)
        return x, -self.energy(x, sigma)

    def scale(self, sigma: float) -> float:
        """r^2."""
        return self.target.measurement.noise.variance() + (self.settings.temper * self.norm * sigma) ** 2

    def energy(self, x: Float[Tensor, "n *event"], sigma: float) -> Float[Tensor, "n"]:
        """mu with its normalisation, so that the evidence is that of p(y)."""
        r2, size = self.scale(sigma), self.target.measurement.size
        with torch.no_grad():
            square = squared(self.target.measurement.residual(x))
        return square / (2 * r2) + 0.5 * size * math.log(2 * math.pi * r2)

    def slope(self, x: Float[Tensor, "n *event"], sigma: float) -> Float[Tensor, "n *event"]:
        """grad mu."""
        operator = self.target.measurement.operator
        if isinstance(operator, LinearOperator):
            with torch.no_grad():
                return -operator.adjoint(self.target.measurement.residual(x)) / self.scale(sigma)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            total = self.target.measurement.residual(leaf).square().sum() / (2 * self.scale(sigma))
            return torch.autograd.grad(total, leaf)[0]

    def score(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor | float]:
        """S, and |S|^2 - sum b_i |s_i|^2 of a composition."""
        prior = self.target.prior
        if isinstance(prior, Composition):
            with torch.no_grad():
                denoised, correction = prior.evaluate(x, sigma)
            return (denoised - x) / sigma**2, correction
        return (self.target.denoise(x, sigma) - x) / sigma**2, 0.0

    def noise(self, count: int, generator: torch.Generator) -> Float[Tensor, "n *event"]:
        return self.target.normal(count, generator)

    def move(
        self, k: int, x: Float[Tensor, "n *event"], generator: torch.Generator
    ) -> tuple[Tensor, Float[Tensor, "n"]]:
        x, increment = self.driven(k, x, self.noise(len(x), generator))
        return self.langevin(x, self.levels[k + 1], generator), increment

    def driven(
        self, k: int, x: Float[Tensor, "n *event"], xi: Float[Tensor, "n *event"]
    ) -> tuple[Tensor, Float[Tensor, "n"]]:
        sigma, fresh = self.levels[k], self.levels[k + 1]
        delta, c2, eta = sigma**2 - fresh**2, self.settings.noise**2, self.settings.guidance
        score, correction = self.score(x, sigma)
        slope = self.slope(x, sigma)
        along = inner(score.double(), slope.double())
        rate = -(1 + c2) / 2 * along
        if c2:
            curve, square = self.laplacian / self.scale(sigma), squared(slope)
            # At eta = 1/2 the Laplacian and |grad mu|^2 cancel and are not computed.
            rate = rate + c2 * ((0.5 - eta) * (curve - square) + (1 - eta) * along)
        increment = delta * (rate + correction / 2) - (self.energy(x, fresh) - self.energy(x, sigma))
        drift = (1 + c2) / 2 * score - eta * c2 * slope
        if self.settings.control:
            most = STABLE * self.scale(sigma) / max(self.norm, 1e-30) ** 2 / delta
            bounds = ((-eta * c2, most - eta * c2), (-0.1 / delta, 0.1 / delta))
            added, rates = self.controls(x, score, slope, sigma)
            shares = least_varying(increment / delta, rates, bounds)
            for share, more, rate in zip(shares, added, rates, strict=True):
                drift, increment = drift + share * more, increment + delta * share * rate
        x = x + delta * drift
        return (x + math.sqrt(c2 * delta) * xi if fresh > 0 else x), increment

    def controls(
        self, x: Float[Tensor, "n *event"], score: Tensor, slope: Tensor, sigma: float
    ) -> tuple[list[Tensor], list[Float[Tensor, "n"]]]:
        """Drifts b that need no network call, -grad mu and x - mean(x), and the rates they cost."""
        center = x - x.mean(dim=0)
        toward = (score - slope).double()
        curve = self.laplacian / self.scale(sigma)
        rates = [-curve - inner(slope.double(), toward), x[0].numel() + inner(center.double(), toward)]
        return [-slope, center], rates

    def langevin(
        self, x: Float[Tensor, "n *event"], sigma: float, generator: torch.Generator
    ) -> Float[Tensor, "n *event"]:
        """Unadjusted Langevin moves at the density of one level."""
        for _ in range(self.settings.langevin if sigma > 0 else 0):
            limit = min(sigma**2, self.scale(sigma) / max(self.norm, 1e-30) ** 2)
            step = self.settings.langevin_step * limit
            drift = self.score(x, sigma)[0] - self.slope(x, sigma)
            x = x + step * drift + math.sqrt(2 * step) * self.noise(len(x), generator)
        return x
