"""Training images for the CT prior: slices in HU made into x in [0, 1].

CT is quantitative, so intensities are varied little: half of the images keep
theirs, the others get a gain of .85 to 1.15. Half keep their own pixels (flips
only), so that the texture of real images is seen without interpolation; a third
are turned by up to 20 degrees and scaled by .8 to 1.25; the rest are made coarser
by 1.25 to 2.5, averaged as a scanner would, for volumes of large voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from invdiff_ct.hu import Window


@dataclass(frozen=True)
class Source:
    """A file of slices (`hu` int16 [slice, y, x], `patient` str) and the patients held out."""

    path: Path
    held_out: Sequence[str] = ()


class Slices:
    """Augmented crops of slices, split by patient.

    Args:
        sources: files; every slice is drawn equally often.
        window: HU range that becomes [0, 1].
    """

    def __init__(self, sources: Sequence[Source], window: Window) -> None:
        kept: list[Tensor] = []
        held: list[Tensor] = []
        for source in sources:
            with np.load(source.path) as file:
                images, patient = torch.from_numpy(window.to_unit(file["hu"])), file["patient"]
            out = torch.from_numpy(np.isin(patient, list(source.held_out)))
            kept.extend(images[~out])
            held.extend(images[out])
        self.train, self.held = kept, held

    def batch(self, size: int, crop: int, generator: torch.Generator) -> Float[Tensor, "size 1 crop crop"]:
        """`size` augmented crops of `crop` x `crop`; nearly empty ones are mostly redrawn."""
        out = []
        for _ in range(size):
            for _ in range(4):
                image = self.train[int(torch.randint(len(self.train), (1,), generator=generator))]
                image = self._crop(image, crop, generator)
                if float((image > 0.25).float().mean()) > 0.1:
                    break
            for axis in (0, 1):
                if torch.rand((), generator=generator) < 0.5:
                    image = image.flip(axis)
            if torch.rand((), generator=generator) < 0.5:
                gain = 0.85 + 0.3 * float(torch.rand((), generator=generator))
                image = (image * gain).clamp_max(1)
            out.append(image)
        return torch.stack(out)[:, None]

    def validation(self) -> Float[Tensor, "images 1 y x"]:
        """The held-out slices, whole."""
        return torch.stack(self.held)[:, None]

    @staticmethod
    def _crop(image: Tensor, crop: int, generator: torch.Generator) -> Tensor:
        kind = float(torch.rand((), generator=generator))
        if kind < 0.5:
            return _window(image, crop, generator)
        if kind < 0.83:
            return _turned(image, crop, generator)
        factor = 1.25 * 2 ** float(torch.rand((), generator=generator))
        side = round(image.shape[-1] / factor)
        coarse = F.interpolate(image[None, None], size=(side, side), mode="bilinear", antialias=True)[0, 0]
        short = max(0, crop - side)
        padded = F.pad(coarse, (short // 2, short - short // 2, short // 2, short - short // 2))
        return _window(padded, crop, generator)


def _window(image: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    """A square of `crop` pixels at a random place."""
    room = image.shape[-1] - crop + 1
    top, left = (int(torch.randint(room, (1,), generator=generator)) for _ in range(2))
    return image[top : top + crop, left : left + crop]


def _turned(image: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    """The same of the image turned by up to 20 degrees and scaled by .8 to 1.25."""
    side = image.shape[-1]
    angle, scale, down, right = (float(torch.rand((), generator=generator)) for _ in range(4))
    angle, scale = math.radians(40 * (angle - 0.5)), 0.8 + 0.45 * scale
    ratio = scale * crop / side
    reach = max(0.0, 1 - ratio)
    cos, sin = ratio * math.cos(angle), ratio * math.sin(angle)
    matrix = torch.tensor(
        [[cos, -sin, reach * (2 * right - 1)], [sin, cos, reach * (2 * down - 1)]], dtype=image.dtype
    )
    grid = F.affine_grid(matrix[None], [1, 1, crop, crop], align_corners=False)
    turned = F.grid_sample(image[None, None], grid, mode="bicubic", align_corners=False)
    return turned[0, 0].clamp(0, 1)
