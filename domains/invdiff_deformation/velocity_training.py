"""Training of a velocity prior: registrations of training pairs by the mode, and their negatives.

Every pair of the training split (systole fixed, diastole moving) is registered as `operator=register` does
it, which leaves a stationary velocity each. Its negative generates the inverse and is as good a training
velocity. Patients, not pairs, are held out. What the registration's own prior smooths away is missing from
the data, and so from what is learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from invdiff import Denoising, InputError, TrainSettings
from invdiff_deformation.grid import Grid
from invdiff_deformation.item import registered
from invdiff_deformation.learned import LEVELS, ModeNetwork
from invdiff_deformation.prior import cosine_basis

MOVES = 8  # copies of every velocity from which the scale of the modes is taken
FIELD = 64  # points a side at which velocities are kept
ROTATION, SCALE, SHIFT = 10.0, 0.08, 0.03  # std of what a velocity is turned, scaled and shifted by


def registrations(path: Path) -> tuple[Float[Tensor, "pairs 2 y x"], Bool[np.ndarray, "pairs"]]:
    """Velocities of all training pairs in fractions of the side, and which of them are held out."""
    with np.load(path) as file:
        train = file["split"] == "train"
        fixed, moving, patients = (file[name][train] for name in ("es", "ed", "patient"))
    grid = Grid(fixed.shape[1:], np.eye(4))
    found = []
    for pair in zip(fixed, moving, strict=True):
        item, _, mode = registered(*pair, grid)
        assert mode is not None
        v = item.transform.coordinates.velocity(mode[None])
        found.append(F.interpolate(v, (FIELD, FIELD), mode="area") / fixed.shape[-1])
    return torch.cat(found), np.isin(patients, np.unique(patients)[::10])


class Velocities:
    """Modes of registrations.

    Args:
        path: an .npz with `ed`, `es`, `patient` and `split`, as for DRDM.
        kept: file for the registrations (.safetensors), read where it exists and written where not.
    """

    def __init__(self, path: Path, kept: Path) -> None:
        from safetensors.torch import load_file, save_file

        if not path.is_file():
            raise InputError(f"there is no training file {path}; set data.root=FOLDER")
        if not kept.is_file():
            fields, out = registrations(path)
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_file({"fields": fields.contiguous(), "held_out": torch.from_numpy(out)}, kept)
        data = load_file(kept)
        self.train, self.held = data["fields"][~data["held_out"]], data["fields"][data["held_out"]]
        self.rms = torch.ones(1, 1)

    def bind(self, side: int) -> None:
        """r(k): the rms of each shell of |k| over the training velocities, each moved a few times."""
        generator = torch.Generator().manual_seed(0)
        modes = torch.cat([coefficients(moved(self.train, generator), side) for _ in range(MOVES)])
        axis = torch.arange(side)
        shell = (axis[:, None].square() + axis.square()).double().sqrt().round().long()
        power = modes.double().square().mean(dim=(0, 1)).flatten()
        total = torch.zeros(int(shell.max()) + 1, dtype=torch.float64).index_add(0, shell.flatten(), power)
        self.rms = (total / torch.bincount(shell.flatten())).sqrt()[shell].float()

    def scaled(self, fields: Float[Tensor, "n 2 y x"]) -> Float[Tensor, "n 2 side side"]:
        """z of velocities."""
        return coefficients(fields, len(self.rms)) / self.rms

    def batch(self, size: int, crop: int, generator: torch.Generator) -> Float[Tensor, "size 2 side side"]:
        """Velocities or their negatives, turned, scaled and shifted a little."""
        chosen = torch.randint(len(self.train), (size,), generator=generator)
        sign = 2.0 * torch.randint(0, 2, (size, 1, 1, 1), generator=generator) - 1
        return self.scaled(moved(sign * self.train[chosen], generator))

    def validation(self) -> Float[Tensor, "n 2 side side"]:
        """The held-out velocities, each moved once, always in the same way."""
        return self.scaled(moved(self.held, torch.Generator().manual_seed(0)))

    def objective(self, network: nn.Module, settings: TrainSettings) -> Denoising:
        """The EDM loss of z."""
        if not isinstance(network, ModeNetwork):
            raise InputError("velocities are trained with network.name=velocity_modes")
        self.bind(len(network.rms))
        network.rms.copy_(LEVELS * self.rms)
        return Evaluated(network, self, settings)


class Evaluated(Denoising):
    """The same, with dropout in training alone."""

    def loss(self, stage: Any, generator: torch.Generator) -> Float[Tensor, "batch"]:
        self.network.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            return super().loss(stage, generator)

    def validate(self) -> float:
        self.network.eval()
        return super().validate()

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        self.network.eval()
        super().save(path, config)


def coefficients(fields: Float[Tensor, "n 2 y x"], side: int) -> Float[Tensor, "n 2 side side"]:
    """On cosines of rms 1, the lowest `side` of each axis."""
    basis = cosine_basis(fields.shape[-1], side).to(fields)
    return basis.mT @ fields @ basis / fields.shape[-1]


def moved(fields: Float[Tensor, "n 2 y x"], generator: torch.Generator) -> Float[Tensor, "n 2 y x"]:
    """v'(x) = R v(R^-1 (x - t)) with R a rotation and a scale around the centre; borders continued."""
    angle, scale = torch.randn((2, len(fields)), generator=generator)
    shift = 2 * SHIFT * torch.randn((len(fields), 2, 1), generator=generator)
    angle, scale = math.radians(ROTATION) * angle, (SCALE * scale).exp()
    cosine, sine = angle.cos(), angle.sin()
    turn = torch.stack([cosine, -sine, sine, cosine], dim=1).reshape(-1, 2, 2)  # of (first, second) axis
    back = turn.mT.flip(1, 2) / scale[:, None, None]  # grid_sample has the last axis first
    where = F.affine_grid(torch.cat([back, shift], dim=2), list(fields.shape), align_corners=False)
    there = F.grid_sample(fields, where, padding_mode="border", align_corners=False)
    return scale[:, None, None, None] * torch.einsum("nij,njyx->niyx", turn, there)
