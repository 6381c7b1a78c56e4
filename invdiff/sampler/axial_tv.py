"""Total variation along z by ADMM, for stacks of slices that a prior sees one at a time.

    min_x  |y - A x|^2 / (2 s^2) + |x - c|^2 / (2 r^2) + lambda |D_z x|_1,     (D_z x)_k = x_{k+1} - x_k

with the split d = D_z x and its scaled dual u, one sweep a noise level, (d, u) kept from level to level
(Chung et al., DiffusionMBIR, arXiv 2211.10655). With gamma = r^2 / s^2 and rho, tau = lambda / rho in units
of A^T A (norm 1):

    x <- CG on (1 + gamma A^T A + gamma rho D_z^T D_z) x = c + gamma A^T y + gamma rho D_z^T (d - u)
    d <- soft(D_z x + u, tau),   u <- D_z x + u - d

The last slice has no neighbour above it; `periodic` wraps it to the first, as the published code does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.linear import conjugate_gradients
from invdiff.measurement.measurement import Measurement


def difference(x: Float[Tensor, "batch z *event"], periodic: bool = False) -> Tensor:
    """`D_z x`."""
    return x.roll(-1, dims=1) - x if periodic else x[:, 1:] - x[:, :-1]


def difference_adjoint(d: Float[Tensor, "batch z *event"], periodic: bool = False) -> Tensor:
    """`D_z^T d`."""
    if periodic:
        return d.roll(1, dims=1) - d
    zero = torch.zeros_like(d[:, :1])
    return torch.cat([zero, d], dim=1) - torch.cat([d, zero], dim=1)


@dataclass
class AxialState:
    """d and u, from one noise level to the next."""

    split: Tensor
    dual: Tensor


@dataclass(frozen=True)
class AxialTV:
    """Attributes:
    rho: weight of the split, in units of ||A||^2 = 1; 0 leaves the slices uncoupled.
    tau: threshold lambda / rho, in units of x: jumps between slices that are below it are noise.
    periodic: wrap the last slice to the first.
    """

    rho: float = 0.003
    tau: float = 0.005
    periodic: bool = False

    def __post_init__(self) -> None:
        if self.rho < 0 or self.tau < 0:
            raise InputError(f"axial_tv needs rho >= 0 and tau >= 0; found {self.rho:g} and {self.tau:g}")

    def begin(self, x: Float[Tensor, "batch z *event"]) -> AxialState:
        """d = u = 0."""
        zero = torch.zeros_like(difference(x, self.periodic))
        return AxialState(zero, zero)

    def sweep(
        self,
        measurement: Measurement,
        center: Float[Tensor, "batch z *event"],
        gamma: float,
        state: AxialState,
        *,
        data: Float[Tensor, "ones z *event"],
        norm2: float,
        iterations: int,
        tolerance: float = 1e-6,
    ) -> Float[Tensor, "batch z *event"]:
        """One sweep from `center`; `state` is moved on. `data` is A^T y, `norm2` ||A||^2."""
        operator = measurement.linear("axial_tv")
        weight = gamma * self.rho * norm2

        def matvec(v: Tensor) -> Tensor:
            out = v + gamma * operator.normal(v)
            return out + weight * difference_adjoint(difference(v, self.periodic), self.periodic)

        rhs = center + gamma * data
        rhs = rhs + weight * difference_adjoint(state.split - state.dual, self.periodic)
        x = conjugate_gradients(matvec, rhs, start=center, iterations=iterations, tolerance=tolerance).x
        raised = difference(x, self.periodic) + state.dual
        state.split = raised.sign() * (raised.abs() - self.tau).clamp_min(0)
        state.dual = raised - state.split
        return x
