"""What a user says about the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ReadOptions:
    """Attributes:
    format: ending to assume instead of the file's own, without dot.
    axes: names of a bare sinogram's axes, such as "detector,angle".
    geometry_file: YAML with the geometry of a sinogram; None looks for one beside the file.
    kind: line_integral or counts; None as the file says, else line_integral.
    flux: photons of an unattenuated ray; None as the file says.
    slope, intercept: make an image HU.
    """

    format: str | None = None
    axes: str | None = None
    geometry_file: Path | None = None
    kind: str | None = None
    flux: float | None = None
    slope: float | None = None
    intercept: float | None = None

    @classmethod
    def of(cls, operator: Mapping[str, Any], given: Mapping[str, Any]) -> ReadOptions:
        """From the `operator` and `input` groups of a configuration."""

        def number(key: str) -> float | None:
            return None if operator.get(key) is None else float(operator[key])

        file = operator.get("geometry_file")
        return cls(
            given.get("format"),
            given.get("axes"),
            None if file is None else Path(str(file)),
            operator.get("kind"),
            number("flux"),
            number("hu_slope"),
            number("hu_intercept"),
        )
