"""What the benchmarks of the packs share: a run through the product's own command path, the closing line."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

BEGAN = time.time()


def solve(overrides: list[str], folder: Path | None = None) -> dict[str, Any]:
    """A run of one item in a temporary (or given) directory: `item` (metrics), `seconds`, `acquisition`."""
    import torch

    torch.set_num_threads(1)
    from invdiff.config import compose
    from invdiff.run.solve import begin, execute, plan

    with tempfile.TemporaryDirectory() as temporary:
        job = plan(compose([*overrides, f"run.out={folder or Path(temporary) / 'run'}"]))
        run = begin(job)
        execute(job, run)

        def first(name: str) -> Any:
            return next(iter(json.loads((run / name).read_text()).values()))

        record = next((run / "items").iterdir()) / "acquisition.json"
        return {
            "item": first("metrics.json"),
            "seconds": first("timing.json"),
            "acquisition": json.loads(record.read_text()) if record.is_file() else None,
        }


def closing(command: str, overrides: list[str], processes: int) -> None:
    """The command, versions, and how long it took."""
    import torch

    import invdiff

    shown = " ".join((command, *overrides)).strip()
    threads = "one thread" if processes == 1 else f"{processes} processes of one thread"
    print(
        f"\n`python benchmarks/{shown}`; invdiff {invdiff.__version__}, torch {torch.__version__}, "
        f"{threads}, {time.time() - BEGAN:.0f} s"
    )
