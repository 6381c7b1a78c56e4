"""Matrix-free linear algebra, per sample: inner products, conjugate gradients, norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Matvec = Callable[[Tensor], Tensor]


def inner(u: Float[Tensor, "batch *event"], v: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch"]:
    """`<u, v>` of each sample."""
    return (u * v).flatten(1).sum(dim=1)


def squared(x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch"]:
    """`|x|^2` of each sample, in float64."""
    return x.flatten(1).double().square().sum(dim=1)


def expand(weights: Shaped[Tensor, "batch"], x: Float[Tensor, "batch *event"]) -> Tensor:
    """`weights` with trailing axes of length one, to multiply x."""
    return weights.reshape(-1, *([1] * (x.ndim - 1)))


@dataclass(frozen=True)
class Solution:
    """What conjugate gradients returned.

    Attributes:
        x: the solution.
        iterations: steps taken by each sample.
        residual: `|b - M x| / |b|` of each sample, by the recursion.
        indefinite: samples that met a direction of non-positive curvature and
            stopped there (M is then not positive definite).
    """

    x: Float[Tensor, "batch *event"]
    iterations: Int[Tensor, "batch"]
    residual: Float[Tensor, "batch"]
    indefinite: Bool[Tensor, "batch"]

    @classmethod
    def exact(cls, x: Float[Tensor, "batch *event"]) -> Solution:
        """A solution that was found in closed form."""
        batch = len(x)
        zero = torch.zeros(batch, device=x.device, dtype=x.dtype)
        return cls(x, zero.long(), zero, zero.bool())


def conjugate_gradients(
    matvec: Matvec,
    rhs: Float[Tensor, "batch *event"],
    *,
    start: Float[Tensor, "batch *event"] | None = None,
    iterations: int = 30,
    tolerance: float = 1e-6,
) -> Solution:
    """Solve `M x = b` for symmetric positive definite M, each sample on its own.

    No inner product is taken over the batch and a sample that has converged
    (`|r| <= tolerance |r_0|`, r_0 the residual of the start) is frozen, so a
    result does not depend on which other samples are solved beside it (Hestenes
    & Stiefel 1952). The limit is relative to r_0 and not to b, so that a small
    correction to a large start is still found; nothing is added to the
    denominators, so that systems of any norm converge alike.
    """
    x = torch.zeros_like(rhs) if start is None else start
    residual = rhs if start is None else rhs - matvec(start)
    square = inner(residual, residual)
    target = tolerance**2 * square
    direction = residual
    active = square > target
    indefinite = torch.zeros_like(active)
    taken = torch.zeros(len(rhs), dtype=torch.int64, device=rhs.device)
    for _ in range(iterations):
        if not bool(active.any()):
            break
        image = matvec(direction)
        curvature = inner(direction, image)
        bad = active & ~(curvature > 0)
        indefinite, active = indefinite | bad, active & ~bad
        step = torch.where(active, square / torch.where(active, curvature, 1.0), 0.0)
        x = x + expand(step, x) * direction
        residual = residual - expand(step, x) * image
        fresh = inner(residual, residual)
        ratio = torch.where(active, fresh / torch.where(active, square, 1.0), 0.0)
        direction = torch.where(expand(active, x), residual + expand(ratio, x) * direction, direction)
        square = torch.where(active, fresh, square)
        taken = taken + active
        active = active & (square > target)
    norm = inner(rhs, rhs)
    relative = torch.where(norm > 0, (square / torch.where(norm > 0, norm, 1.0)).sqrt(), 0.0)
    return Solution(x, taken, relative, indefinite)


def operator_norm(
    normal: Matvec,
    shape: tuple[int, ...],
    *,
    iterations: int = 20,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> float:
    """`||A||` by power iteration on `A^T A` from a fixed random start (a lower bound)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((1, *shape), generator=generator, dtype=dtype).to(device)
    square = 0.0
    for _ in range(iterations):
        x = x / x.norm()
        image = normal(x)
        square = float(inner(x, image))
        if square <= 0:
            return 0.0
        x = image
    return float(square**0.5)
