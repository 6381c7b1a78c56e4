"""Noise of image comparisons: tempered residuals, scores, and several of them together.

    TemperedNoise   log p = -beta sum (y - m o phi)^2 / (2 sigma^2) + const
    Scored          log p = sum_k clean_k        the forward model gives log-likelihood terms itself
    Joined          the sum of several, on the parts of one list of data

Residuals of two images are of anatomy and contrast and are correlated; as independent voxels they would give
an absurdly sharp posterior. beta is one over the number of voxels that vary together, so that beta times the
number of voxels is that of independent residuals. Such a posterior is called tempered, here and in the
report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import GaussianNoise, InputError, Noise


@dataclass(frozen=True)
class TemperedNoise(GaussianNoise):
    """Gaussian residuals of std `residual`, their log-likelihood times `beta`; sigma = residual / sqrt(beta).

    chi2 is that of `residual`: near 1 where the images are explained.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta <= 1:
            raise InputError(f"operator.beta is {self.beta:g}; expected a number above 0, at most 1")

    @property
    def residual(self) -> float:
        """std of the residual of one voxel."""
        return self.sigma * self.beta**0.5

    @classmethod
    def of(cls, residual: float, beta: float) -> TemperedNoise:
        """From the residual's std.

        Raises:
            InputError: where either is not above zero, or beta exceeds 1.
        """
        if not residual > 0:
            raise InputError(f"operator.sigma is {residual:g}; expected a residual std above zero")
        if not 0 < beta <= 1:
            raise InputError(f"operator.beta is {beta:g}; expected a number above 0, at most 1")
        return cls(residual / beta**0.5, beta)

    def variance_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return clean.new_tensor(self.residual**2).expand(clean.shape)


@dataclass(frozen=True)
class Scored:
    """The forward model's values are log-likelihood terms (none above 0), y holds zeros.

    chi2 is the deviance per term, -2 clean.
    """

    def log_likelihood(
        self, clean: Float[Tensor, "batch *data"], y: Float[Tensor, "*data"], size: int
    ) -> Float[Tensor, "batch"]:
        return clean.flatten(1).double().sum(dim=1)

    def variance(self) -> float:
        return 1.0

    def mean_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return (-2 * clean).clamp_min(1e-12).sqrt()

    def variance_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return torch.ones_like(clean)

    def check(self, y: Float[Tensor, "*data"]) -> None:
        """Zeros."""

    def sample(self, clean: Float[Tensor, "*data"], generator: torch.Generator) -> Float[Tensor, "*data"]:
        raise InputError("a similarity is no model of data to be drawn from; simulate with similarity=mse")


@dataclass(frozen=True)
class Joined:
    """Several noise models on consecutive parts of a list of data.

    Attributes:
        parts: noise and length of each.
    """

    parts: Sequence[tuple[Noise, int]]

    def _split(self, *tensors: Tensor) -> list[tuple[Noise, list[Tensor], int]]:
        lengths = [length for _, length in self.parts]
        split = [torch.split(tensor, lengths, dim=-1) for tensor in tensors]
        return [
            (noise, [pieces[k] for pieces in split], length) for k, (noise, length) in enumerate(self.parts)
        ]

    def log_likelihood(
        self, clean: Float[Tensor, "batch data"], y: Float[Tensor, "data"], size: int
    ) -> Float[Tensor, "batch"]:
        total = torch.zeros(len(clean), dtype=torch.float64, device=clean.device)
        for noise, (values, data), length in self._split(clean, y):
            total = total + noise.log_likelihood(values, data, length)
        return total

    def variance(self) -> float:
        return sum(noise.variance() * length for noise, length in self.parts) / sum(n for _, n in self.parts)

    def mean_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return torch.cat([noise.mean_at(values) for noise, (values,), _ in self._split(clean)], dim=-1)

    def variance_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return torch.cat([noise.variance_at(values) for noise, (values,), _ in self._split(clean)], dim=-1)

    def check(self, y: Float[Tensor, "data"]) -> None:
        for noise, (data,), _ in self._split(y):
            noise.check(data)

    def sample(self, clean: Float[Tensor, "data"], generator: torch.Generator) -> Float[Tensor, "data"]:
        return torch.cat(
            [noise.sample(values, generator) for noise, (values,), _ in self._split(clean)], dim=-1
        )
