"""Monte Carlo guided diffusion: MCGDiff (arXiv 2308.07983), exact in the limit of many particles.

In the basis of A = U diag(s) V^T the data are separate noisy coordinates y^_i = (U^T y)_i / s_i of
c_i = (V^T x0)_i with noise tau_i = sigma_y / s_i, so that "y^_i was measured" says the same as "the diffusion
passes c_i = y^_i at sigma = tau_i". The particles are led there by the twist

    psi_sigma(x) = prod over i with tau_i <= sigma of N(y^_i; c_i, V_i),
    V_i = sigma^2 - (1 - kappa) tau_i^2

and moved by the prior's ancestral step N(m, v), conditioned on it in closed form and weighted by the exact
ratio:

    observed, tau_i <= sigma'    log w += log N(y^_i; m_i, v + V'_i) - log N(y^_i; c_i, V_i)
                                 c'_i = K y^_i + (1 - K) m_i + sqrt(K V'_i) z_i,    K = v / (v + V'_i)
    the rest                     c'_i = m_i + sqrt(v) z_i

A coordinate that passes tau_i leaves the twist with nothing divided out, and no likelihood is multiplied
at the end: N(y^_i; c_i, kappa tau_i^2) at sigma = tau_i is its likelihood. (To divide it out and weigh with
p(y | x0) counts the data twice.) For this every tau_i is a level of the schedule. Where the first level is
below a tau_i, that coordinate's N(y^_i; c_i, tau_i^2) at x0 weighs in at the end; where the prior's least
level is above it, the coordinate is taken to be as noisy as that level.

Target: the law of x0 given y under the prior's chain of steps, up to kappa (the noise of y^_i is
(1 + kappa) tau_i^2); the evidence is unbiased for that. No network derivative.

Where we differ: base levels next to a tau_i are left out; the kernel is of second order (2M-SDE,
Gaussian given the particle's past; `order=1` is theirs), because below tau_i the ancestral one loses 15
% of the data's spread at 100 levels; the last level is tau / 10 or less, since x0 = D has lost that
spread; V is applied to the observed coordinates only; the matrix of A is formed column by column, so
both sides are limited to 4096. Written from the formulas; no released code was used.

Measured. Evidence over the chain's: within 2 standard errors (1 to 7 %) at 5 and 12 steps. The weights
have heavy tails, because the twist does not know the prior: about one filter in twenty is led by one
ancestor (its share of founders falls from .25 to .02), with log Z too high by up to 3 while its ESS
looks healthy; the others are .1 too low. By `invdiff verify`, 16 particles a draw: exact in all 10 runs
below 1 nat and in 48 of 52 on mixtures of 1.3 to 5.4 nats; hence the small reach. chi2 on one observed
component .75 to .87 for .84 (ancestral: .69 to .83; with the public code's final weight .60).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.prior.gaussian import dense_matrix
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.integrator import State, named
from invdiff.sampler.schedule import Schedule, loguniform
from invdiff.sampler.weighting.target import Target

LARGEST = 4096
SAME, NEAR = 1e-6, 0.02  # relative: levels that are one; base levels that a tau_i replaces
KERNELS = {1: named("ddpm"), 2: named("2m_sde")}


@dataclass(frozen=True)
class MCGDiff:
    """Settings of the method.

    Attributes:
        steps: levels equally spaced in log sigma, to which the tau_i are added.
        sigma_max, sigma_min: first and last of them.
        kappa: width of the conditioning at tau_i, in tau_i^2.
        order: of the prior's kernel: 1 ancestral, 2 its multistep form.
    """

    steps: int = 100
    sigma_max: float = 80.0
    sigma_min: float = 0.02
    kappa: float = 1e-4
    order: int = 2
    name: ClassVar[str] = "mcgdiff"
    reach: ClassVar[float] = 1
    needs_linear: ClassVar[bool] = True
    claim: ClassVar[Claim] = "consistent"

    def __post_init__(self) -> None:
        if not 10 * SAME <= self.kappa <= 1:
            raise InputError(f"kappa is {self.kappa}; expected {10 * SAME} to 1")
        if self.order not in KERNELS:
            raise InputError(f"order is {self.order}; expected 1 or 2")

    def model(self, target: Target, generator: torch.Generator) -> MCGDiffModel:
        prior, measurement, shape = target.prior, target.measurement, target.shape
        operator = measurement.linear(self.name)
        sizes = math.prod(shape), measurement.y.numel()
        if max(sizes) > LARGEST:
            raise InputError(
                f"mcgdiff decomposes the operator's matrix, here {sizes[1]} x {sizes[0]}; it takes at most "
                f"{LARGEST} components a side (use ddsmc or twisted, which need no matrix)"
            )
        matrix = dense_matrix(operator.forward, shape).cpu()
        y = measurement.y.detach().double().cpu().flatten()
        rows = matrix.abs().sum(1) > 0
        left, s, right = torch.linalg.svd(matrix[rows], full_matrices=False)
        keep = s > (s[0] if len(s) else 0) * max(sizes) * torch.finfo(torch.float64).eps
        left, s, right = left[:, keep], s[keep], right[keep]
        data = left.mT @ y[rows]
        sigma_y = measurement.noise.variance() ** 0.5
        tau = (sigma_y / s).clamp_min(prior.card.sigma_range[0])
        # x0 = D stands for a law of the last level's width, which must be below that of the data.
        fine = float(tau.min()) / 10 if len(tau) else self.sigma_min
        bounds = target.bounds(self.sigma_max, min(self.sigma_min, fine))
        levels = adapted(loguniform(self.steps, *bounds), tau.tolist())
        # log p(y) = log p(y^) - sum log s_i + the density of what no x explains
        unseen = float(y.square().sum() - data.square().sum()) / sigma_y**2
        spare = measurement.size - len(s)
        constant = -float(s.log().sum()) - 0.5 * unseen - spare * math.log(sigma_y * math.sqrt(2 * math.pi))
        seen, tau, basis = (part.to(target.device, target.dtype) for part in (data / s, tau, right))
        return MCGDiffModel(self, target, levels, seen, tau, basis, constant)


@dataclass(frozen=True)
class MCGDiffModel:
    """The Feynman-Kac model; `constant` turns p(y^) into p(y)."""

    settings: MCGDiff
    target: Target
    levels: Schedule
    data: Float[Tensor, "rank"]
    tau: Float[Tensor, "rank"]
    basis: Float[Tensor, "rank dim"]
    constant: float

    @property
    def steps(self) -> int:
        return len(self.levels)

    def observed(self, sigma: float) -> tuple[Tensor, Tensor]:
        """Which coordinates the twist at sigma holds, and their V_i."""
        held = self.tau <= sigma * (1 + SAME)
        return held, sigma**2 - (1 - self.settings.kappa) * self.tau[held] ** 2

    def start(self, count: int, generator: torch.Generator) -> tuple[State, Float[Tensor, "n"]]:
        first = self.levels[0]
        x = self.target.first(first, count, generator)
        held, width = self.observed(first)
        return State(x, first), log_normal(self.data[held] - self.project(x)[:, held], width) + self.constant

    @torch.no_grad()
    def move(self, k: int, state: State, generator: torch.Generator) -> tuple[State, Float[Tensor, "n"]]:
        x, sigma, kernel = state.x, state.sigma, KERNELS[self.settings.order]
        denoised = self.target.denoise(x, sigma)
        if k == self.steps - 1:
            never = self.tau > self.levels[0] * (1 + SAME)
            error = self.data[never] - self.project(denoised)[:, never]
            return State(denoised, 0.0), log_normal(error, self.tau[never] ** 2)
        fresh = self.levels[k + 1]
        z = self.target.normal(len(x), generator)
        _, std = kernel.kernel(state, denoised, fresh)
        free = kernel.step(state, denoised, fresh, lambda shape: z)
        held, width = self.observed(fresh)
        before = sigma**2 - (1 - self.settings.kappa) * self.tau[held] ** 2
        c, data, unit = self.project(free.x)[:, held], self.data[held], self.project(z)[:, held]
        m = c - std * unit
        ratio = log_normal(data - m, std**2 + width) - log_normal(data - self.project(x)[:, held], before)
        gain = std**2 / (std**2 + width)
        shift = m + gain * (data - m) + (gain * width).sqrt() * unit - c
        return replace(free, x=free.x + (shift @ self.basis[held]).reshape(x.shape)), ratio

    def project(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n rank"]:
        """c = V^T x."""
        return x.flatten(1) @ self.basis.mT


def log_normal(error: Float[Tensor, "n some"], variance: Float[Tensor, "some"]) -> Float[Tensor, "n"]:
    """Log density of independent N(0, variance), float64."""
    wide = variance.double()
    return -0.5 * (error.double().square() / wide + (2 * math.pi * wide).log()).sum(1)


def adapted(base: Schedule, tau: Sequence[float]) -> Schedule:
    """`base` with every tau below its first level as a level; those that are one are merged upwards."""
    added: list[float] = []
    for level in sorted((t for t in tau if t <= base[0] * (1 + SAME)), reverse=True):
        if not added or level < added[-1] * (1 - SAME):
            added.append(level)
    free = [b for b in base[1:] if all(abs(math.log(b / level)) > NEAR for level in added)]
    levels = sorted({*added, *free}, reverse=True)
    return tuple(levels) if levels and levels[0] >= base[0] else (base[0], *levels)
