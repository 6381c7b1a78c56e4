"""Moment matching: the full second-order Tweedie correction (TMPD, MMPS).

    D_y = D + sigma^2 J A^T (sigma^2 A J A^T + sigma_y^2)^-1 (y - A D),     J = dD/dx

since Cov[x0 | x] = sigma^2 J (Boys et al., arXiv 2310.06721; Rozet et al.,
arXiv 2405.13712). The inverse is applied by CG in data space, one
vector-Jacobian product of the network an iteration and one more at the end.
Exact for Gaussian priors and linear operators: with 100 steps of the 2M SDE, as
shipped, its std is within 3 % of the exact one (with 100 ancestral steps 5 to
10 % below, the step error of that integrator). The Jacobian of a network is
not symmetric: a sample stops at a direction of non-positive curvature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.measurement.linear import conjugate_gradients
from invdiff.measurement.measurement import Measurement
from invdiff.prior.prior import Prior
from invdiff.sampler.guidance.guidance import Claim, Guided


@dataclass(frozen=True)
class MomentMatching:
    """Attributes:
    iterations: most CG steps, one vector-Jacobian product each; too few leave a bias on ill-conditioned
        operators (8 on a blur: .07 exact stds where 40 are exact).
    tolerance: relative residual at which a sample stops; 1e-2 is as exact as 1e-4 on Gaussian fields.
    """

    iterations: int = 40
    tolerance: float = 1e-2
    name: ClassVar[str] = "moment_matching"
    claim: ClassVar[Claim] = "gaussian"

    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        x: Float[Tensor, "batch *event"],
        sigma: float,
        sigma_next: float,
    ) -> Guided:
        operator = measurement.linear(self.name)
        noise = measurement.gaussian(self.name).variance()
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            denoised = prior.denoise(leaf, sigma)

        def covariance(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(denoised, leaf, v, retain_graph=True)
            return sigma**2 * product

        def matvec(v: Tensor) -> Tensor:
            return noise * v + operator.forward(covariance(operator.adjoint(v)))

        with torch.no_grad():
            center = denoised.detach()
            weights = conjugate_gradients(
                matvec,
                measurement.residual(center),
                iterations=self.iterations,
                tolerance=self.tolerance,
            ).x
            return Guided(center + covariance(operator.adjoint(weights)))
