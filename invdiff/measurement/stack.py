"""A stack of slices, each with a forward model of its own: `y_z = A_z x_z`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.operator import LinearOperator


class StackedOperator(LinearOperator):
    """Linear operators of one event and data shape, slice by slice: x [batch, slice, *event].

    Raises:
        InputError: for no slices, or slices of different shapes.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        shapes = {operator.event_shape for operator in operators}
        if len(shapes) != 1 or None in shapes:
            raise InputError(f"a stack needs slices of one known shape; found {sorted(map(str, shapes))}")
        self.operators = tuple(operators)
        event = operators[0].event_shape
        assert event is not None
        self.event_shape = (len(operators), *event)

    def forward(self, x: Float[Tensor, "batch slice *event"]) -> Float[Tensor, "batch slice *data"]:
        return torch.stack([one.forward(x[:, z]) for z, one in enumerate(self.operators)], dim=1)

    def adjoint(self, y: Float[Tensor, "batch slice *data"]) -> Float[Tensor, "batch slice *event"]:
        return torch.stack([one.adjoint(y[:, z]) for z, one in enumerate(self.operators)], dim=1)

    def normal(self, x: Float[Tensor, "batch slice *event"]) -> Float[Tensor, "batch slice *event"]:
        return torch.stack([one.normal(x[:, z]) for z, one in enumerate(self.operators)], dim=1)

    def resolvent(
        self, rhs: Float[Tensor, "batch slice *event"], gamma: float
    ) -> Float[Tensor, "batch slice *event"] | None:
        """In closed form where every slice's is."""
        parts = []
        for z, one in enumerate(self.operators):
            part = one.resolvent(rhs[:, z], gamma)
            if part is None:
                return None
            parts.append(part)
        return torch.stack(parts, dim=1)

    def data_size(self, y: Float[Tensor, "slice *data"]) -> int:
        return sum(one.data_size(y[z]) for z, one in enumerate(self.operators))
