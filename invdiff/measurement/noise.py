"""Noise models `p(y | A(x))`, normalised, so that evidences mean something.

Noise levels are per real component: complex noise of standard deviation s has
s / sqrt(2) in each of its two components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError


@runtime_checkable
class Noise(Protocol):
    """A noise model with independent components."""

    def log_likelihood(
        self, clean: Float[Tensor, "batch *data"], y: Float[Tensor, "*data"], size: int
    ) -> Float[Tensor, "batch"]:
        """`log p(y | clean)` in float64; `size` is the number of measured components."""

    def variance(self) -> float:
        """Variance per component: of a Gaussian, else of its Gaussian approximation."""

    def mean_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        """`E[y | clean]`, component by component, differentiable."""

    def variance_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        """`Var[y | clean]`: with `mean_at`, the Gaussian approximation of the law of y."""

    def check(self, y: Float[Tensor, "*data"]) -> None:
        """Raise InputError where y cannot have come from this noise."""

    def sample(self, clean: Float[Tensor, "*data"], generator: torch.Generator) -> Float[Tensor, "*data"]:
        """One noisy measurement of `clean`."""


@dataclass(frozen=True)
class GaussianNoise:
    """`y = A(x) + sigma e`, sigma > 0 per real component.

    Raises:
        InputError: for a level that is not positive.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise InputError(
                f"the noise level is {self.sigma}; a posterior needs one above zero "
                "(give noise.sigma=, or let it be estimated)"
            )

    def log_likelihood(
        self, clean: Float[Tensor, "batch *data"], y: Float[Tensor, "*data"], size: int
    ) -> Float[Tensor, "batch"]:
        error = (y - clean).flatten(1).double()
        square = error.square().sum(dim=1) / self.sigma**2
        return -0.5 * square - size * (math.log(self.sigma) + 0.5 * math.log(2 * math.pi))

    def variance(self) -> float:
        return self.sigma**2

    def mean_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return clean

    def variance_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return clean.new_tensor(self.sigma**2).expand(clean.shape)

    def check(self, y: Float[Tensor, "*data"]) -> None:
        """Any finite y is possible."""

    def sample(self, clean: Float[Tensor, "*data"], generator: torch.Generator) -> Float[Tensor, "*data"]:
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        return clean + self.sigma * noise.to(clean.device)


@dataclass(frozen=True)
class UnknownGaussianNoise(GaussianNoise):
    """Gaussian noise whose level is inferred together with x; `sigma` is where it starts.

    Under the scale-free prior p(sigma^2) ~ 1 / sigma^2 the conditional law is conjugate,
    sigma^2 | x, y ~ |y - A x|^2 / chi2(m). Samplers that support it say so.
    """
