"""A network as a prior of velocities of planes: a denoiser over scaled modes.

    v_c(x) = side sum_k r(k) z_c(k) phi_k(x),    k in a box of the lowest modes, phi_k of rms 1

phi_k are the cosines of `prior.Modes`, r(k) is the rms of mode k over the training velocities, in fractions
of the side, so that every coordinate of z has a variance near 1 and the Gaussian of the same spectrum is
N(0, I). With sigma_data = 1 EDM preconditioning is D(z; sigma) = z / (1 + sigma^2) + c_out F, the
Gaussian's denoiser and what the network knows beyond it: where hearts contract, how the modes go together.

Source: preconditioning, Karras et al. 2022 (arXiv 2206.00364).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from invdiff import GaussianPrior, InputError, NetworkPrior, PriorCard, Sigma, load_safetensors
from invdiff_deformation.grid import Grid
from invdiff_deformation.prior import Modes, Spectrum

CARDIAC = Path(__file__).resolve().parent / "weights/velocity_cardiac.safetensors"
ASPECT = 1.05  # largest ratio of the sides
LEVELS = 1000.0  # r(k) is kept in thousandths of the side, for half precision


class ModeNetwork(nn.Module):
    """F(z, c_noise): residual layers on all coordinates together, the last one starting at zero.

    Args:
        side: modes of each axis.
        width, blocks, dropout: of the residual layers.
    """

    def __init__(self, side: int = 20, width: int = 512, blocks: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        size = 2 * side**2
        self.enter, self.leave = nn.Linear(size, width), nn.Linear(width, size)
        self.level = nn.Sequential(nn.Linear(16, 128), nn.SiLU())
        self.films = nn.ModuleList(nn.Linear(128, 2 * width) for _ in range(blocks))
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.dropout = dropout
        self.rms: Tensor
        self.register_buffer("rms", torch.ones(side, side))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, z: Float[Tensor, "batch 2 side side"], label: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch 2 side side"]:
        angles = label[:, None] * torch.logspace(0, 1, 8, device=label.device)
        level = self.level(torch.cat([angles.sin(), angles.cos()], dim=1))
        h = self.enter(z.flatten(1))
        for film, first, second in zip(self.films, self.first, self.second, strict=True):
            scale, shift = film(level).chunk(2, dim=1)
            inner = F.layer_norm(h, h.shape[1:]) * (1 + scale) + shift
            inner = F.dropout(F.silu(first(inner)), self.dropout, self.training)
            h = h + second(inner)
        out: Tensor = self.leave(F.silu(h)).reshape(z.shape)
        return out


class BoxModes(Modes):
    """Coordinates z [2, side, side] on a plane; r(k) in fractions of the side."""

    def __init__(self, rms: Float[Tensor, "side side"], grid: Grid) -> None:
        if grid.dimensions != 2:
            raise InputError(
                "prior velocity_cardiac is of planes and the fixed image is a volume; use velocity"
            )
        lengths = [n * h for n, h in zip(grid.shape, grid.spacing, strict=True)]
        side = len(rms)
        if max(lengths) > ASPECT * min(lengths) or min(grid.shape) < side:
            raise InputError(
                f"prior velocity_cardiac knows square planes of at least {side} voxels a side and the fixed "
                f"image has {' x '.join(f'{n:.4g}' for n in lengths)} mm; crop it, or use prior=velocity"
            )
        self.control, self.spectrum = 1, Spectrum(control=1)
        self.fixed = self._grid = grid
        self.box, self.count, self.affine = (side, side), side**2, 0
        self.index = torch.arange(side**2)
        self.std = math.sqrt(math.prod(lengths) * math.prod(grid.shape)) * rms.double().flatten()
        self._bases = {}

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2, *self.box)

    def velocity(self, z: Float[Tensor, "batch 2 side side"]) -> Float[Tensor, "batch d *control"]:
        return super().velocity(z.flatten(1))

    def matrix_at(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n d event"]:
        raise InputError("prior velocity_cardiac has no closed form for points alone; use prior=velocity")

    @property
    def seen(self) -> Float[Tensor, "2 side side"]:
        return self.std.square().repeat(2).reshape(self.event_shape).float()

    @property
    def prior(self) -> GaussianPrior:
        """The Gaussian of the same spectrum, with which the first registration is made."""
        return GaussianPrior.diagonal(torch.zeros(self.event_shape), torch.ones(self.event_shape))


class LearnedVelocity:
    """A denoiser of z with the modes it was trained on; `coordinates` binds it to a grid."""

    def __init__(self, inner: NetworkPrior, rms: Float[Tensor, "side side"]) -> None:
        self._network, self.rms = inner, rms

    @property
    def card(self) -> PriorCard:
        return self._network.card

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(2, side, side): of z."""
        return (2, *self.rms.shape)

    def denoise(self, x: Float[Tensor, "batch *event"], sigma: Sigma) -> Float[Tensor, "batch *event"]:
        return self._network.denoise(x, sigma)

    def coordinates(self, grid: Grid) -> BoxModes:
        """The states on a grid of a plane."""
        return BoxModes(self.rms, grid)


def velocity_network(settings: Mapping[str, Any]) -> LearnedVelocity:
    """Settings: `path` (None: the bundled one of cardiac slices) and those of `load_safetensors`.

    Raises:
        InputError: for a file that holds another network.
    """
    path = settings.get("path")
    inner = load_safetensors({**settings, "path": CARDIAC if path is None else Path(str(path))})
    network = inner.network
    if not isinstance(network, ModeNetwork):
        raise InputError(f"prior {inner.card.name!r} holds no network of velocities (velocity_modes)")
    return LearnedVelocity(inner, network.rms / LEVELS)
