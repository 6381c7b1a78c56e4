"""What a user may say about an input file (`input.*` on the command line)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadOptions:
    """Attributes:
    format: ending to assume instead of the file's own, without dot.
    axes: axis names of a bare array, such as "coil,y,x".
    shift: the k-space origin is in the corner; move it to the centre.
    """

    format: str | None = None
    axes: str | None = None
    shift: bool = False
