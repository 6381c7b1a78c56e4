"""Measurement = operator + noise + data: the likelihood `p(y | x)` of one item."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.linear import Solution, conjugate_gradients
from invdiff.measurement.noise import GaussianNoise, Noise
from invdiff.measurement.operator import LinearOperator, Operator, checked, require_linear


@dataclass(frozen=True)
class Measurement:
    """Data `y = A(x) + noise` of one item; every sample of a batch sees the same y.

    Attributes:
        operator: the forward model.
        noise: the noise model.
        y: the data, without batch axis.
    """

    operator: Operator
    noise: Noise
    y: Float[Tensor, "*data"]

    def __post_init__(self) -> None:
        checked(self.y, "the measurement")
        self.noise.check(self.y)

    @property
    def size(self) -> int:
        """Number of measured real components."""
        return self.operator.data_size(self.y)

    def to(self, device: torch.device | str) -> Measurement:
        """The same measurement with y on `device`."""
        return replace(self, y=self.y.to(device))

    def linear(self, method: str) -> LinearOperator:
        """The operator, refused with one sentence where it is not linear."""
        return require_linear(self.operator, method)

    def gaussian(self, method: str) -> GaussianNoise:
        """The noise, refused with one sentence where it is not Gaussian."""
        if not isinstance(self.noise, GaussianNoise):
            raise InputError(
                f"sampler {method!r} needs Gaussian noise and this is {type(self.noise).__name__}; "
                "use sampler=daps, moment_twisted or steering"
            )
        return self.noise

    def residual(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        """`y - A(x)`."""
        return self.y.to(x) - self.operator(x)

    def chi2(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch"]:
        """Mean of `(y - E[y | A x])^2 / Var[y | A x]` in float64: near 1 for samples, below for means.

        For Gaussian noise this is `|y - A x|^2 / (sigma_y^2 m)`, for counts Pearson's statistic.
        """
        clean = self.operator(x).double()
        square = (self.y.to(clean) - self.noise.mean_at(clean)) ** 2 / self.noise.variance_at(clean)
        return square.flatten(1).sum(dim=1) / self.size

    def log_likelihood(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch"]:
        """`log p(y | x)`, float64, normalised, differentiable."""
        return self.noise.log_likelihood(self.operator(x), self.y.to(x), self.size)

    def solve(
        self,
        r2: float,
        rhs: Float[Tensor, "batch *data"],
        *,
        iterations: int = 50,
        tolerance: float = 1e-6,
    ) -> Float[Tensor, "batch *data"]:
        """`(r^2 A A^T + sigma_y^2)^-1 rhs` by conjugate gradients in data space."""
        operator = self.linear("solve")
        variance = self.noise.variance()

        def matvec(v: Tensor) -> Tensor:
            return r2 * operator.forward(operator.adjoint(v)) + variance * v

        return conjugate_gradients(matvec, rhs, iterations=iterations, tolerance=tolerance).x

    def proximal(
        self,
        center: Float[Tensor, "ones *event"],
        gamma: float,
        *,
        data: Float[Tensor, "some *event"] | None = None,
        start: Float[Tensor, "others *event"] | None = None,
        iterations: int = 30,
        tolerance: float = 1e-4,
        direct: bool = True,
    ) -> Solution:
        """`argmin gamma |y - A x|^2 + |x - center|^2`, by the operator's resolvent or by CG on x.

        Equals `center + r^2 A^T (r^2 A A^T + sigma_y^2)^-1 (y - A center)` for
        `gamma = r^2 / sigma_y^2`. `data` is `A^T y` when the caller has it; `direct=False`
        takes CG even where a closed form exists (for methods whose early stop regularises).
        """
        operator = self.linear("proximal")
        if data is None:
            data = operator.adjoint(self.y.to(center)[None])
        rhs = center + gamma * data
        if direct:
            solved = operator.resolvent(rhs, gamma)
            if solved is not None:
                return Solution.exact(solved)
        begin = center if start is None else start

        def matvec(v: Tensor) -> Tensor:
            return v + gamma * operator.normal(v)

        if begin.shape != rhs.shape:
            begin = begin.expand(rhs.shape)
        return conjugate_gradients(matvec, rhs, start=begin, iterations=iterations, tolerance=tolerance)


def simulate(
    operator: Operator,
    x: Float[Tensor, "*event"],
    sigma: float,
    generator: torch.Generator,
) -> Measurement:
    """A Gaussian measurement of x with noise level `sigma` per real component."""
    noise = GaussianNoise(sigma)
    return Measurement(operator, noise, noise.sample(operator(x[None])[0], generator))
