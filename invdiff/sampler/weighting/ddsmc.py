"""Decoupled diffusion sequential Monte Carlo: DDSMC (arXiv 2502.06379), matrix-free.

With delta = sigma^2 - sigma'^2, a = delta / sigma^2, b = 1 - a (their eta = 1 and x_hat = D(x; sigma), the
one pair with stochastic steps that keeps the prior's marginals as steps are refined) the prior's kernel is

    p(x' | x) = N(a D + b x, a sigma'^2)

and, for any rho with a rho^2 <= sigma'^2, also the x'-marginal of the linear-Gaussian model

    z | x ~ N(D, rho^2),   x' = a z + b x + sqrt(a sigma'^2 - a^2 rho^2) xi,   y = A z + sigma_y e .

The proposal is x' given y in that model: z by perturb-and-solve, then x', which is their
N(a mu~ + b x, (a sigma'^2 - a^2 rho^2) I + a^2 M^-1) without a matrix. Being a conditional law its density
needs none either (ours): with S(r^2) = r^2 A A^T + sigma_y^2 and the twist psi(x) = N(y; A D, S(rho^2)),

    p(x' | x) / q(x' | x) = psi(x) / N(y; A z_, S(s^2)),
    z_  = E[z | x, x']   = D + (rho / sigma')^2 (x' - a D - b x),
    s^2 = Var[z | x, x'] = rho^2 (1 - a rho^2 / sigma'^2)

    log w += log psi'(x') - log N(y; A z_, S(s^2))         a step, psi' at the new level
    log w += log p(y | x0) - log psi,   x0 = D                   the end

Both exponents are values of proximal problems (see `twisted`). The determinants are the same for all
particles and count for the evidence only. Ours too: rho'^2 = s^2 (the recursion of Var[x0 | x_sigma] for a
Gaussian prior, up to the step), so that they telescope to log det S(rho_K^2) - log det S(rho_0^2), which is

    int tr(1 - P) d log rho^2,      P = (1 + rho^2 A^T A / sigma_y^2)^-1,

by Gauss-Legendre quadrature; the trace is exact up to 512 components and from 16 random probes above.

The target is that of `twisted`: the law of x0 given y under the prior's K-step chain, with unbiased evidence
(while CG converges, and 512 components are not exceeded). No network derivative is taken.

Measured. Evidence over the chain's at 5, 12, 40 steps 1.001(4), .999(2), .999(1). Gaussian with
variances .01 to 10 and three rows: std over exact .90 to .94 at 60 steps, .97 to 1.00 at 240 (the
ancestral kernel's error, which no weight corrects in what is not measured). By `invdiff verify`, 4
particles a draw: exact in 33 of 34 runs on Gaussians of 0 to 36 nats, a toy mixture and mixtures of 1.3
to 19.5 nats, the other with mode weights 3.5 floors off.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.linear import squared
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.schedule import Schedule, loguniform
from invdiff.sampler.weighting.target import Target

EXACT_TRACE, PROBES = 512, 16


@dataclass(frozen=True)
class DDSMC:
    """Settings of the method.

    Attributes:
        steps: levels, equally spaced in log sigma.
        sigma_max, sigma_min: first and last level; the last is lowered to sigma_y / (3 |A|),
            since x0 = D stands for a law of that width.
        widen: factor on the prior's total std in rho; wide is safe, narrow gives modes up early.
        iterations, tolerance: of the CG of each solve, three a step.
    """

    steps: int = 100
    sigma_max: float = 80.0
    sigma_min: float = 0.02
    widen: float = 1.0
    iterations: int = 50
    tolerance: float = 1e-6
    name: ClassVar[str] = "ddsmc"
    reach: ClassVar[float] = 5
    needs_linear: ClassVar[bool] = True
    claim: ClassVar[Claim] = "consistent"

    def __post_init__(self) -> None:
        if self.widen <= 0 or self.iterations < 1:
            raise InputError("ddsmc needs widen > 0 and iterations >= 1")

    def model(self, target: Target, generator: torch.Generator) -> DDSMCModel:
        target.measurement.linear(self.name)
        levels = loguniform(self.steps, *target.bounds(self.sigma_max, self.sigma_min, resolve=True))
        first = 1 / (1 / levels[0] ** 2 + 1 / (self.widen * target.prior.card.std) ** 2)
        rho2, s2 = variances(levels, first)
        volume = log_determinants(self, target, rho2, s2, generator)
        return DDSMCModel(self, target, levels, rho2, s2, volume)


@dataclass(frozen=True)
class Particles:
    """Particles, denoised, and the exponent of their twist."""

    x: Float[Tensor, "n *event"]
    denoised: Float[Tensor, "n *event"]
    log_twist: Float[Tensor, "n"]


@dataclass(frozen=True)
class DDSMCModel:
    """The Feynman-Kac model; `volume` is the log of what the proposals' determinants leave."""

    settings: DDSMC
    target: Target
    levels: Schedule
    rho2: tuple[float, ...]
    s2: tuple[float, ...]
    volume: float

    @property
    def steps(self) -> int:
        return len(self.levels)

    @cached_property
    def data(self) -> Float[Tensor, "1 *event"]:
        """`A^T y`."""
        operator = self.target.measurement.linear(self.settings.name)
        return operator.adjoint(self.target.measurement.y.to(self.target.device, self.target.dtype)[None])

    @torch.no_grad()
    def start(self, count: int, generator: torch.Generator) -> tuple[Particles, Float[Tensor, "n"]]:
        x = self.target.first(self.levels[0], count, generator)
        particles = self.twist(x, 0)
        return particles, particles.log_twist + self.volume

    @torch.no_grad()
    def move(
        self, k: int, particles: Particles, generator: torch.Generator
    ) -> tuple[Particles, Float[Tensor, "n"]]:
        p = particles
        if k == self.steps - 1:
            likelihood = self.target.measurement.log_likelihood(p.denoised)
            return Particles(p.denoised, p.denoised, likelihood), likelihood - p.log_twist
        fresh2, rho2 = self.levels[k + 1] ** 2, self.rho2[k]
        a = 1 - fresh2 / self.levels[k] ** 2
        plain = torch.lerp(p.x, p.denoised, a)
        count, normal = len(p.x), self.target.normal
        center = p.denoised + rho2**0.5 * normal(count, generator)
        blur = torch.randn((count, *self.target.measurement.y.shape), generator=generator, dtype=p.x.dtype)
        z = self.solve(center, rho2, blur.to(p.x.device))
        rest = math.sqrt(a * fresh2 - a**2 * rho2)
        x = plain + a * (z - p.denoised) + rest * normal(count, generator)
        moved = self.twist(x, k + 1)
        behind = self.exponent(p.denoised + rho2 / fresh2 * (x - plain), self.s2[k])
        return moved, moved.log_twist - behind

    def twist(self, x: Float[Tensor, "n *event"], k: int) -> Particles:
        """D and the exponent of psi at level k."""
        denoised = self.target.denoise(x, self.levels[k])
        return Particles(x, denoised, self.exponent(denoised, self.rho2[k]))

    def exponent(self, center: Float[Tensor, "n *event"], r2: float) -> Float[Tensor, "n"]:
        """`-(y - A c)^T S(r^2)^-1 (y - A c) / 2`."""
        solution, noise = self.solve(center, r2), self.target.measurement.noise.variance()
        value = squared(self.target.measurement.residual(solution)) / noise + squared(solution - center) / r2
        return -0.5 * value

    def solve(
        self, center: Float[Tensor, "n *event"], r2: float, blur: Float[Tensor, "n *data"] | None = None
    ) -> Float[Tensor, "n *event"]:
        """`argmin |y + sigma_y blur - A z|^2 / sigma_y^2 + |z - center|^2 / r^2`."""
        options, noise, data = self.settings, self.target.measurement.noise.variance(), self.data
        if blur is not None:
            data = data + noise**0.5 * self.target.measurement.linear(options.name).adjoint(blur)
        return self.target.measurement.proximal(
            center, r2 / noise, data=data, iterations=options.iterations, tolerance=options.tolerance
        ).x


def variances(levels: Schedule, first: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """rho^2 of every level and s^2 of every step; rho is lowered where steps are too long for it."""
    rho2, s2, r2 = [], [], first
    for sigma, fresh in itertools.pairwise(levels):
        a = 1 - (fresh / sigma) ** 2
        r2 = min(r2, 0.5 * fresh**2 / a)
        rho2.append(r2)
        r2 *= 1 - a * r2 / fresh**2
        s2.append(r2)
    return (*rho2, r2), tuple(s2)


@torch.no_grad()
def log_determinants(
    settings: DDSMC,
    target: Target,
    rho2: tuple[float, ...],
    s2: tuple[float, ...],
    generator: torch.Generator,
) -> float:
    """`-1/2 sum_k [ log det S(rho_k^2) - log det S(s_k^2) ]`."""
    measurement, shape, device, dtype = target.measurement, target.shape, target.device, target.dtype
    size, noise = math.prod(shape), measurement.noise.variance()
    if size <= EXACT_TRACE:
        probes, share = torch.eye(size, dtype=dtype), 1.0
    else:
        signs = torch.randint(0, 2, (PROBES, size), generator=generator)
        probes, share = (2 * signs - 1).to(dtype), 1 / PROBES
    probes = probes.reshape(-1, *shape).to(device)
    nodes, weights = np.polynomial.legendre.leggauss(32)
    ends = [(low, high) for high, low in zip(rho2, s2, strict=False)]
    spans: list[tuple[float, float]] = []
    for low, high in ends:
        spans.append((low, spans.pop()[1]) if spans and spans[-1][0] == high else (low, high))
    total = 0.0
    for low, high in spans:
        half, middle = 0.5 * math.log(high / low), 0.5 * math.log(high * low / noise**2)
        for node, weight in zip(nodes, weights, strict=True):
            seen = measurement.proximal(
                probes,
                math.exp(middle + half * float(node)),
                data=torch.zeros_like(probes[:1]),
                iterations=settings.iterations,
                tolerance=settings.tolerance,
            ).x
            total += half * float(weight) * share * float((probes * (probes - seen)).double().sum())
    return -0.5 * total
