"""The checks that every operator must pass, ours and a user's (`invdiff check`)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.measurement.linear import operator_norm
from invdiff.measurement.operator import LinearOperator, Operator


@dataclass(frozen=True)
class Check:
    """One law, the error found, the limit, and the verdict."""

    name: str
    error: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


def _relative(a: Tensor, b: Tensor) -> float:
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-300)
    return float((a - b).abs().max()) / scale


def adjoint_error(operator: LinearOperator, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Largest `|<A x, v> - <x, A^T v>| / (|A x| |v|)` of four random pairs."""
    worst = 0.0
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((1, *shape), generator=generator, dtype=dtype)
        image = operator.forward(x)
        v = torch.randn(image.shape, generator=generator, dtype=dtype)
        left = (image.double() * v.double()).sum()
        right = (x.double() * operator.adjoint(v).double()).sum()
        scale = image.double().norm() * v.double().norm()
        worst = max(worst, float((left - right).abs() / scale.clamp_min(1e-300)))
    return worst


def check_operator(operator: Operator, shape: tuple[int, ...]) -> list[Check]:
    """Run every law on random inputs of `shape` (without batch).

    Linear operators: adjointness (1e-10 in float64, 1e-5 in float32), linearity,
    zero maps to zero, norm. All: dtype kept, batch equals single calls, the same
    input twice gives the same output, a deep copy agrees, finite gradient.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    y = operator(x)
    checks = []
    single = x.float()
    kept = operator(single).dtype == torch.float32 and y.dtype == torch.float64
    checks.append(Check("dtype kept", 0.0 if kept else 1.0, 0.0, f"float64 in, {y.dtype} out"))
    singles = torch.cat([operator(row[None]) for row in x])
    checks.append(Check("batch equals single calls", _relative(y, singles), 1e-10))
    checks.append(Check("stateless", _relative(y, operator(x)), 0.0))
    checks.append(Check("deep copy agrees", _relative(y, copy.deepcopy(operator)(x)), 0.0))
    checks.append(Check("float32 agrees with float64", _relative(operator(single).double(), y), 1e-4))
    probe = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(operator(probe).square().sum(), probe)
    finite = bool(torch.isfinite(gradient).all())
    checks.append(Check("differentiable", 0.0 if finite else 1.0, 0.0))
    if isinstance(operator, LinearOperator):
        for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
            name = f"adjoint ({str(dtype).removeprefix('torch.')})"
            checks.append(Check(name, adjoint_error(operator, shape, dtype), limit))
        mixed = operator(2.0 * x[:1] - 3.0 * x[1:2])
        checks.append(Check("linear", _relative(mixed, 2.0 * y[:1] - 3.0 * y[1:2]), 1e-10))
        checks.append(Check("A(0) = 0", float(operator(0 * x).abs().max()), 0.0))
        normal = operator.adjoint(y)
        checks.append(Check("normal equals A^T A", _relative(operator.normal(x), normal), 1e-10))
        norm = operator_norm(operator.normal, shape)
        checks.append(Check("norm above zero", 0.0 if norm > 0 else 1.0, 0.0, f"||A|| = {norm:.4g}"))
    return checks
