"""The run directory: everything is written under a temporary name and renamed.

    config.yaml  provenance.json  status.json  log.jsonl
    items/<id>/  figures/  metrics.json  timing.json  report.html

`status.json` says running, interrupted or complete; a run is finished only when
it says complete. Files that hold times are apart from those that hold results,
so that a resumed run has the results' bytes of an uninterrupted one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from invdiff.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as a whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


def new_directory(folder: Path, name: str) -> Path:
    """`folder/<time>_<name>`, made new."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(100):
        path = folder / (f"{stamp}_{name}" + (f"-{attempt}" if attempt else ""))
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"cannot make the run directory {path}: {error.strerror}") from None
        return path
    raise InputError(f"cannot make a new run directory in {folder}")


def require_space(folder: Path, needed: int) -> None:
    """Refuse to start where the disk cannot hold the result (`needed` bytes)."""
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"the disk of {folder} has {free / 1e6:.0f} MB free and the run needs about "
            f"{needed / 1e6:.0f} MB; free some or choose another folder with --out"
        )


@contextmanager
def full_disk_is_an_input_error() -> Iterator[None]:
    """Turn "no space left on device" into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(
            f"the disk is full while writing {error.filename or 'the run'}; free space and run "
            "`invdiff resume`"
        ) from None


class Log:
    """`log.jsonl`: one event a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **values: Any) -> None:
        """Append one event with the time."""
        row: Mapping[str, Any] = {"time": round(time.time(), 3), "event": event, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, default=str) + "\n")
