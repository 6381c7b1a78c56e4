"""Forward models that can say what they could measure next.

An operator that has candidates describes everything that could be measured: its data
hold all candidates, and `candidates()` says which candidate every datum belongs to (a
k-space line, a projection, a pixel). That is all active subsampling needs; an operator
that can restrict itself more cheaply than by masking says how in `select`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.operator import LinearOperator, Operator


@runtime_checkable
class HasCandidates(Protocol):
    """An operator whose data fall into candidate measurements."""

    def candidates(self) -> Int[Tensor, "*data"]:
        """The candidate of every datum, counted from 0; -1 for data that are never measured."""


@runtime_checkable
class Selects(Protocol):
    """An operator that knows the operator of some of its candidates better than by a mask."""

    def select(
        self, chosen: Sequence[int], y: Float[Tensor, "*data"]
    ) -> tuple[Operator, Float[Tensor, "*less"]]:
        """The operator that measures the chosen candidates only, and y as its data."""


class Masked(Operator):
    """`m A(x)`: zero where nothing is measured."""

    def __init__(self, operator: Operator, mask: Bool[Tensor, "*data"]) -> None:
        self.operator, self.mask = operator, mask
        self.event_shape = operator.event_shape

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        return self.operator(x) * self.mask.to(x)

    def data_size(self, y: Float[Tensor, "*data"]) -> int:
        return int(self.mask.sum())


class MaskedLinear(LinearOperator):
    """`m A`, with adjoint `A^T m`."""

    def __init__(self, operator: LinearOperator, mask: Bool[Tensor, "*data"]) -> None:
        self.operator, self.mask = operator, mask
        self.event_shape = operator.event_shape

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        return self.operator.forward(x) * self.mask.to(x)

    def adjoint(self, y: Float[Tensor, "batch *data"]) -> Float[Tensor, "batch *event"]:
        return self.operator.adjoint(y * self.mask.to(y))

    def data_size(self, y: Float[Tensor, "*data"]) -> int:
        return int(self.mask.sum())


def candidates_of(operator: Operator) -> Int[Tensor, "*data"]:
    """`operator.candidates()`, checked.

    Raises:
        InputError: for an operator that has none.
    """
    if not isinstance(operator, HasCandidates):
        raise InputError(
            f"{type(operator).__name__} has no candidate measurements to choose from; give it a method "
            "candidates() that returns the candidate of every datum, or leave out operator.budget"
        )
    groups = operator.candidates()
    if groups.numel() == 0 or int(groups.max()) < 0:
        raise InputError(f"{type(operator).__name__} has an empty set of candidates; nothing could be chosen")
    return groups


def select(
    operator: Operator, chosen: Sequence[int], y: Float[Tensor, "*data"]
) -> tuple[Operator, Float[Tensor, "*less"]]:
    """The operator that measures the chosen candidates only, and the part of y that it sees."""
    if isinstance(operator, Selects):
        return operator.select(chosen, y)
    groups = candidates_of(operator)
    mask = torch.isin(groups, torch.tensor(list(chosen), dtype=groups.dtype))
    kind = MaskedLinear if isinstance(operator, LinearOperator) else Masked
    return kind(operator, mask), torch.where(mask.to(y.device), y, 0)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Layout:
    """Data arranged by candidate.

    Attributes:
        count: number of candidates.
        index: [candidate, component], places in the flattened data; the last place is padding.
    """

    count: int
    index: Int[Tensor, "candidate component"]

    @classmethod
    def of(cls, groups: Int[Tensor, "*data"]) -> Layout:
        """From the candidate of every datum."""
        flat = groups.flatten()
        count = int(flat.max()) + 1
        order = torch.argsort(flat, stable=True)
        order = order[flat[order] >= 0]
        sizes = torch.bincount(flat[order], minlength=count)
        starts = torch.cumsum(sizes, 0) - sizes
        place = torch.arange(len(order)) - torch.repeat_interleave(starts, sizes)
        index = torch.full((count, int(sizes.max())), flat.numel(), dtype=torch.int64)
        index[flat[order], place] = order
        return cls(count, index)

    def arrange(self, data: Float[Tensor, "batch *data"]) -> Float[Tensor, "batch candidate component"]:
        """Rows of data as [candidate, component], zero where a candidate has fewer components."""
        flat = data.flatten(1)
        padded = torch.cat([flat, flat.new_zeros(len(flat), 1)], dim=1)
        return padded[:, self.index.to(data.device)]
