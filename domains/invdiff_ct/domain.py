"""The CT domain: from a file to problems, from samples to files, figures and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invdiff import InputError, TrainingData
from invdiff_ct.hu import Window
from invdiff_ct.training import Slices, Source


class CT:
    """The `ct` domain."""

    name = "ct"

    def training_data(self, settings: Mapping[str, Any]) -> TrainingData:
        """Slices for `invdiff train`: `root`, `hu_range`, `sources` (path, held_out patients)."""
        root = Path(str(settings["root"]))
        sources = []
        for source in settings["sources"]:
            path = root / str(source["path"])
            if not path.is_file():
                raise InputError(f"there is no training file {path}; set data.root=FOLDER")
            sources.append(Source(path, tuple(str(patient) for patient in source.get("held_out", ()))))
        return Slices(sources, Window(*settings.get("hu_range", (-1000, 1000))))
