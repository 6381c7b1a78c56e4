"""Super-resolution beside the classical methods, through the product's own command path.

    python benchmarks/superres.py table DATA [--set kodak12|set5|heldout] [--count N] [key=value ...]

DATA is the folder of the shared data. `heldout` are crops of the photographs held out from training:
settings are chosen on them, never on the test sets. Data are the references, downsampled and rounded to 8
bits. Means over images; every table says its versions and settings. Two processes of one thread each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
from common import closing, solve

HELD_OUT = 10  # of configs/train/photo.yaml: every tenth photograph
FACTS = ("within_1_std", "within_2_std", "std_factor", "correlation of std and error")


def images(data: Path, name: str, count: int | None) -> dict[str, np.ndarray]:
    """References of a set by name, uint8 [y, x, 3]."""
    if name == "heldout":
        with np.load(data / "superres/bsds500_train_rgb128.npz") as file:
            crops, ids = file["images"], file["ids"]
        wanted = np.unique(ids)[::HELD_OUT]
        found = {str(one): crops[np.flatnonzero(ids == one)[number % 4]] for number, one in enumerate(wanted)}
    else:
        file_name = {"kodak12": "kodak12_hr256.npz", "set5": "set5_hr_mod4.npz"}[name]
        with np.load(data / "superres" / file_name) as file:
            found = {key: file[key] for key in file}
    return dict(list(found.items())[:count])


def job(folder: str, name: str, overrides: list[str]) -> dict[str, Any]:
    """One picture; its metrics and times."""
    return solve(["domain=superres", f"input.path={folder}/{name}.png", "domain.truth=true", *overrides])


def table(data: Path, name: str, count: int | None, overrides: list[str], processes: int) -> None:
    """Means over a set of every method's metrics, coverage, misfit and seconds."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(processes) as pool:
        references = images(data, name, count)
        for key, value in references.items():
            Image.fromarray(value).save(Path(folder) / f"{key}.png")
        jobs = [pool.submit(job, folder, key, overrides) for key in references]
        results = [one.result() for one in jobs]
    items = [result["item"] for result in results]
    for method in items[0]["table"]:
        rows = [item["table"][method] for item in items]
        means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        print(f"{method:28s}" + "  ".join(f"{key} {value:7.4f}" for key, value in means.items()))
    chi2 = float(np.mean([np.mean(item["chi2_per_sample"]) for item in items]))
    facts = {key: float(np.mean([item["facts"].get(key, np.nan) for item in items])) for key in FACTS}
    calls = items[0]["network_calls_per_sample"]
    seconds = float(np.median([result["seconds"]["sampling"] for result in results]))
    print(f"chi2 of a sample {chi2:.3f}  " + "  ".join(f"{key} {value:.3f}" for key, value in facts.items()))
    print(f"{len(items)} images of {name}, {calls} network calls a sample, median {seconds:.1f} s an image")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["table"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--set", default="kodak12", choices=["kodak12", "set5", "heldout"])
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    table(given.data, given.set, given.count, given.overrides, given.processes)
    closing(f"superres.py table DATA --set {given.set}", given.overrides, given.processes)


if __name__ == "__main__":
    main()
