"""A scanner for `operator.design.exchange`: a full scan that gives out one phase-encode line at a time.

    python -m invdiff_mri.examples.scanner FULL.npz FOLDER [axis]
    invdiff solve --domain mri --operator active_lines --input START.npz operator.design.exchange=FOLDER

FULL.npz holds `kspace` [coil, y, x]; START.npz the same with zeros where nothing was measured yet. Replace
`measure` to drive a scanner of your own. The loop ends with `done.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Complex


def serve(measure: Callable[[Sequence[int]], np.ndarray], folder: Path, patience: float = 600.0) -> int:
    """Answer requests in order until `done.json` appears; returns how many were answered."""
    turn, deadline = 1, time.monotonic() + patience
    while time.monotonic() < deadline:
        request = folder / f"request_{turn:04d}.json"
        if request.exists():
            content = json.loads(request.read_text())
            answer = folder / str(content["answer"])
            part = answer.with_name("." + answer.name)
            with part.open("wb") as file:
                np.save(file, measure(content["candidates"]).astype(content["dtype"]))
            os.replace(part, answer)
            turn, deadline = turn + 1, time.monotonic() + patience
        elif (folder / "done.json").exists():
            break
        else:
            time.sleep(0.05)
    return turn - 1


def lines_of(kspace: Complex[np.ndarray, "coil y x"], axis: int = 1) -> Callable[[Sequence[int]], np.ndarray]:
    """Lines of a full scan as [line, coil, readout]; `axis` of [y, x] is the phase encode."""
    lines = np.moveaxis(kspace, 1 + axis, 0)
    return lambda wanted: lines[list(wanted)]


if __name__ == "__main__":
    with np.load(sys.argv[1]) as file:
        scan = file["kspace"]
    axis = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    answered = serve(lines_of(scan, axis), Path(sys.argv[2]))
    print(f"answered {answered} requests")
