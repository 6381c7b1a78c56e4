"""Few data: a target on flat vectors, dense in the measured components."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import LinearOperator
from invdiff.sampler.weighting.target import Target

LARGEST = 256  # measured components for which the dense algebra is still sensible
LARGEST_ARRAY = 8192  # components of an array that holds them, masked ones included


class FewData:
    """A target on flat vectors, with the rows of the operator's Jacobian.

    Raises:
        InputError: for no data, or more than dense algebra takes.
    """

    def __init__(self, target: Target) -> None:
        self.target, measurement = target, target.measurement
        device, dtype = target.device, target.dtype
        if measurement.size == 0:
            raise InputError("moment_twisted conditions on data and there are none; sample the prior instead")
        if measurement.size > LARGEST or measurement.y.numel() > LARGEST_ARRAY:
            raise InputError(
                f"moment_twisted works with at most {LARGEST} measured components, in arrays of at most "
                f"{LARGEST_ARRAY}, and the data have {measurement.size} in {measurement.y.numel()}; "
                "use sampler=twisted"
            )
        self.y = measurement.y.to(device=device, dtype=dtype).flatten()
        self.rows: Tensor | None = None
        if isinstance(measurement.operator, LinearOperator):
            basis = torch.eye(self.y.numel(), device=device, dtype=dtype)
            rows = measurement.operator.adjoint(basis.reshape(-1, *measurement.y.shape)).flatten(1)
            kept = rows.abs().sum(dim=1) > 0
            self.rows, self.y = rows[kept], self.y[kept]
        self.floor = 1e-6 * measurement.noise.variance()

    @property
    def size(self) -> int:
        return math.prod(self.target.shape)

    def denoise(self, x: Float[Tensor, "some size"], sigma: float) -> Float[Tensor, "some size"]:
        return self.target.denoise(x.reshape(-1, *self.target.shape), sigma).flatten(1)

    def forward(self, x: Float[Tensor, "some size"]) -> Float[Tensor, "some data"]:
        if self.rows is not None:
            return x @ self.rows.mT
        with torch.no_grad():
            return self.target.measurement.operator(x.reshape(-1, *self.target.shape)).flatten(1)

    def approximated(
        self, clean: Float[Tensor, "some data"], spread: Float[Tensor, "some data"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, slope and variance of y as a Gaussian whose mean is linear in the clean data."""
        noise = self.target.measurement.noise
        if isinstance(noise, GaussianNoise):
            return clean, torch.ones_like(clean), noise.variance_at(clean)
        width = spread.clamp_min(1e-4 * (clean.abs() + math.sqrt(noise.variance())))
        up, down = noise.mean_at(clean + width), noise.mean_at(clean - width)
        variance = 0.5 * (noise.variance_at(clean + width) + noise.variance_at(clean - width))
        return 0.5 * (up + down), (up - down) / (2 * width), variance.clamp_min(self.floor)

    def jacobian(self, x: Float[Tensor, "some size"]) -> Float[Tensor, "some data size"]:
        """Rows of dA/dx at each x; the operator's derivative, never the network's."""
        if self.rows is not None:
            return self.rows.expand(len(x), *self.rows.shape)
        with torch.enable_grad():
            leaf = x.reshape(-1, *self.target.shape).detach().requires_grad_()
            clean = self.target.measurement.operator(leaf).flatten(1)
            rows = [
                torch.autograd.grad(clean[:, j].sum(), leaf, retain_graph=True)[0].flatten(1)
                for j in range(clean.shape[1])
            ]
        return torch.stack(rows, dim=1)

    def log_likelihood(self, x: Float[Tensor, "some size"]) -> Float[Tensor, "some"]:
        with torch.no_grad():
            return self.target.measurement.log_likelihood(x.reshape(-1, *self.target.shape))

    def normal(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=self.target.dtype)
        return drawn.to(self.target.device)
