"""A conditional prior, D_y(x) = D(x; sigma, c(y)): it is the posterior's denoiser already, nothing is added.

What it was trained to is the law of images given such data, as far as the network has learned it; y enters
through the condition alone, so a sample need not reproduce it exactly; with `end: draw` the last level joins
the network's estimate to the data. On a Gaussian prior with the exact conditional denoiser the samples are
exact up to the integrator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from invdiff.errors import InputError
from invdiff.prior.prior import Prior
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.guidance.unguided import Unguided


@dataclass(frozen=True)
class Conditional(Unguided):
    """No settings; the prior must be conditional."""

    name: ClassVar[str] = "conditional"
    claim: ClassVar[Claim] = "approximate"

    def require(self, prior: Prior) -> None:
        """Refuse an unconditional prior, whose samples would not know the data.

        Raises:
            InputError: where the card names no condition.
        """
        if not prior.card.condition:
            raise InputError(
                f"prior {prior.card.name!r} is unconditional, and sampler=conditional adds nothing of the "
                "data; choose a conditional prior or another sampler"
            )
