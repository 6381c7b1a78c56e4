"""Gaussian mixtures in closed form: denoiser, density, Jacobian and exact posterior.

p(x0) = sum_k w_k N(mu_k, diag(v_k))
r_k(x) = softmax_k( log w_k + log N(x; mu_k, v_k + sigma^2) )
D(x; sigma) = sum_k r_k D_k,     D_k = mu_k + v_k / (v_k + sigma^2) (x - mu_k)
sigma^2 dD/dx = sum_k r_k [ diag(v_k sigma^2 / (v_k + sigma^2)) + D_k D_k^T ] - D D^T
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.prior.gaussian import condition, dense_matrix
from invdiff.prior.prior import PriorCard, Sigma, sigma_like


class GaussianMixture:
    """A mixture over vectors with diagonal covariances.

    Args:
        weights: positive; normalised here.
        means: one row a component.
        variances: [components] or [components, dim].
    """

    def __init__(
        self,
        weights: Float[Tensor, "components"],
        means: Float[Tensor, "components dim"],
        variances: Float[Tensor, "components *dim"],
    ) -> None:
        if not bool((weights > 0).all()) or not bool((variances > 0).all()):
            raise InputError("a mixture needs positive weights and variances")
        self.weights = weights / weights.sum()
        self.means = means
        self.isotropic = variances.ndim == 1
        wide = variances[:, None] if variances.ndim == 1 else variances
        self.variances = wide.expand(means.shape)
        mean = self.weights @ means
        second = self.weights @ (self.variances + (means - mean) ** 2)
        self._card = PriorCard(
            name="gaussian_mixture",
            std=float(second.mean().sqrt()),
            mean=float(mean.mean()),
            sigma_range=(1e-6, 1e6),
            exact=True,
        )

    @property
    def card(self) -> PriorCard:
        return self._card

    def _log_joint(self, x: Tensor, sigma: Sigma) -> Tensor:
        if self.isotropic and isinstance(sigma, float):
            wide, means = x.double(), self.means.to(x.device).double()
            variance = self.variances[:, 0].to(wide) + sigma**2
            square = (wide**2).sum(1, keepdim=True) - 2 * wide @ means.mT + (means**2).sum(1)
            density = square / variance + x.shape[1] * torch.log(2 * math.pi * variance)
            return (self.weights.to(wide).log() - 0.5 * density).to(x.dtype)
        variance = self.variances.to(x) + sigma_like(sigma, x[:, None]) ** 2
        square = (x[:, None] - self.means.to(x)) ** 2 / variance + torch.log(2 * math.pi * variance)
        return self.weights.to(x).log() - 0.5 * square.sum(dim=2)

    def responsibilities(
        self, x: Float[Tensor, "batch dim"], sigma: Sigma = 0.0
    ) -> Float[Tensor, "batch components"]:
        """`p(component | x_sigma = x)`."""
        return self._log_joint(x, sigma).softmax(dim=1)

    def log_density(self, x: Float[Tensor, "batch dim"], sigma: Sigma = 0.0) -> Float[Tensor, "batch"]:
        """`log p_sigma(x)`, in float64."""
        return self._log_joint(x.double(), sigma).logsumexp(dim=1)

    def _component_means(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        variances, means = self.variances.to(x), self.means.to(x)
        gain = variances / (variances + sigma_like(sigma, x[:, None]) ** 2)
        return means + gain * (x[:, None] - means), gain

    def denoise(self, x: Float[Tensor, "batch dim"], sigma: Sigma) -> Float[Tensor, "batch dim"]:
        if self.isotropic and isinstance(sigma, float):
            variance = self.variances[:, 0].to(x)
            weights, gain = self.responsibilities(x, sigma), variance / (variance + sigma**2)
            return (weights @ gain)[:, None] * x + (weights * (1 - gain)) @ self.means.to(x)
        inner, _ = self._component_means(x, sigma)
        return torch.einsum("bk,bkd->bd", self.responsibilities(x, sigma), inner)

    def jvp(
        self, x: Float[Tensor, "batch dim"], sigma: Sigma, tangent: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch dim"]:
        """`dD/dx` times a tangent, in closed form (the Jacobian is symmetric)."""
        inner, gain = self._component_means(x, sigma)
        weights = self.responsibilities(x, sigma)
        mean = torch.einsum("bk,bkd->bd", weights, inner)
        within = torch.einsum("bk,bkd->bd", weights, gain * tangent[:, None])
        along = torch.einsum("bkd,bd->bk", inner - mean[:, None], tangent)
        between = torch.einsum("bk,bk,bkd->bd", weights, along, inner - mean[:, None])
        return within + between / sigma_like(sigma, x) ** 2

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count dim"]:
        """Exact draws."""
        pick = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        white = torch.randn((count, self.means.shape[1]), generator=generator, dtype=self.means.dtype)
        return self.means[pick] + self.variances[pick].sqrt() * white

    def posterior(
        self,
        forward: Callable[[Tensor], Tensor],
        y: Float[Tensor, "*data"],
        noise_std: float,
    ) -> MixturePosterior:
        """The exact posterior of `y = A x + noise_std e`: a mixture with dense covariances."""
        matrix = dense_matrix(forward, (self.means.shape[1],))
        parts = [
            condition(mean.double(), variance.double().diag(), matrix, y.double().flatten(), noise_std)
            for mean, variance in zip(self.means, self.variances, strict=True)
        ]
        evidences = torch.tensor([part.log_evidence for part in parts], dtype=torch.float64)
        joint = self.weights.double().log() + evidences
        return MixturePosterior(
            joint.softmax(dim=0),
            torch.stack([part.mean for part in parts]),
            torch.stack([part.covariance for part in parts]),
            float(joint.logsumexp(dim=0)),
        )


@dataclass(frozen=True)
class MixturePosterior:
    """A mixture with dense covariances, and the evidence log p(y)."""

    weights: Float[Tensor, "components"]
    means: Float[Tensor, "components dim"]
    covariances: Float[Tensor, "components dim dim"]
    log_evidence: float

    def mean(self) -> Float[Tensor, "dim"]:
        """Posterior mean."""
        return self.weights @ self.means

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count dim"]:
        """Exact draws."""
        pick = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        white = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(self.covariances)
        roots = vectors * values.clamp_min(0).sqrt()[:, None]
        return self.means[pick] + torch.einsum("bij,bj->bi", roots[pick], white)
