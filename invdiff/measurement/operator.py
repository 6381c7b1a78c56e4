"""Forward models `A`: what the instrument would measure of x, without noise.

An operator maps `[batch, *event]` to `[batch, *data]`, sample by sample, keeps
no state between calls and returns the dtype and device it was given. Complex
data are real tensors with an axis of length two.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.linear import operator_norm


class Operator(ABC):
    """A forward model, possibly nonlinear; subclasses write `forward`.

    Attributes:
        event_shape: shape of one x, without batch; None where any shape is taken.
        linear: whether A is linear and `adjoint` exists.
        differentiable: whether autograd sees through it; a reward on a decoded object has no derivative.
    """

    event_shape: tuple[int, ...] | None = None
    linear: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        """`A(x)`."""

    def __call__(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        return self.forward(x)

    def data_size(self, y: Float[Tensor, "*data"]) -> int:
        """Number of real components that were measured (masked ones do not count)."""
        return y.numel()


class LinearOperator(Operator):
    """A linear forward model; subclasses write `forward` and `adjoint`.

    `normal` is `A^T A`, to be overridden where it is cheaper than both in turn.
    """

    linear: ClassVar[bool] = True

    @abstractmethod
    def adjoint(self, y: Float[Tensor, "batch *data"]) -> Float[Tensor, "batch *event"]:
        """`A^T y`: `<A x, y> = <x, A^T y>` for all x and y."""

    def norm(
        self, shape: tuple[int, ...], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> float:
        """`||A||` on events of a shape, see `operator_norm`; computed once for each."""
        known: dict[object, float] = self.__dict__.setdefault("_norms", {})
        key = (shape, str(device), dtype)
        if key not in known:
            known[key] = operator_norm(self.normal, shape, device=device, dtype=dtype)
        return known[key]

    def normal(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """`A^T A x`."""
        return self.adjoint(self.forward(x))

    def resolvent(
        self, rhs: Float[Tensor, "batch *event"], gamma: float
    ) -> Float[Tensor, "batch *event"] | None:
        """`(1 + gamma A^T A)^-1 rhs` where it is cheap in closed form; None: use iterations."""
        return None


class MatrixOperator(LinearOperator):
    """A dense matrix [data, event] acting on vectors, for small and closed-form problems."""

    def __init__(self, matrix: Float[Tensor, "data event"]) -> None:
        self.matrix = matrix
        self.event_shape = (matrix.shape[1],)

    def forward(self, x: Float[Tensor, "batch event"]) -> Float[Tensor, "batch data"]:
        return x @ self.matrix.to(x).mT

    def adjoint(self, y: Float[Tensor, "batch data"]) -> Float[Tensor, "batch event"]:
        return y @ self.matrix.to(y)


class FunctionOperator(Operator):
    """A differentiable function `x -> A(x)` as a (nonlinear) operator."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        return self.function(x)


class Composed(Operator):
    """Operators or differentiable maps in turn, the first given first.

    `Composed(coils, Magnitude())` is |S x|. The last part must be an operator. Nonlinear, whatever its parts.
    """

    def __init__(
        self, *parts: Operator | Callable[[Tensor], Tensor], event_shape: tuple[int, ...] | None = None
    ) -> None:
        if not parts or not isinstance(parts[-1], Operator):
            raise InputError("a composition needs at least one operator, as its last part")
        self.parts, self.last = parts, parts[-1]
        first = parts[0]
        self.event_shape = first.event_shape if isinstance(first, Operator) else event_shape

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        for part in self.parts:
            x = part(x)
        return x

    def data_size(self, y: Float[Tensor, "*data"]) -> int:
        return self.last.data_size(y)


class LinearFunctions(LinearOperator):
    """A linear operator from its two functions."""

    def __init__(self, forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> None:
        self._forward, self._adjoint = forward, adjoint

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        return self._forward(x)

    def adjoint(self, y: Float[Tensor, "batch *data"]) -> Float[Tensor, "batch *event"]:
        return self._adjoint(y)


class _Frozen:
    """Private copies of a deepinv physics, one a dtype, called without arguments.

    deepinv lets a call overwrite stored parameters (`physics.A(x, mask=m)`), and
    mixes dtypes badly: the copies are never handed out, are called with x alone,
    and carry their parameters in the state's dtype. An operator that cannot do
    float64 at all runs in float32 and its result is cast back.
    """

    def __init__(self, physics: Any) -> None:
        self._source = copy.deepcopy(physics)
        self._copies: dict[tuple[torch.dtype, torch.device], Any] = {}

    def call(self, method: str, x: Tensor) -> Tensor:
        key = (x.dtype, x.device)
        if key not in self._copies:
            self._copies[key] = copy.deepcopy(self._source).to(device=x.device, dtype=x.dtype)
        try:
            out = getattr(self._copies[key], method)(x)
        except RuntimeError:
            if x.dtype != torch.float64:
                raise
            return self.call(method, x.float()).to(x.dtype)
        assert isinstance(out, Tensor)
        return out.to(device=x.device, dtype=x.dtype)


class DeepinvOperator(Operator):
    """A nonlinear deepinv `Physics`, kept stateless and in the caller's dtype."""

    def __init__(self, physics: Any) -> None:
        self._frozen = _Frozen(physics)

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        return self._frozen.call("A", x)


class DeepinvLinearOperator(LinearOperator):
    """A deepinv `LinearPhysics`, kept stateless and in the caller's dtype."""

    def __init__(self, physics: Any) -> None:
        self._frozen = _Frozen(physics)

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        return self._frozen.call("A", x)

    def adjoint(self, y: Float[Tensor, "batch *data"]) -> Float[Tensor, "batch *event"]:
        return self._frozen.call("A_adjoint", y)


def as_operator(thing: object) -> Operator:
    """An operator from an Operator, a deepinv `Physics`, a matrix, a function or a pair of them.

    Raises:
        InputError: for anything else.
    """
    if isinstance(thing, Operator):
        return thing
    if isinstance(thing, Tensor):
        if thing.ndim != 2:
            raise InputError(f"a tensor as operator must be a matrix [data, event]; found {thing.ndim} axes")
        return MatrixOperator(thing)
    if isinstance(thing, tuple) and len(thing) == 2 and all(callable(part) for part in thing):
        return LinearFunctions(*thing)
    if hasattr(thing, "A") and hasattr(thing, "noise_model"):
        linear = hasattr(thing, "A_adjoint")
        return DeepinvLinearOperator(thing) if linear else DeepinvOperator(thing)
    if callable(thing):
        return FunctionOperator(thing)
    raise InputError(
        f"cannot make an operator of a {type(thing).__name__}; expected an invdiff Operator, a "
        "deepinv Physics, a matrix, a function x -> A(x), or a pair (forward, adjoint)"
    )


def require_linear(operator: Operator, method: str) -> LinearOperator:
    """The operator, refused where `method` needs a linear one."""
    if not isinstance(operator, LinearOperator):
        raise InputError(
            f"sampler {method!r} needs a linear operator and {type(operator).__name__} is not one; "
            "use sampler=dps, or give the operator an adjoint"
        )
    return operator


def checked(x: Tensor, what: str) -> Tensor:
    """x, refused where it holds NaN or Inf."""
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise InputError(
            f"{what} holds {int(bad.sum())} values that are NaN or infinite, the first at index "
            f"{first}; repair or mask them"
        )
    return x
