"""Where a run comes from: versions, plug-ins, hashes of the input and the data."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from invdiff.domain import Problem
from invdiff.registry import plugins


def provenance(
    config: Mapping[str, Any], problems: Sequence[Problem], device: torch.device
) -> dict[str, Any]:
    """Versions, plug-ins, hashes of the input and the weights, seed, device."""
    packages = {}
    for name in ("invdiff", "torch", "numpy", "deepinv", "monai", "hydra-core"):
        try:
            packages[name] = version(name)
        except ModuleNotFoundError:
            packages[name] = "absent"
    used = {}
    for group, key in (("domains", "domain"), ("priors", "prior"), ("samplers", "sampler")):
        plugin = plugins(group)[str(config[key]["name"])]
        used[key] = f"{plugin.name} ({plugin.distribution} {plugin.version}, {plugin.target})"
    return {
        "packages": packages,
        "plugins": used,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seed": config["seed"],
        "input": input_digest(config),
        "measurement": [measurement_digest(problem) for problem in problems],
    }


def input_digest(config: Mapping[str, Any]) -> dict[str, str] | None:
    """Name and SHA-256 of the input file (None for the example or a folder)."""
    path = config["input"].get("path")
    if not path or not Path(path).is_file():
        return None
    return {
        "file": Path(path).name,
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
    }


def measurement_digest(problem: Problem) -> str:
    """SHA-256 of the scaled data, so that a resumed run continues the same problem."""
    data = problem.measurement.y.detach().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()
