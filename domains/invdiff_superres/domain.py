"""The super-resolution domain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invdiff_superres.training import Photographs


class Superres:
    """The `superres` domain."""

    name = "superres"

    def training_data(self, settings: Mapping[str, Any]) -> Photographs:
        """Crops for `invdiff train`: `root`, `path`, `held_out` (every n-th photograph)."""
        return Photographs(
            Path(str(settings["root"])) / str(settings["path"]), int(settings.get("held_out", 10))
        )
