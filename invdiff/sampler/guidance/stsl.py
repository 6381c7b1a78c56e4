"""Second-order Tweedie by a surrogate loss (STSL; Rout et al., arXiv 2312.00852).

At each level a few gradient steps on the state itself, then an unguided step from where they end:

    x <- x - a grad_x { |y - A D(x; sigma)|^2 / 2
                        + eta sigma_y^2 / (d h) E_e e^T [D(x + h e) - D(x)] / sigma^2 }

with a = step / |A|^2 and Rademacher e. The second term estimates the trace of the Jacobian of the score,
`tr(dD/dx) / sigma^2` up to a constant. It knows nothing of A and is constant for a Gaussian prior: there
STSL and its ablation `trace=0` are the same sampler (a test).

A heuristic: there is no posterior that it samples. Any operator that is differentiable. Differs from the
paper in the start (no inversion of the encoded data) and in the step, which is scaled by |A|.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.operator import LinearOperator
from invdiff.prior.prior import Prior
from invdiff.sampler.guidance.guidance import Claim, Guided


@dataclass(frozen=True)
class STSL:
    """Attributes:
    inner: gradient steps a level.
    step: their length in units of 1 / |A|^2.
    trace: eta; 0 for the ablation without the second-order term.
    probe: h, in units of sigma.
    """

    inner: int = 5
    step: float = 0.5
    trace: float = 0.02
    probe: float = 0.05
    name: ClassVar[str] = "stsl"
    needs_linear: ClassVar[bool] = False
    claim: ClassVar[Claim] = "heuristic"

    def __post_init__(self) -> None:
        if self.inner < 1 or not self.step > 0 or self.trace < 0 or not self.probe > 0:
            raise InputError("stsl needs inner >= 1, step and probe above 0 and trace of at least 0")

    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        x: Float[Tensor, "batch *event"],
        sigma: float,
        sigma_next: float,
    ) -> Guided:
        operator, norm = measurement.operator, 1.0
        if isinstance(operator, LinearOperator):
            norm = operator.norm(tuple(x.shape[1:]), x.device, x.dtype)
        length = self.step / max(norm, 1e-30) ** 2
        here = x.detach()
        for _ in range(self.inner):
            here = here - length * self.gradient(prior, measurement, here, sigma)
        with torch.no_grad():
            denoised = prior.denoise(here, sigma)
        # The step continues from `here`: x - direction = here - denoised.
        return Guided(denoised, direction=x - here + denoised)

    def gradient(
        self, prior: Prior, measurement: Measurement, x: Float[Tensor, "batch *event"], sigma: float
    ) -> Float[Tensor, "batch *event"]:
        """Gradient of the surrogate, per sample."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            denoised = prior.denoise(leaf, sigma)
            loss = 0.5 * measurement.residual(denoised).square().sum()
            if self.trace:
                signs = rademacher(x)
                h = self.probe * sigma
                change = prior.denoise(leaf + h * signs, sigma) - denoised
                weight = (
                    self.trace * measurement.gaussian(self.name).variance() / (x[0].numel() * h * sigma**2)
                )
                loss = loss + weight * (signs * change).sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient


def rademacher(x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
    """The same signs for every sample and level, so that a sample does not depend on its batch."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, x.shape[1:], generator=generator).to(x) * 2 - 1
    return signs.expand(x.shape)
