"""`gmm25`: a 25-component Gaussian mixture seen through a random linear operator.

The problem family of MCGDiff (Cardoso et al., arXiv 2308.07983), used by every
paper on particle methods for diffusion priors:

    prior       components N(mu_ij, I), mu_ij = (-8i, -8j, -8i, -8j, ...), i, j in -2..2,
                weights w = g^2 / sum g^2, g ~ N(0, 1)
    operator    A = U diag(s) V: the SVD of a normal matrix, its singular values replaced by
                sorted U[0, 1] draws
    noise       sigma_y = u max(s), u ~ U[0, 1]
    data        y = A x* + sigma_y e, x* from the prior

The random numbers are drawn in the order and precision of the public scripts
(float32, torch's CPU generator), so that a seed names the same problem there;
everything is evaluated in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import MatrixOperator
from invdiff.prior.mixture import GaussianMixture

SIDE, SPACING = 5, 8.0


@dataclass(frozen=True)
class Gmm25:
    """One problem with its exact posterior, through the SVD of A.

    Attributes:
        prior: the mixture; its denoiser is exact.
        measurement: A, sigma_y and y.
        left, singular, right: A = left diag(singular) right.
        truth: x*.
    """

    prior: GaussianMixture
    measurement: Measurement
    left: Float[Tensor, "data data"]
    singular: Float[Tensor, "data"]
    right: Float[Tensor, "data dim"]
    truth: Float[Tensor, "dim"]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.truth.shape)

    @property
    def _noise(self) -> float:
        return self.measurement.noise.variance()

    @property
    def _residuals(self) -> Float[Tensor, "components data"]:
        clean = self.measurement.operator(self.prior.means)
        return (self.measurement.y - clean) @ self.left

    @property
    def log_joint(self) -> Float[Tensor, "components"]:
        """`log w_k + log N(y; A mu_k, A A^T + sigma_y^2)`."""
        variance = self.singular**2 + self._noise
        square = (self._residuals**2 / variance).sum(1) + (2 * math.pi * variance).log().sum()
        return self.prior.weights.log() - 0.5 * square

    @property
    def log_evidence(self) -> float:
        """log p(y)."""
        return float(self.log_joint.logsumexp(0))

    @property
    def mode_weights(self) -> Float[Tensor, "components"]:
        """Posterior weights of the components."""
        return self.log_joint.softmax(0)

    @property
    def mode_means(self) -> Float[Tensor, "components dim"]:
        """Posterior means of the components."""
        gain = self.singular / (self.singular**2 + self._noise)
        return self.prior.means + (self._residuals * gain) @ self.right

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count dim"]:
        """Exact posterior draws."""
        pick = torch.multinomial(self.mode_weights, count, replacement=True, generator=generator)
        white = torch.randn(count, *self.shape, generator=generator, dtype=torch.float64)
        level = math.sqrt(self._noise)
        shrink = 1 - level / (self.singular**2 + self._noise).sqrt()
        return self.mode_means[pick] + white - ((white @ self.right.T) * shrink) @ self.right

    def responsibilities(self, x: Float[Tensor, "count dim"]) -> Float[Tensor, "count components"]:
        """Posterior probability of each component given x and y."""
        precision = self.singular**2 / self._noise
        means = self.mode_means
        parts = []
        for block in torch.split(x, 500):
            gap = block[:, None] - means
            seen = (gap @ self.right.T).square() @ precision
            parts.append((self.mode_weights.log() - 0.5 * (gap.square().sum(2) + seen)).softmax(1))
        return torch.cat(parts)

    def kolmogorov(self, x: Float[Tensor, "count dim"], directions: int = 16) -> float:
        """Largest sqrt(count) sup |F_n - F| over fixed directions theta, F the exact marginal

        sum_k w_k N(theta m_k, 1 - sum_i (v_i theta)^2 s_i^2 / (s_i^2 + sigma_y^2)).
        """
        generator = torch.Generator().manual_seed(16)
        theta = torch.randn(directions, *self.shape, generator=generator, dtype=torch.float64)
        theta = theta / theta.norm(dim=1, keepdim=True)
        shrink = self.singular**2 / (self.singular**2 + self._noise)
        std = (1 - (theta @ self.right.T).square() @ shrink).sqrt()
        along = (x.double() @ theta.T).sort(dim=0).values
        centers = self.mode_means @ theta.T
        exact = torch.zeros_like(along)
        for weight, center in zip(self.mode_weights, centers, strict=True):
            exact = exact + weight * torch.special.ndtr((along - center) / std)
        rank = torch.arange(1, len(x) + 1, dtype=torch.float64)[:, None] / len(x)
        gap = torch.maximum((rank - exact).abs(), (rank - 1 / len(x) - exact).abs())
        return math.sqrt(len(x)) * float(gap.max())

    def mode_error(self, x: Float[Tensor, "count dim"]) -> float:
        """Total variation between the samples' soft mode counts and the exact mode weights."""
        return 0.5 * float((self.responsibilities(x).mean(0) - self.mode_weights).abs().sum())

    @property
    def chi2(self) -> float:
        """Exact posterior expectation of |y - A x|^2 / sigma_y^2."""
        gaps = self.measurement.operator(self.mode_means) - self.measurement.y
        between = float(self.mode_weights @ gaps.square().sum(1)) / self._noise
        return between + float((self.singular**2 / (self.singular**2 + self._noise)).sum())


def gmm25(dim: int, data: int, seed: int, sigma: float | None = None) -> Gmm25:
    """The problem of `seed`, with `data` observations of a vector of `dim`.

    Args:
        dim: even, at least 2.
        data: 1 to dim.
        seed: of the problem.
        sigma: another noise level than the problem's own.
    """
    if dim % 2 or not 1 <= data <= dim:
        raise InputError(f"gmm25 needs an even dimension and 1 to dim data; found {dim} and {data}")
    g = torch.Generator().manual_seed(seed)
    half = SIDE // 2
    grid = [(i, j) for i in range(-half, half + 1) for j in range(-half, half + 1)]
    means = torch.tensor([[-SPACING * i, -SPACING * j] * (dim // 2) for i, j in grid])
    square = torch.randn(len(grid), generator=g) ** 2
    weights = square / square.sum()
    left, values, right = torch.linalg.svd(torch.randn(data, dim, generator=g), full_matrices=True)
    singular = torch.sort(torch.rand(values.shape, generator=g), descending=True).values
    right = right[:data]
    matrix = left @ (torch.diag(singular) @ right)
    pick = torch.multinomial(weights, 1, replacement=True, generator=g)
    truth = (means + torch.randn(len(grid), dim, generator=g))[pick[0]]
    level = torch.rand(1, generator=g)[0] * singular.max()
    if sigma is not None:
        level = torch.tensor(sigma)
    y = matrix @ truth
    y = y + torch.randn(y.shape, generator=g) * level
    prior = GaussianMixture(weights.double(), means.double(), torch.ones(len(grid), dtype=torch.float64))
    # The float32 factors are orthonormal to 1e-7 only; those of the matrix itself to 1e-15.
    left, singular, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    measurement = Measurement(MatrixOperator(matrix.double()), GaussianNoise(float(level)), y.double())
    return Gmm25(prior, measurement, left, singular, right, truth.double())
