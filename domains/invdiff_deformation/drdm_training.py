"""Training of DRDM's recovery network: cardiac slices, and a loss between a prediction and the deformation.

    p      = psi_hat o (id + psi_t)            a perfect prediction has p = -psi_t
    L_dist = mean  s^2 |p + psi_t|^2 / (s^2 |psi_t|^2 + 1e-3),            s = 100
    L_ang  = mean  <p~, psi~> / (|p~|^2 |psi~|^2 + 1e-4)^.5,     tildes: times 1e5;  towards -1
    L_reg  = mean ReLU(|forward differences of psi_hat| - 1e-4) + 2 mean ReLU(-det)
    L      = L_dist + L_ang + 10 L_reg

Displacements are fractions of the sides. det is that of id + psi_hat, which folds where it is not positive;
with `published` it is det grad psi_hat alone, and t is uniform on 0 .. T - 1. Else t is on 1 .. T - 1: at 0
there is nothing to recover, recovery never asks, and a thousandth of a side would weigh as much as all the
rest.

Source: Zheng et al., Medical Image Analysis 110 (2026) 103987, and its released code (see `drdm.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from invdiff import InputError, TrainSettings, card_from, save_prior
from invdiff_deformation.drdm import Process, warped_image
from invdiff_deformation.flow import warp
from invdiff_deformation.jacobian import central_gradient, determinant
from invdiff_deformation.recovery_network import RecoveryNetwork, sides_of

LENGTH, DISTANCE_FLOOR = 100.0, 1e-3
ANGLE, ANGLE_FLOOR = 1e5, 1e-4
SLACK, FOLDS, REGULAR = 1e-4, 2.0, 10.0


def distance(
    p: Float[Tensor, "batch d *grid"], psi: Float[Tensor, "batch d *grid"]
) -> Float[Tensor, "batch"]:
    """L_dist of every item; 0 for p = -psi, 1 for p = 0."""
    error = (LENGTH * (p + psi)).square().sum(1)
    size = (LENGTH * psi).square().sum(1)
    return (error / (size + DISTANCE_FLOOR)).flatten(1).mean(1)


def angle(p: Float[Tensor, "batch d *grid"], psi: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch"]:
    """L_ang of every item, the mean cosine; -1 for p = -psi."""
    a, b = ANGLE * p, ANGLE * psi
    lengths = a.square().sum(1) * b.square().sum(1)
    return ((a * b).sum(1) / (lengths + ANGLE_FLOOR).sqrt()).flatten(1).mean(1)


def roughness(found: Float[Tensor, "batch d *grid"], published: bool = False) -> Float[Tensor, "batch"]:
    """L_reg of every item, of a displacement in fractions of the sides."""
    d = found.shape[1]
    steps = [F.relu(found.diff(dim=axis).abs() - SLACK).flatten(1).mean(1) for axis in range(2, 2 + d)]
    if published:
        gradient = central_gradient(found)
        eye = torch.eye(d).to(found).reshape(1, d, d, *[1] * d)
        folding = determinant(gradient - eye)
    else:
        folding = determinant(central_gradient(found * sides_of(found)))
    return torch.stack(steps).mean(0) + FOLDS * F.relu(-folding).flatten(1).mean(1)


def recovery_loss(
    found: Float[Tensor, "batch d *grid"], psi: Float[Tensor, "batch d *grid"], published: bool = False
) -> Float[Tensor, "batch"]:
    """L of every item: a prediction and the target, both in fractions of the sides."""
    p = warp(found, psi * sides_of(psi))
    return distance(p, psi) + angle(p, psi) + REGULAR * roughness(found, published)


def averaged(images: Float[Tensor, "images y x"], size: int | None) -> Float[Tensor, "images side side"]:
    """Square images averaged to a side that divides theirs.

    Raises:
        InputError: for another side.
    """
    side = images.shape[-1]
    if size is None or size == side:
        return images
    if side % size:
        raise InputError(f"data.size is {size}; expected a divisor of {side}, the side of the slices")
    return F.avg_pool2d(images[:, None], side // size)[:, 0]


class CardiacSlices:
    """End-diastolic and end-systolic slices of the training split, in [0, 1].

    Args:
        path: an .npz with `ed` and `es` uint8 [pair, y, x], `patient` and `split` of every pair.
        held_out: every n-th patient is held out for validation and for every choice of settings.
        published: the loss and the levels of the paper's code (see above).
        size: side to which slices are averaged; None: their own.
    """

    def __init__(
        self, path: Path, held_out: int = 10, published: bool = False, size: int | None = None
    ) -> None:
        if not path.is_file():
            raise InputError(f"there is no training file {path}; set data.root=FOLDER")
        with np.load(path) as file:
            train = file["split"] == "train"
            patients = file["patient"][train]
            phases = [torch.from_numpy(file[phase][train]) for phase in ("ed", "es")]
        names = np.unique(patients)
        out = torch.from_numpy(np.isin(patients, names[::held_out]))
        whole = [averaged(images.float() / 255, size) for images in phases]
        self.train = torch.cat([images[~out] for images in whole])
        self.held = torch.cat([images[out] for images in whole])
        self.published = published

    def batch(self, size: int, crop: int, generator: torch.Generator) -> Float[Tensor, "size 1 crop crop"]:
        """`size` augmented slices, whole."""
        side = self.train.shape[-1]
        if crop != side:
            raise InputError(f"the training stage has crop {crop}; slices are used whole: set crop to {side}")
        return torch.stack([self._slice(generator) for _ in range(size)])

    def validation(self) -> Float[Tensor, "images 1 y x"]:
        """The held-out slices, every third of them."""
        return self.held[::3, None]

    def objective(self, network: nn.Module, settings: TrainSettings) -> Recovery:
        """What `invdiff train` minimises."""
        if not isinstance(network, RecoveryNetwork):
            raise InputError("deformations are trained with network.name=drdm")
        return Recovery(network, self, settings)

    def _slice(self, generator: torch.Generator) -> Float[Tensor, "1 y x"]:
        """Its darkest and brightest values cut off, with a gain and an offset.

        Slices are neither flipped nor turned: how a chest lies is part of what the network knows.
        """
        chosen = int(torch.randint(len(self.train), (1,), generator=generator))
        image = self.train[chosen]
        low, high = (0.2 * torch.rand(2, generator=generator)).tolist()
        gain, offset = (0.1 * torch.randn(2, generator=generator)).tolist()
        return ((image - low).clamp(0, 1 - high - low) * (1 + gain) + offset)[None]


class Recovery:
    """The loss, its validation, and the file that training ends with."""

    def __init__(self, network: RecoveryNetwork, data: CardiacSlices, settings: TrainSettings) -> None:
        flat = torch.channels_last if network.dimensions == 2 else torch.channels_last_3d
        self.network = network.to(memory_format=flat)
        self.data, self.settings = data, settings
        self.process = Process(dimensions=network.dimensions, **network.process)
        self.lowest = 0 if data.published else 1

    def of(
        self, clean: Float[Tensor, "batch 1 *grid"], t: Int[Tensor, "batch"], generator: torch.Generator
    ) -> Float[Tensor, "batch"]:
        """L of images deformed to the levels t."""
        shape = tuple(clean.shape[2:])
        drawn = [self.process.draw(int(level), shape, generator) for level in t]
        phi, psi = (torch.stack(fields) for fields in zip(*drawn, strict=True))
        seen = warped_image(clean, phi)
        half = self.settings.precision == "bfloat16"
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=half):
            found = self.network(seen, t)
        return recovery_loss(found, psi / sides_of(psi), self.data.published)

    def loss(self, stage: Any, generator: torch.Generator) -> Float[Tensor, "batch"]:
        clean = self.data.batch(stage.batch, stage.crop, generator)
        t = torch.randint(self.lowest, self.network.steps, (len(clean),), generator=generator)
        return self.of(clean, t, generator)

    @torch.no_grad()
    def validate(self) -> float:
        """The mean loss at levels that are spread evenly over all."""
        images = self.data.validation()
        generator = torch.Generator().manual_seed(1)
        levels = torch.linspace(1, self.network.steps - 1, len(images)).round().long()
        parts = zip(images.split(8), levels.split(8), strict=True)
        return float(torch.cat([self.of(part, t, generator) for part, t in parts]).double().mean())

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        held = self.data.validation()
        card = card_from(
            config,
            name=str(config["name"]),
            channels=1,
            shape=tuple(held.shape[2:]),
            mean=round(float(held.mean()), 4),
            std=round(float(held.std()), 4),
        )
        save_prior(path, self.network, network_settings=config["network"], sigma_data=None, card=card)
