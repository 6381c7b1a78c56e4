"""Gaussian teleport: the first part of the prior's ODE as one map, without a network call.

Far above the data every prior looks like the Gaussian N(m, U diag(L) U^T) of its mean and covariance, whose
probability-flow ODE has a closed form (Wang & Vastola, arXiv 2412.09726):

    x_sigma = m + U diag sqrt( (sigma^2 + L) / (sigma_0^2 + L) ) U^T ( x_{sigma_0} - m )

Exact for a Gaussian prior at any two levels, and down to two largest stds (`LEAST_RATIO`) a good start for
others; below that it is refused. Measured on three 8-d mixtures with stds of .13 to 2.0, root mean square
error of a component of the trajectory from 80, over sigma: at most .0007, .003, .009 and .052 at 5, 3, 2 and
1 largest stds. It saves the levels above: 9 of 20 on karras(20, 80, .02) at 3 stds of 1.5.

For the prior alone. A guided sampler hears the data at the skipped levels too, and what it misses there it
never learns, with any number of steps: exact guidance of a Gaussian prior ends with means off by .02 to .04
posterior stds from 80, by .08 to .55 from 3 largest prior stds and by .12 to .82 from 2 with the ODE (SDE:
0, .02 to .08 and .04 to .19; tests/sampler/test_teleport.py). So `teleported` warns. To teleport by the
Gaussian *posterior* instead was measured and rejected: it floors at an error of .24 to .31.

    teleported(sampler, gaussian)                                a sampler with its first levels skipped
    DiffusionSampler(levels, ..., start=GaussianTeleport(gaussian, 80.0))        the same by hand
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.prior.gaussian import GaussianPrior
from invdiff.prior.prior import PriorCard
from invdiff.sampler.guidance.unguided import Unguided
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.loop import DiffusionSampler, Start
from invdiff.sampler.start import PriorDraw

LEAST_RATIO = 2.0


def teleport(
    gaussian: GaussianPrior, x: Float[Tensor, "batch *event"], sigma_from: float, sigma: float
) -> Float[Tensor, "batch *event"]:
    """x moved from level `sigma_from` to `sigma` along the ODE of a Gaussian prior: exact, either way."""
    mean, variance = gaussian.mean.to(x), gaussian.variance.to(x)
    factor = torch.sqrt((sigma**2 + variance) / (sigma_from**2 + variance))
    moved: Tensor = mean + gaussian.back(factor * gaussian.to(x - mean))
    return moved


@dataclass(frozen=True)
class GaussianTeleport:
    """A start at `sigma_from`, teleported to the first level of the schedule.

    Attributes:
        gaussian: mean and covariance of the prior; dense, diagonal or circulant.
        sigma_from: the level that is teleported from, in the units of x.
        start: draws the state there.

    Raises:
        InputError: where the schedule begins above `sigma_from`, or below two largest stds of the prior.
    """

    gaussian: GaussianPrior
    sigma_from: float
    start: Start = field(default_factory=PriorDraw)

    @property
    def largest(self) -> float:
        """The prior's largest std over all directions."""
        return math.sqrt(float(self.gaussian.variance.max()))

    def __call__(
        self, card: PriorCard, shape: tuple[int, ...], sigma: float, noise: ParticleNoise
    ) -> Float[Tensor, "particles *event"]:
        if not LEAST_RATIO * self.largest <= sigma <= self.sigma_from:
            raise InputError(
                f"a teleport from {self.sigma_from:.4g} to {sigma:.4g} is not valid: the schedule must begin "
                f"between {LEAST_RATIO * self.largest:.4g} ({LEAST_RATIO:.0f} times the prior's largest std) "
                "and there"
            )
        return teleport(
            self.gaussian, self.start(card, shape, self.sigma_from, noise), self.sigma_from, sigma
        )


def teleported(sampler: DiffusionSampler, gaussian: GaussianPrior, ratio: float = 3.0) -> DiffusionSampler:
    """The sampler without its levels above the lowest one that is at least `ratio` largest stds of the prior.

    The levels that stay are unchanged (a network's own levels remain its own); the start is drawn at the
    first level as before and teleported.

    Raises:
        InputError: for a ratio below 2.
    """
    if ratio < LEAST_RATIO:
        raise InputError(f"a teleport is valid down to {LEAST_RATIO:.0f} largest stds; found ratio={ratio}")
    if not isinstance(sampler.guidance, Unguided):
        warnings.warn(
            f"a teleport follows the prior alone: {sampler.name} loses what the data say at the levels that "
            "are skipped, and is biased towards the prior",
            stacklevel=2,
        )
    begin = GaussianTeleport(gaussian, sampler.schedule[0], sampler.start)
    skipped = sum(level >= ratio * begin.largest for level in sampler.schedule) - 1
    if skipped <= 0:
        return sampler
    return replace(sampler, schedule=sampler.schedule[skipped:], start=begin)
