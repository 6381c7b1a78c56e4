"""The recovery network of DRDM: from a deformed image alone to the field that undoes the last part of it.

    u1 = F(I, t),    u2 = F(I o (id + u1), t),    u = u2 + u1 o (id + u2)        (two passes of one F)

F is a U-Net of residual blocks with dilations 1 and 3, instance norms on its way down and none on its way up.
The embedding of the integer t is added to what enters a level, and multiplies what enters the bottleneck. Its
output is a displacement in fractions of the image's sides, kept within one voxel of a side.

Source: Zheng et al., Medical Image Analysis 110 (2026) 103987; the layers are those of the released network
(jianqingzheng/def_diff_rec, Apache-2.0), 443 435 parameters in two dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from invdiff import InputError
from invdiff_deformation.flow import compose, warp

WIDTHS = (10, 20, 40)
PASSES, EMBEDDED, SLOPE = 2, 100, 1e-6


def sinusoids(steps: int, features: int = EMBEDDED) -> Float[Tensor, "steps features"]:
    """`sin, cos(t / 10000^(4 j / features))` in turn, j = 0, 1, ...; not trained."""
    rates = 10_000.0 ** (-4 * torch.arange(features // 2) / features)
    angles = torch.arange(steps)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def sides_of(field: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "axes *ones"]:
    """Voxels along each axis: what turns fractions of the sides into voxels."""
    return field.new_tensor(field.shape[2:]).reshape(-1, *[1] * (field.ndim - 2))


class Block(nn.Module):
    """A convolution, an instance norm or none, and two dilated convolutions over which it is added."""

    def __init__(self, dimensions: int, inward: int, outward: int, normed: bool) -> None:
        super().__init__()
        convolution = getattr(nn, f"Conv{dimensions}d")
        self.first = convolution(inward, outward, 3, padding=1)
        norm = getattr(nn, f"InstanceNorm{dimensions}d")
        self.norm = norm(outward, affine=True) if normed else nn.Identity()
        self.dilated = nn.ModuleList(
            convolution(outward, outward, 3, padding=rate, dilation=rate) for rate in (1, 3)
        )

    def forward(self, x: Float[Tensor, "batch inward *grid"]) -> Float[Tensor, "batch outward *grid"]:
        x = self.norm(self.first(x))
        out = x
        for k, convolution in enumerate(self.dilated):
            out = convolution(F.leaky_relu(out, SLOPE, inplace=k > 0))
        return F.leaky_relu(out + x, SLOPE, inplace=True)


def _blocks(dimensions: int, widths: Sequence[int], normed: bool) -> nn.Sequential:
    return nn.Sequential(*(Block(dimensions, a, b, normed) for a, b in pairwise(widths)))


def _embedding(outward: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(EMBEDDED, outward), nn.ReLU(), nn.Linear(outward, outward))


class RecoveryNetwork(nn.Module):
    """The network, and which deformations it recovers from.

    Args:
        dimensions: 2 or 3.
        widths: of the levels, from the finest on.
        steps: T, the number of levels of deformation that it knows.
        process: settings of the forward process whose deformations it was trained on (see `drdm.Process`).
        scale: of the output. The fields are thousandths of a side, and steps of an optimiser are not: with
            .01 training converges several times faster. The released network has 1.
    """

    table: Tensor

    def __init__(
        self,
        dimensions: int = 2,
        widths: Sequence[int] = WIDTHS,
        steps: int = 80,
        process: Mapping[str, Any] | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if dimensions not in (2, 3):
            raise InputError(f"network.dimensions is {dimensions}; expected 2 or 3")
        self.dimensions, self.steps, self.process = dimensions, steps, dict(process or {})
        self.scale = float(scale)
        w = [int(width) for width in widths]
        convolution = getattr(nn, f"Conv{dimensions}d")
        transposed = getattr(nn, f"ConvTranspose{dimensions}d")
        self.register_buffer("table", sinusoids(steps), persistent=False)
        entering = [1, *w[:-1]]
        leaving = [w[0], *w[:-1]]
        self.down = nn.ModuleList(
            _blocks(dimensions, [a, b, b, b], normed=True) for a, b in zip(entering, w, strict=True)
        )
        self.shrink = nn.ModuleList(convolution(b, b, 4, stride=2, padding=1) for b in w)
        self.bottom = _blocks(dimensions, [w[-1], leaving[-1], leaving[-1], w[-1]], normed=True)
        self.grow = nn.ModuleList(transposed(b, b, 4, stride=2, padding=1) for b in reversed(w))
        self.up = nn.ModuleList(
            _blocks(dimensions, [2 * b, b, a, a], normed=False)
            for a, b in zip(reversed(leaving), reversed(w), strict=True)
        )
        self.out = convolution(w[0], dimensions, 3, padding=1)
        nn.init.normal_(self.out.weight, std=1e-3 / self.scale)  # it starts from fields about as large as psi
        nn.init.zeros_(self.out.bias)
        times = [*entering, w[-1], *(2 * b for b in reversed(w))]
        self.times = nn.ModuleList(_embedding(width) for width in times)

    def forward(
        self, image: Float[Tensor, "batch 1 *grid"], t: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch d *grid"]:
        """The displacement of `psi_t^-1` in fractions of the sides, of deformed images of level t."""
        short = 2 ** len(self.down)
        if image.ndim != 2 + self.dimensions or any(side % short for side in image.shape[2:]):
            raise InputError(
                f"the recovery network was given an image of {tuple(image.shape[2:])}; expected "
                f"{self.dimensions} axes, each a multiple of {short}"
            )
        embedded = self.table[t]
        times = [made(embedded).reshape(len(t), -1, *[1] * self.dimensions) for made in self.times]
        sides = sides_of(image)
        u = self._kept(self.once(image, times), sides)
        for _ in range(PASSES - 1):
            u = compose(u, self._kept(self.once(warp(image, u, padding="zeros"), times), sides))
        return u / sides

    def _kept(self, found: Float[Tensor, "batch d *grid"], sides: Tensor) -> Float[Tensor, "batch d *grid"]:
        """Fractions as voxels, within n - 1 of n."""
        voxels = found.float() * (self.scale * sides)
        return torch.minimum(torch.maximum(voxels, 1 - sides), sides - 1)

    def once(
        self, image: Float[Tensor, "batch 1 *grid"], times: Sequence[Tensor]
    ) -> Float[Tensor, "batch d *grid"]:
        """One pass, in fractions and unclamped."""
        levels, x = len(self.down), image
        kept = []
        for blocks, shrink, time in zip(self.down, self.shrink, times[:levels], strict=True):
            x = blocks(x + time)
            kept.append(x)
            x = shrink(x)
        x = self.bottom(x * times[levels])
        for blocks, grow, time in zip(self.up, self.grow, times[levels + 1 :], strict=True):
            x = blocks(torch.cat([kept.pop(), grow(x)], dim=1) + time)
        found: Tensor = self.out(x)
        return found
