"""A small fully convolutional denoising backbone for CPUs.

Pixel-unshuffle by two, then a U-Net of plain residual convolutions with FiLM
noise conditioning and no normalisation. On two CPU cores this runs two to four
times as fast per image as a U-Net with group normalisation at full resolution
(Perez et al. 2018 for FiLM, arXiv 1709.07871; Shi et al. 2016 for the
unshuffle, arXiv 1609.05158). On a GPU, MONAI's `DiffusionModelUNet` is the
natural alternative and loads through the same prior interface.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class NoiseEmbedding(nn.Module):
    """Fourier features of `c_noise = ln(sigma) / 4`, then two linear layers."""

    def __init__(self, features: int, width: int, top_frequency: float = 16.0) -> None:
        super().__init__()
        frequencies = torch.logspace(0.0, math.log10(top_frequency), features // 2)
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, noise_label: Float[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
        angles = noise_label[:, None] * self.frequencies
        embedded: Tensor = self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))
        return embedded


class ResidualBlock(nn.Module):
    """x + conv(silu(FiLM(conv(silu(x))))), the last convolution starting at zero."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(
        self, x: Float[Tensor, "batch channels y x"], noise: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch channels y x"]:
        scale, shift = self.film(noise)[:, :, None, None].chunk(2, dim=1)
        h = self.first(F.silu(x))
        out: Tensor = x + self.second(F.silu(h * (1 + scale) + shift))
        return out


class UnshuffleUNet(nn.Module):
    """`F(x, c_noise)` of shape [batch, channels, y, x] for any image size.

    Sizes that are not multiples of `2 ** len(widths)` are reflected at the far
    edges and cropped back, so the network itself is translation equivariant up
    to its stride. `given` further channels of the input are what a conditional network knows.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (64, 96, 128, 160),
        blocks: int = 2,
        noise_width: int = 192,
        given: int = 0,
    ) -> None:
        super().__init__()
        self.stride = 2 ** len(widths)
        self.embed = NoiseEmbedding(32, noise_width)
        self.enter = nn.Conv2d(4 * (channels + given), widths[0], 3, padding=1)

        def stage(width: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(width, noise_width) for _ in range(blocks))

        pairs = list(itertools.pairwise(widths))
        self.encoder = nn.ModuleList(stage(width) for width in widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.middle = stage(widths[-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in reversed(pairs)
        )
        self.decoder = nn.ModuleList(stage(width) for width in reversed(widths[:-1]))
        self.leave = nn.Conv2d(widths[0], 4 * channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(
        self, x: Float[Tensor, "batch given y x"], noise_label: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch channels y x"]:
        height, width = x.shape[-2:]
        pad_y, pad_x = -height % self.stride, -width % self.stride
        if pad_y or pad_x:
            mode = "reflect" if pad_y < height and pad_x < width else "replicate"
            x = F.pad(x, (0, pad_x, 0, pad_y), mode=mode)
        noise = self.embed(noise_label)
        h = self.enter(F.pixel_unshuffle(x, 2))
        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, noise)
            skips.append(h)
            h = down(h)
        for block in self.middle:
            h = block(h, noise)
        for up, blocks in zip(self.up, self.decoder, strict=True):
            h = up(h) + skips.pop()
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, noise)
        out = F.pixel_shuffle(self.leave(F.silu(h)), 2)
        return out[..., :height, :width]
