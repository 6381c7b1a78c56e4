"""Gaussian priors in closed form: dense, diagonal and circulant (any image size).

    p(x0) = N(m, C),   D(x; sigma) = m + C (C + sigma^2)^-1 (x - m),   dD/dx = C (C + sigma^2)^-1

Every one is diagonal in some real orthonormal basis U, C = U diag(v) U^T; the
three differ in U only: eigenvectors, the identity, the Hartley transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.prior.prior import PriorCard, Sigma, sigma_like

Transform = Callable[[Tensor], Tensor]


def hartley(x: Float[Tensor, "*batch y x"]) -> Float[Tensor, "*batch y x"]:
    """The orthonormal 2-D Hartley transform `Re F - Im F`; it is its own inverse."""
    spectrum = torch.fft.fft2(x, norm="ortho")
    real: Tensor = spectrum.real - spectrum.imag
    return real


class GaussianPrior:
    """N(m, U diag(v) U^T) with `to` = U^T and `back` = U.

    Use the constructors `dense`, `diagonal` and `circulant`.
    """

    def __init__(
        self,
        mean: Float[Tensor, "*event"],
        variance: Float[Tensor, "*event"],
        to: Transform = lambda x: x,
        back: Transform = lambda x: x,
        name: str = "gaussian",
    ) -> None:
        if not bool((variance >= 0).all()):
            raise InputError("a Gaussian prior needs variances that are not negative")
        self.mean, self.variance, self.to, self.back = mean, variance, to, back
        self._card = PriorCard(
            name=name,
            shape=tuple(mean.shape[1:]) if mean.ndim > 1 else None,
            std=float(variance.double().mean().sqrt()),
            mean=float(mean.double().mean()),
            sigma_range=(1e-6, 1e6),
            exact=True,
        )

    @classmethod
    def dense(cls, mean: Float[Tensor, "dim"], covariance: Float[Tensor, "dim dim"]) -> GaussianPrior:
        """N(mean, covariance) over vectors."""
        values, vectors = torch.linalg.eigh(covariance)
        return cls(mean, values.clamp_min(0), lambda x: x @ vectors.to(x), lambda c: c @ vectors.mT.to(c))

    @classmethod
    def diagonal(cls, mean: Float[Tensor, "*event"], variance: Float[Tensor, "*event"]) -> GaussianPrior:
        """Independent components."""
        return cls(mean, variance)

    @classmethod
    def circulant(cls, mean: Float[Tensor, "channels y x"], spectrum: Float[Tensor, "y x"]) -> GaussianPrior:
        """A stationary periodic field; `spectrum` is the variance of each orthonormal DFT mode.

        Channels are independent and share the spectrum, which must be even.
        """
        mirrored = torch.roll(spectrum.flip(0, 1), (1, 1), (0, 1))
        if not torch.allclose(spectrum, mirrored, rtol=1e-5, atol=1e-12):
            raise InputError("the spectrum of a real field must be even: S(k) = S(-k)")
        return cls(mean, spectrum.expand(mean.shape).clone(), hartley, hartley)

    @property
    def card(self) -> PriorCard:
        return self._card

    def _gain(self, x: Tensor, sigma: Sigma) -> Tensor:
        variance = self.variance.to(x)
        return variance / (variance + sigma_like(sigma, x) ** 2)

    def denoise(self, x: Float[Tensor, "batch *event"], sigma: Sigma) -> Float[Tensor, "batch *event"]:
        mean = self.mean.to(x)
        return mean + self.back(self._gain(x, sigma) * self.to(x - mean))

    def jvp(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Sigma,
        tangent: Float[Tensor, "batch *event"],
    ) -> Float[Tensor, "batch *event"]:
        """`dD/dx` times a tangent (the Jacobian is symmetric and does not depend on x)."""
        return self.back(self._gain(x, sigma) * self.to(tangent))

    def log_density(self, x: Float[Tensor, "batch *event"], sigma: Sigma = 0.0) -> Float[Tensor, "batch"]:
        """`log p_sigma(x)`, the density of x0 + sigma n, in float64."""
        wide = x.double()
        variance = self.variance.to(wide) + sigma_like(sigma, wide) ** 2
        coefficients = self.to(wide - self.mean.to(wide))
        terms = coefficients**2 / variance + torch.log(2 * math.pi * variance)
        return -0.5 * terms.flatten(1).sum(dim=1)

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count *event"]:
        """Exact draws."""
        white = torch.randn((count, *self.mean.shape), generator=generator, dtype=self.mean.dtype)
        return self.mean + self.back(self.variance.sqrt() * white)

    def covariance(self) -> Float[Tensor, "dim dim"]:
        """The dense covariance in float64, for small events."""
        shape = self.mean.shape
        eye = torch.eye(self.mean.numel(), dtype=torch.float64).reshape(-1, *shape)
        return self.back(self.variance.double() * self.to(eye)).flatten(1)

    def posterior(
        self,
        forward: Callable[[Tensor], Tensor],
        y: Float[Tensor, "*data"],
        noise_std: float,
    ) -> GaussianPosterior:
        """The exact posterior of `y = A x + noise_std e`, by dense algebra in float64.

        `forward` is the linear map A on batches; events of up to a few thousand
        components.
        """
        matrix = dense_matrix(forward, tuple(self.mean.shape))
        return condition(
            self.mean.double().flatten(), self.covariance(), matrix, y.double().flatten(), noise_std
        )


@dataclass(frozen=True)
class GaussianPosterior:
    """N(mean, covariance) over flattened events, and the evidence log p(y)."""

    mean: Float[Tensor, "dim"]
    covariance: Float[Tensor, "dim dim"]
    log_evidence: float


def dense_matrix(forward: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Float[Tensor, "data dim"]:
    """The matrix of a linear map, column by column, in float64."""
    size = math.prod(shape)
    eye = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    return forward(eye).flatten(1).mT.contiguous()


def condition(
    mean: Float[Tensor, "dim"],
    covariance: Float[Tensor, "dim dim"],
    matrix: Float[Tensor, "data dim"],
    y: Float[Tensor, "data"],
    noise_std: float,
) -> GaussianPosterior:
    """Condition a Gaussian on `y = A x + noise_std e`: mean, covariance and evidence."""
    cross = covariance @ matrix.mT
    evidence = matrix @ cross + noise_std**2 * torch.eye(len(y), dtype=torch.float64)
    factor = torch.linalg.cholesky(evidence)
    residual = y - matrix @ mean
    whitened = torch.linalg.solve_triangular(factor, residual[:, None], upper=False)[:, 0]
    gain = torch.cholesky_solve(cross.mT, factor)
    log_determinant = 2 * factor.diagonal().log().sum()
    log_evidence = -0.5 * (whitened.square().sum() + log_determinant + len(y) * math.log(2 * math.pi))
    return GaussianPosterior(mean + gain.mT @ residual, covariance - cross @ gain, float(log_evidence))
