"""Train a prior: the loop, and the EDM loss of denoisers (Karras et al. 2022, arXiv 2206.00364, table 1).

    min_theta  E  (sigma^2 + s^2) / (sigma s)^2  | D_theta(x0 + sigma n; sigma) - x0 |^2,     s = sigma_data
    D = c_skip x + c_out F(c_in x; ln(sigma) / 4)

The noise levels are 85 % lognormal around half of `sigma_data` and 15 %
log-uniform, so that the ends of the range are visited too. Weights are
averaged (EMA). Every random number of a step comes from a generator keyed by
(seed, step): a resumed run is the run that was not interrupted.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invdiff.errors import InputError
from invdiff.prior.checkpoint import card_from, save_prior
from invdiff.prior.network import EDMDenoiser

CARD_LEVELS = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 40.0)
LOSS_LIMIT = 10.0  # above this (far above any trained value) the loss of an image counts by its logarithm


@runtime_checkable
class TrainingData(Protocol):
    """What a domain supplies: clean images in prior units.

    For a conditional prior it has `condition(images, generator)` too: what the network is given beside the
    noisy image, an estimate of the image of the same shape.
    """

    def batch(
        self, size: int, crop: int, generator: torch.Generator
    ) -> Float[Tensor, "size channels crop crop"]:
        """Augmented training images."""

    def validation(self) -> Float[Tensor, "images channels y x"]:
        """Held-out images, without augmentation, always the same."""


@runtime_checkable
class Objective(Protocol):
    """What a training run minimises.

    Data that are not for a denoiser have `objective(network, settings)`, which returns one.
    """

    @property
    def network(self) -> nn.Module:
        """Whose weights are trained."""

    def loss(self, stage: Stage, generator: torch.Generator) -> Float[Tensor, "batch"]:
        """Of the items of one step."""

    def validate(self) -> float:
        """The mean loss on held-out data, with the same random numbers every time."""

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        """Write the prior's file, its card from `config`."""


@dataclass(frozen=True)
class Stage:
    """A share of the training steps at one crop size."""

    share: float
    crop: int
    batch: int


@dataclass(frozen=True)
class TrainSettings:
    """Everything that determines the weights, besides the data."""

    steps: int = 20_000
    sigma_data: float = 0.30
    sigma_min: float = 0.002
    sigma_max: float = 40.0
    shift: float = 0.0
    learning_rate: float = 1e-3
    warmup: int = 100
    flat: float = 0.3
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    threads: int = 1
    precision: str = "bfloat16"
    compile: bool = False
    save_every: int = 1000
    log_every: int = 100
    stages: Sequence[Stage] = (Stage(1.0, 96, 8),)
    network: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = sum(stage.share for stage in self.stages)
        if abs(total - 1) > 1e-6:
            raise InputError(f"the shares of the training stages add up to {total}, not to 1")

    def stage(self, step: int) -> Stage:
        """The stage that `step` belongs to."""
        done = 0.0
        for stage in self.stages:
            done += stage.share
            if step < done * self.steps:
                return stage
        return self.stages[-1]

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, flat, then a cosine to 1 %."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = max(0.0, step / self.steps - self.flat) / (1 - self.flat)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def draw_sigma(size: int, settings: TrainSettings, generator: torch.Generator) -> Float[Tensor, "size"]:
    """Noise levels of one batch."""
    lognormal = 0.5 * settings.sigma_data * torch.exp(1.4 * torch.randn(size, generator=generator))
    ratio = settings.sigma_max / settings.sigma_min
    uniform = settings.sigma_min * ratio ** torch.rand(size, generator=generator)
    pick = torch.rand(size, generator=generator) < 0.15
    sigma = torch.where(pick, uniform, lognormal)
    return sigma.clamp(settings.sigma_min, settings.sigma_max)


def edm_loss(
    denoiser: EDMDenoiser,
    clean: Float[Tensor, "batch channels y x"],
    sigma: Float[Tensor, "batch"],
    noise: Float[Tensor, "batch channels y x"],
    condition: Float[Tensor, "batch channels y x"] | None = None,
) -> Float[Tensor, "batch"]:
    """The weighted squared error of each image, per pixel."""
    scale = denoiser.sigma_data
    level = sigma[:, None, None, None]
    error = denoiser(clean + level * noise, sigma, condition) - clean
    weight = (sigma**2 + scale**2) / (sigma * scale) ** 2
    loss: Tensor = weight * error.square().mean(dim=(1, 2, 3))
    return loss


def given_to(
    data: TrainingData, clean: Float[Tensor, "batch channels y x"], generator: torch.Generator
) -> Float[Tensor, "batch channels y x"] | None:
    """What a conditional network is given beside these images; None for an unconditional one."""
    make = getattr(data, "condition", None)
    return None if make is None else make(clean, generator)


def bounded(loss: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """The loss up to `LOSS_LIMIT`, continued by its logarithm, so that no outlier throws training off."""
    tail = LOSS_LIMIT * (1 + (loss / LOSS_LIMIT).clamp_min(1e-12).log())
    return torch.where(loss < LOSS_LIMIT, loss, tail)


@torch.no_grad()
def validate(denoiser: EDMDenoiser, data: TrainingData, settings: TrainSettings) -> float:
    """EDM loss on held-out images with fixed noise and levels."""
    images = data.validation()
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    for image in torch.split(images, 4):
        sigma = draw_sigma(len(image), settings, generator)
        noise = torch.randn(image.shape, generator=generator)
        given = given_to(data, image, generator)
        total += edm_loss(denoiser, image, sigma, noise, given).double().sum().item()
    return total / len(images)


@torch.no_grad()
def denoising_error(
    denoiser: EDMDenoiser,
    data: TrainingData,
    levels: Sequence[float],
    seed: int = 2,
) -> list[float]:
    """Mean squared error per component of D(x; sigma) on held-out images, by level.

    For the true posterior mean this is the average of `Var(x0 | x_sigma)`,
    which samplers need and cannot get from `D` alone.
    """
    errors = []
    images = data.validation()
    for level in levels:
        generator = torch.Generator().manual_seed(seed)
        total = 0.0
        for image in torch.split(images, 4):
            noise = torch.randn(image.shape, generator=generator)
            sigma = torch.full((len(image),), level)
            given = given_to(data, image, generator)
            error = denoiser(image + level * noise, sigma, given) - image
            total += error.double().square().mean(dim=(1, 2, 3)).sum().item()
        errors.append(total / len(images))
    return errors


class Denoising:
    """The EDM loss of a denoiser of images."""

    def __init__(self, network: nn.Module, data: TrainingData, settings: TrainSettings) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        self.data, self.settings = data, settings
        self.denoiser = EDMDenoiser(self.network, settings.sigma_data, settings.precision, settings.shift)

    def loss(self, stage: Stage, generator: torch.Generator) -> Float[Tensor, "batch"]:
        clean = self.data.batch(stage.batch, stage.crop, generator)
        sigma = draw_sigma(stage.batch, self.settings, generator)
        noise = torch.randn(clean.shape, generator=generator)
        given = given_to(self.data, clean, generator)
        return bounded(edm_loss(self.denoiser, clean, sigma, noise, given))

    def validate(self) -> float:
        return validate(self.denoiser, self.data, self.settings)

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        settings = self.settings
        held_out = self.data.validation()
        levels = tuple(level for level in CARD_LEVELS if settings.sigma_min <= level <= settings.sigma_max)
        errors = denoising_error(self.denoiser, self.data, levels)
        card = card_from(
            config,
            name=str(config["name"]),
            channels=int(held_out.shape[1]),
            std=round(float(held_out.std()), 4),
            mean=round(float(held_out.mean()), 4),
            sigma_range=(settings.sigma_min, settings.sigma_max),
            error_levels=levels,
            error_values=tuple(round(value, 9) for value in errors),
        )
        save_prior(
            path,
            self.network,
            network_settings=config["network"],
            sigma_data=settings.sigma_data,
            shift=settings.shift,
            card=card,
        )


def _save(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_suffix(".part")
    torch.save(dict(content), part)
    os.replace(part, path)


def train(
    objective: Objective,
    settings: TrainSettings,
    folder: Path,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> None:
    """Train the objective's network, checkpointing in `folder`; leaves it with the averaged weights.

    `folder/state.pt` is replaced as a whole every `save_every` steps and
    continued from when present; `folder/log.jsonl` holds one row per
    `log_every` steps (`loss`, `images_per_s`, `cpu_minutes`) and the validation
    loss at each checkpoint. `report` is called with every row.
    """
    torch.set_num_threads(settings.threads)
    folder.mkdir(parents=True, exist_ok=True)
    network = objective.network
    if settings.compile:
        network.compile(dynamic=True)
    averaged = {name: value.detach().clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    first, spent, seen = 0, 0.0, 0
    state_path = folder / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        if state["settings"] != json.dumps(asdict(settings), sort_keys=True):
            raise InputError(
                f"{state_path} was written with other settings; "
                "train into another folder or restore the configuration"
            )
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        averaged = state["averaged"]
        first, spent, seen = state["step"], state["cpu_minutes"], state["images"]
    began = time.process_time()
    losses: list[float] = []
    window = (time.monotonic(), seen)
    with (folder / "log.jsonl").open("a") as log:

        def write(row: dict[str, Any]) -> None:
            log.write(json.dumps(row) + "\n")
            log.flush()
            report(row)

        for step in range(first, settings.steps):
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
            stage = settings.stage(step)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            optimizer.zero_grad(set_to_none=True)
            loss = objective.loss(stage, generator).mean()
            if math.isfinite(loss.item()):
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
                optimizer.step()
            losses.append(loss.item())
            seen += stage.batch
            decay = min(settings.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for name, value in network.state_dict().items():
                    averaged[name].lerp_(value, 1 - decay)
            minutes = spent + (time.process_time() - began) / 60
            if (step + 1) % settings.log_every == 0:
                now = time.monotonic()
                write(
                    {
                        "step": step + 1,
                        "loss": round(sum(losses) / len(losses), 5),
                        "images_per_s": round((seen - window[1]) / (now - window[0]), 2),
                        "cpu_minutes": round(minutes, 3),
                    }
                )
                losses, window = [], (now, seen)
            if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
                live = {name: value.clone() for name, value in network.state_dict().items()}
                network.load_state_dict(averaged)
                validation = objective.validate()
                network.load_state_dict(live)
                write({"step": step + 1, "images": seen, "validation": round(validation, 5)})
                _save(
                    state_path,
                    {
                        "settings": json.dumps(asdict(settings), sort_keys=True),
                        "network": live,
                        "averaged": averaged,
                        "optimizer": optimizer.state_dict(),
                        "step": step + 1,
                        "images": seen,
                        "cpu_minutes": minutes,
                    },
                )
    network.load_state_dict(averaged)
