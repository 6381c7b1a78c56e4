"""`invdiff train`: a training configuration to a checkpoint folder and a prior file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from invdiff.config import refuse_targets
from invdiff.errors import InputError
from invdiff.prior.checkpoint import fill, make_network, read_weights
from invdiff.prior.training import Denoising, Objective, Stage, TrainSettings, train
from invdiff.registry import construct, load


def read_config(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The YAML with `key=value` overrides, as plain data."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not path.is_file():
        raise InputError(f"there is no training configuration {path}")
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(overrides))
        loaded = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{path.name} does not compose: {error}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{path.name} is not a mapping")
    config = {str(key): value for key, value in loaded.items()}
    refuse_targets(config)
    for key in ("domain", "network", "training", "data", "out", "name"):
        if key not in config:
            raise InputError(f"{path.name} lacks {key!r}")
    return config


def settings_of(config: Mapping[str, Any]) -> TrainSettings:
    """The training settings of a configuration."""
    values = dict(config["training"])
    values["stages"] = tuple(
        Stage(**stage) for stage in values.get("stages", [{"share": 1.0, "crop": 96, "batch": 8}])
    )
    values["network"] = {key: value for key, value in config["network"].items() if key != "name"}
    return construct(TrainSettings, values, set(), "training")


def train_from_config(path: Path, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Train, then write `<out>/<name>.safetensors` with its card; returns that path.

    `start`, a file of weights of the same network, is where a refinement begins.
    """
    config = read_config(path, overrides)
    settings = settings_of(config)
    domain = load("domains", str(config["domain"]))()
    maker = getattr(domain, "training_data", None)
    if maker is None:
        raise InputError(f"domain {config['domain']!r} has no training data")
    data = maker(config["data"])
    folder = Path(str(config["out"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = make_network(config["network"])
    if config.get("start"):
        path = Path(str(config["start"]))
        fill(network, read_weights(path), path.name).train().requires_grad_(True)
    total = settings.steps

    def report(row: dict[str, Any]) -> None:
        if "loss" in row:
            say(
                f"step {row['step']}/{total}  loss {row['loss']:.4f}  "
                f"{row['images_per_s']:.1f} images/s  {row['cpu_minutes']:.1f} CPU-min"
            )
        else:
            say(f"step {row['step']}/{total}  validation loss {row['validation']:.4f}  (checkpoint)")

    make = getattr(data, "objective", None)
    objective: Objective = make(network, settings) if make else Denoising(network, data, settings)
    train(objective, settings, folder, report)
    written = folder / f"{config['name']}.safetensors"
    objective.save(written, config)
    say(f"wrote {written}")
    return written
