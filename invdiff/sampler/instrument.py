"""An instrument in another process: requests and answers are files in a folder.

Turn t of a run writes `request_0001.json`, whole or not at all,

    {"turn": 1, "what": "phase-encode lines", "candidates": [63, 71],
     "answer": "answer_0001.npy", "shape": [2, 8, 256], "dtype": "complex64"}

and waits for the answer, a `.npy` array of that shape, one row a candidate in the order of the request. The
instrument writes it under another name and renames it, so that it never appears half written. When all is
measured `done.json` appears. A run that was interrupted asks the same again and finds the answers there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from invdiff.errors import InputError


@dataclass
class FileExchange:
    """Attributes:
    folder: made where it is missing.
    what: candidates in words.
    row: shape of one candidate's answer.
    dtype: of the answer, as numpy names it.
    timeout: seconds to wait for one answer.
    poll: seconds between two looks.
    """

    folder: Path
    what: str
    row: tuple[int, ...]
    dtype: str = "float32"
    timeout: float = 600.0
    poll: float = 0.1
    turn: int = field(default=0, init=False)

    def ask(self, candidates: Sequence[int]) -> np.ndarray:
        """The data of the candidates, one row each; blocks until they are there.

        Raises:
            InputError: where no answer comes in time, it is not of the asked shape, holds values that are
                not finite, or the folder belongs to another run.
        """
        self.turn += 1
        request = self.folder / f"request_{self.turn:04d}.json"
        answer = self.folder / f"answer_{self.turn:04d}.npy"
        shape = (len(candidates), *self.row)
        content = {
            "turn": self.turn,
            "what": self.what,
            "candidates": [int(one) for one in candidates],
            "answer": answer.name,
            "shape": list(shape),
            "dtype": self.dtype,
        }
        if request.exists() and json.loads(request.read_text()) != content:
            raise InputError(
                f"{request} was written by another run; give an empty folder as operator.design.exchange"
            )
        _write(request, content)
        deadline = time.monotonic() + self.timeout
        while not answer.exists():
            if time.monotonic() > deadline:
                raise InputError(
                    f"no answer {answer.name} to {request.name} after {self.timeout:g} s; start the "
                    "instrument and continue with `invdiff resume`, or raise operator.design.timeout"
                )
            time.sleep(self.poll)
        try:
            data = np.load(answer, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(
                f"{answer} is not a numpy array ({error}); write it whole and rename it"
            ) from None
        if data.shape != shape:
            raise InputError(f"{answer} has shape {data.shape}; the request asked for {shape}")
        if not np.isfinite(data).all():
            raise InputError(f"{answer} holds values that are not finite; measure these candidates again")
        if np.iscomplexobj(data) and not np.issubdtype(np.dtype(self.dtype), np.complexfloating):
            raise InputError(f"{answer} is complex; the request asked for {self.dtype}")
        return np.asarray(data, dtype=self.dtype)

    def close(self) -> None:
        """Tell the instrument that nothing more is asked for."""
        _write(self.folder / "done.json", {"turns": self.turn})


def _write(path: Path, content: object) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name("." + path.name)
        part.write_text(json.dumps(content) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; check operator.design.exchange") from None
