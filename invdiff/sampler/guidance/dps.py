"""Diffusion posterior sampling (Chung et al., arXiv 2209.14687, algorithm 1).

    x' = Step(x; D) - zeta c grad_x |y - A(D(x; sigma))|

with the norm and its gradient per sample. zeta is in the paper's
variance-preserving coordinates, hence c = sqrt((1 + sigma^2)(1 + sigma'^2)) here;
sigma_y is not used. The operator may be nonlinear.

A heuristic, not a posterior sampler: there is one good zeta a problem. On a
Gaussian prior with component stds from .05 to 1.5, every second one measured at
sigma_y = .05, zeta = 1 and 1000 steps, its std is .35 to 10 times the exact one
along measured components, its mean is off by up to 1.6 exact stds, and chi2 is
26 where 1 is right (tests/sampler/test_guidance.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.measurement.linear import expand
from invdiff.measurement.measurement import Measurement
from invdiff.prior.prior import Prior
from invdiff.sampler.guidance.guidance import Claim, Guided, vp_factor


@dataclass(frozen=True)
class DPS:
    """Attributes:
    zeta: step length, .1 to 10 in published settings.
    """

    zeta: float = 1.0
    name: ClassVar[str] = "dps"
    needs_linear: ClassVar[bool] = False
    claim: ClassVar[Claim] = "heuristic"

    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        x: Float[Tensor, "batch *event"],
        sigma: float,
        sigma_next: float,
    ) -> Guided:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            denoised = prior.denoise(leaf, sigma)
            residual = measurement.residual(denoised)
            norm = residual.norm() if len(x) == 1 else residual.flatten(1).norm(dim=1).sum()
            (gradient,) = torch.autograd.grad(norm, leaf)
        factor = -self.zeta * vp_factor(sigma, sigma_next)
        return Guided(denoised.detach(), impulse=gradient.mul_(factor))


@dataclass(frozen=True)
class LikelihoodGradient:
    """`D_y = D + sigma^2 grad_x log p(y | D(x; sigma))`: DPS with the true likelihood.

    Stiff where sigma^2 |A|^2 / sigma_y^2 is large; the shift of D is limited to
    `limit` times sigma per component (root mean square) and so is a heuristic.
    Any operator and noise model.
    """

    limit: float = 1.0
    name: ClassVar[str] = "likelihood_gradient"
    needs_linear: ClassVar[bool] = False
    needs_gaussian: ClassVar[bool] = False
    claim: ClassVar[Claim] = "heuristic"

    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        x: Float[Tensor, "batch *event"],
        sigma: float,
        sigma_next: float,
    ) -> Guided:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            denoised = prior.denoise(leaf, sigma)
            value = measurement.log_likelihood(denoised).sum()
            (gradient,) = torch.autograd.grad(value, leaf)
        shift = sigma**2 * gradient
        size = shift.flatten(1).square().mean(dim=1).sqrt()
        factor = (self.limit * sigma / size.clamp_min(1e-30)).clamp_max(1.0)
        return Guided(denoised.detach() + expand(factor, shift) * shift)
