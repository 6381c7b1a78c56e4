"""Moment-twisted sequential Monte Carlo, for data of few components.

Target: the law of x0 given y under the prior that D defines. With C(x) = Cov[x0 | x_sigma = x]
= sigma^2 dD/dx, H = dA/dx at D and S = H C H^T + sigma_y^2, the twist

    psi_sigma(x) = t_nu( y ; A(D(x; sigma)), S )

is the second-order (Tweedie) approximation of p(y | x_sigma = x), heavy-tailed so that a
particle between two modes is not given up early. C H^T comes from finite differences of D along
the rows of H: m + 1 network calls, no network derivative, D stays a black box. Noise that depends on
the signal is linearised statistically: at c = A(D) +- sqrt(diag H C H^T), E[y | c] gives mean and slope
(which joins H) and Var[y | c] stands for sigma_y^2.

The prior kernel sigma -> s is a stochastic Heun step, with rho = (s / sigma)^2, q = 1 - rho,
v = s^2 q and the gain of an isotropic Gaussian (I - q J)^(-1/2) for its noise:

    x1 = rho x + q D(x; sigma) + sqrt(v) xi ,     d = D(x1; s) - D(x; sigma)
    x' = x1 + b d ,   b = ((1 - q j)^(-1/2) - 1) / j ,   j = <xi, d> / (sqrt(v) |xi|^2)

Its weak order is 2 where the ancestral step has 1; the error of the kernel is what no weight
repairs. Any map of xi is a legal kernel, so the twisting is done on xi: the proposal conditions it
on the data in the span of C H^T (rank m), and

    log w += log psi'(x') - log psi(x) + log N(xi; 0, I) - log q(xi)

The last jump to x0 is the exact conditional of N(D, C~), C~ H^T = C H^T, given y.

The weights are exact ratios: the samples are consistent as particles grow, and the evidence is
unbiased, for the prior of this grid of levels. What no weight shows is an error of D itself, which
is amplified in the odds of far modes, and an operator that is far from linear over the spread of
x0 | x. Known to be hard: posterior modes whose prior weight is below one in a hundred.

Sources: Wu et al., arXiv 2306.17775 (twisting); Boys et al., arXiv 2310.06721 (second-order
Tweedie); Heng et al., arXiv 1708.08396 (controlled SMC). Noise-space twisting, the kernel's gain, the
proposal's variances and the placement of the levels by a pilot run are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.sampler import feynman_kac
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.weighting.few_data import FewData
from invdiff.sampler.weighting.pilot import placed, prior_scale
from invdiff.sampler.weighting.target import Target

Twist: TypeAlias = Literal["student", "gaussian"]
Kernel: TypeAlias = Literal["heun", "euler"]


@dataclass(frozen=True)
class MomentTwisted:
    """Settings of the method.

    Attributes:
        steps: moves K after the pilot placed the levels.
        sigma_min: last level, in prior units; well below the finest scale of the prior.
        spread: first level in units of the prior's largest standard deviation.
        twist: "student" (nu = `freedom`), or "gaussian" where the prior is known to be unimodal.
        kernel: "heun", or "euler" (the ancestral kernel, weak order 1).
        guide: draw xi from the data-conditioned proposal; else from the prior.
        pilot: particles of the run that places the levels; 0 for a geometric grid.
        pilot_steps: its moves, on a geometric grid.
        difference: step of the finite differences in units of sigma; None: 1e-4 in float64,
            1e-2 in float32.
    """

    steps: int = 38
    sigma_min: float = 0.05
    spread: float = 5.0
    twist: Twist = "student"
    freedom: float = 4.0
    kernel: Kernel = "heun"
    guide: bool = True
    pilot: int = 64
    pilot_steps: int = 24
    difference: float | None = None
    name: ClassVar[str] = "moment_twisted"
    reach: ClassVar[float] = 40
    needs_linear: ClassVar[bool] = False
    needs_gaussian: ClassVar[bool] = False
    claim: ClassVar[Claim] = "consistent"

    def model(self, target: Target, generator: torch.Generator) -> MomentTwistedModel:
        """The Feynman-Kac model of one problem; `generator` draws the pilot."""
        problem = FewData(target)
        mean, deviation = prior_scale(problem, generator)
        high = min(self.spread * deviation, target.prior.card.sigma_range[1])
        if not high > self.sigma_min:
            raise InputError(
                f"moment_twisted starts at {high:.3g}, {self.spread:g} times the prior's largest std, and "
                f"would end at sigma_min={self.sigma_min:g}; lower sampler.sigma_min"
            )
        count = self.pilot_steps if self.pilot else self.steps
        levels = [high * (self.sigma_min / high) ** (i / count) for i in range(count + 1)]
        model = MomentTwistedModel(self, problem, mean, tuple(levels))
        if not self.pilot:
            return model
        curvature: list[float] = []
        pilot = replace(model, observe=curvature.append)
        feynman_kac.run(pilot, feynman_kac.Settings(self.pilot), generator)
        return replace(model, levels=placed(levels, curvature, self.steps))


@dataclass(frozen=True)
class Particles:
    """Particles with what the twist needs at them (see `MomentTwistedModel.twist`)."""

    x: Float[Tensor, "n size"]
    denoised: Float[Tensor, "n size"]
    cross: Float[Tensor, "n data size"]
    gram: Float[Tensor, "n data data"]
    root: Float[Tensor, "n data data"]
    white: Float[Tensor, "n data"]
    slope: Float[Tensor, "n data"]
    residual: Float[Tensor, "n data"]
    variance: Float[Tensor, "n data"]
    damping: Float[Tensor, "n"]
    log_twist: Float[Tensor, "n"]


@dataclass(frozen=True)
class MomentTwistedModel:
    """The Feynman-Kac model: K moves down the levels and the last jump to x0.

    `observe` is told the mean of tr (J' - j I)^2 at each move: how far D is from an isotropic line.
    """

    settings: MomentTwisted
    problem: FewData
    mean: Float[Tensor, "size"]
    levels: tuple[float, ...]
    observe: Callable[[float], None] | None = None

    @property
    def steps(self) -> int:
        return len(self.levels)

    def start(self, count: int, generator: torch.Generator) -> tuple[Particles, Float[Tensor, "n"]]:
        particles = self.twist(self.mean + self.levels[0] * self.noise(count, generator), self.levels[0])
        return particles, particles.log_twist

    def move(
        self, k: int, particles: Particles, generator: torch.Generator
    ) -> tuple[Particles, Float[Tensor, "n"]]:
        if k == self.steps - 1:
            return self.last(particles, generator)
        return self.driven(k, particles, self.noise(len(particles.x), generator))

    def noise(self, count: int, generator: torch.Generator) -> Float[Tensor, "n size"]:
        return self.problem.normal((count, self.problem.size), generator)

    def driven(
        self, k: int, particles: Particles, xi: Float[Tensor, "n size"]
    ) -> tuple[Particles, Float[Tensor, "n"]]:
        sigma, fresh = self.levels[k], self.levels[k + 1]
        rho = (fresh / sigma) ** 2
        std = fresh * math.sqrt(1 - rho)
        increment = torch.zeros(len(xi), dtype=torch.float64, device=xi.device)
        if self.settings.guide:
            xi, increment = conditioned(particles, xi, (1 - rho) / std)
        x = rho * particles.x + (1 - rho) * particles.denoised + std * xi
        if self.settings.kernel == "heun":
            change = self.problem.denoise(x, fresh) - particles.denoised
            slope = ((xi * change).sum(1) / (std * xi.square().sum(1))).clamp(1e-6, 1.0)[:, None]
            if self.observe is not None:
                self.observe(float((change - slope * std * xi).square().sum(1).mean()) / std**2)
            x = x + ((1 - (1 - rho) * slope).rsqrt() - 1) / slope * change
        moved = self.twist(x, fresh)
        return moved, increment + moved.log_twist - particles.log_twist

    def twist(self, x: Float[Tensor, "n size"], sigma: float) -> Particles:
        """D, C H^T, G = H C H^T, the Cholesky root of S, the white residual and log psi."""
        problem = self.problem
        denoised = problem.denoise(x, sigma)
        rows = problem.jacobian(denoised)
        step = self.settings.difference or (1e-4 if x.dtype == torch.float64 else 1e-2)
        cross = []
        for j in range(rows.shape[1]):
            row = rows[:, j]
            length = step * sigma / row.norm(dim=1, keepdim=True).clamp_min(1e-30)
            cross.append((problem.denoise(x + length * row, sigma) - denoised) * (sigma**2 / length))
        stacked = torch.stack(cross, dim=1)
        gram = stacked @ rows.mT
        gram = 0.5 * (gram + gram.mT)
        spread = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        mean, slope, variance = problem.approximated(problem.forward(denoised), spread)
        stacked = slope[..., None] * stacked
        gram = slope[..., None] * gram * slope[:, None]
        root = cholesky(gram, variance)
        residual = problem.y - mean
        white = torch.linalg.solve_triangular(root, residual[..., None], upper=False)[..., 0]
        square, size = white.square().sum(1).double(), rows.shape[1]
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(1).double()
        if self.settings.twist == "student":
            nu = self.settings.freedom
            constant = math.lgamma((nu + size) / 2) - math.lgamma(nu / 2) - size / 2 * math.log(nu * math.pi)
            log_twist = constant - log_det - 0.5 * (nu + size) * torch.log1p(square / nu)
            damping = ((nu + size) / (nu + square)).clamp_max(1.0)
        else:
            log_twist = -0.5 * square - log_det - size / 2 * math.log(2 * math.pi)
            damping = torch.ones_like(square)
        tensors = (stacked, gram, root, white, slope, residual, variance)
        return Particles(x, denoised, *tensors, damping.to(x), log_twist)

    def last(self, particles: Particles, generator: torch.Generator) -> tuple[Particles, Float[Tensor, "n"]]:
        """x0 from N(D, C~) given the linearised data; the weight takes the true likelihood."""
        p, problem = particles, self.problem
        rows, wide = p.slope[..., None] * problem.jacobian(p.denoised), p.variance.double()
        count, size = p.white.shape
        values, vectors = torch.linalg.eigh(p.gram)
        values = values.clamp_min(0)
        inverse = torch.where(values > 1e-10 * values[:, -1:], 1 / values.clamp_min(1e-300), 0.0)
        lift = (vectors * inverse[:, None]) @ vectors.mT @ p.cross  # G^+ H C
        level = values.sum(1) / rows.square().sum((1, 2)).clamp_min(1e-300)
        free = level.sqrt()[:, None] * problem.normal((count, problem.size), generator)
        half = (vectors * values.sqrt()[:, None]) @ vectors.mT  # the symmetric root: no choice of basis
        seen = apply(half, problem.normal((count, size), generator))
        draw = free + apply(lift.mT, seen - apply(rows, free))  # ~ N(0, C~), with H draw = seen
        noise = p.variance.sqrt() * problem.normal((count, size), generator)
        gap = torch.cholesky_solve((p.residual - seen - noise)[..., None], p.root)[..., 0]
        x0 = p.denoised + draw + apply(p.cross.mT, gap)
        square = p.white.square().sum(1).double()
        log_det = p.root.diagonal(dim1=-2, dim2=-1).log().sum(1).double()
        linear = (p.residual - apply(rows, x0 - p.denoised)).double().square() / wide
        weight = problem.log_likelihood(x0) + 0.5 * (linear + (2 * math.pi * wide).log()).sum(1)
        predictive = -0.5 * square - log_det - 0.5 * size * math.log(2 * math.pi)
        return replace(p, x=x0), predictive + weight - p.log_twist


def apply(matrix: Float[Tensor, "n a b"], vector: Float[Tensor, "n b"]) -> Float[Tensor, "n a"]:
    """Batched matrix times vector."""
    return (matrix @ vector[..., None])[..., 0]


def cholesky(
    gram: Float[Tensor, "n data data"], noise: Float[Tensor, "n data"]
) -> Float[Tensor, "n data data"]:
    """Root of `G + diag(noise)`, with eigenvalues raised to the least noise where G is not positive."""
    total = gram + torch.diag_embed(noise)
    failed = torch.linalg.cholesky_ex(total).info > 0
    if bool(failed.any()):
        values, vectors = torch.linalg.eigh(total)
        least = noise.amin(dim=1, keepdim=True)
        total = (vectors * torch.maximum(values, least)[:, None]) @ vectors.mT
    root: Tensor = torch.linalg.cholesky(total)
    return root


def conditioned(
    particles: Particles, white: Float[Tensor, "n size"], ratio: float
) -> tuple[Float[Tensor, "n size"], Float[Tensor, "n"]]:
    """xi given the data in the span of C H^T, and log N(xi; 0, I) - log q(xi).

    `ratio` is q / sqrt(v). In the eigenbasis of W W^T, W = ratio L^-1 H C, the
    variance of xi_i drops from 1 to 1 - tau_i^2, 1/tau_i^2 = 1/t_i^2 + 1/g_i; exact when C = c I.
    """
    root = particles.root
    map_ = torch.linalg.solve_triangular(root, particles.cross, upper=False) * ratio
    squares, basis = torch.linalg.eigh(map_ @ map_.mT)
    squares = squares.clamp_min(torch.finfo(squares.dtype).tiny * 1e8)
    inner = torch.linalg.solve_triangular(root, particles.gram, upper=False)
    inner = torch.linalg.solve_triangular(root, inner.mT, upper=False)
    share = (basis * (inner @ basis)).sum(-2).clamp(1e-12, 1.0)
    gain = 1 / (1 / squares + 1 / share)
    rows = (basis.mT @ map_) / squares.sqrt()[..., None]  # orthonormal
    target = apply(basis.mT, particles.white * particles.damping[:, None])
    before = apply(rows, white)
    after = (1 - gain).sqrt() * before + gain.sqrt() * target
    ratio_log = 0.5 * before.square() - 0.5 * after.square() + 0.5 * torch.log1p(-gain)
    return white + apply(rows.mT, after - before), ratio_log.double().sum(1)
