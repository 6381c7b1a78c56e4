"""Training images for MR priors: magnitude slices made into what a scanner's image is.

An MR image is complex. From a magnitude slice m the network is shown, half of
the time, m itself and half of the time `m cos(phase)`, the signed real part
under a random phase: a random constant and low-order polynomial, a smooth
random field with local detail, and a phase offset of the brightest tissue (fat
is off-resonance). So one network serves magnitude, real and imaginary parts.
Contrast may be varied by a power for half of the images, receive shading
multiplies by the exponential of a smooth field, and intensity is scaled
by .6 to 1.3, since the data scale of a scan is known only that well.
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


@dataclass(frozen=True)
class Source:
    """One file of magnitude slices (`images` uint8, `subject` int) and its share of the draws."""

    path: Path
    share: float
    held_out: Sequence[int] = ()


def _uniform(low: float, high: float, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def smooth_field(
    size: int, side: int, nodes: int, generator: torch.Generator
) -> Float[Tensor, "size 1 side side"]:
    """A random field of unit node variance, bicubic between `nodes` x `nodes` points."""
    coarse = torch.randn(size, 1, nodes, nodes, generator=generator)
    return F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)


def random_phase(
    magnitude: Float[Tensor, "size 1 side side"], generator: torch.Generator
) -> Float[Tensor, "size 1 side side"]:
    """Phase in radians: constant, linear and quadratic terms, local detail, bright-tissue offset."""
    size, side = magnitude.shape[0], magnitude.shape[-1]
    axis = torch.linspace(-1, 1, side)
    u, v = axis[:, None], axis[None, :]
    terms = torch.stack([torch.ones(side, side), u + 0 * v, v + 0 * u, u * v, u**2 + 0 * v, v**2 + 0 * u])
    reach = torch.tensor([math.pi, 1.5, 1.5, 0.7, 0.7, 0.7])
    weights = _uniform(-1, 1, (size, 6), generator) * reach
    phase = torch.einsum("bk,kyx->byx", weights, terms)[:, None]
    detail = _uniform(0, 0.5, (size, 1, 1, 1), generator)
    phase = phase + detail * smooth_field(size, side, max(3, side // 12), generator)
    offset = _uniform(-2.5, 2.5, (size, 1, 1, 1), generator)
    offset = offset * (torch.rand(size, 1, 1, 1, generator=generator) < 0.5)
    threshold = _uniform(0.6, 0.9, (size, 1, 1, 1), generator)
    bright = torch.sigmoid((F.avg_pool2d(magnitude, 3, 1, 1) - threshold) * 20)
    return phase + offset * bright


class MagnitudeSlices:
    """Augmented crops from files of magnitude slices, split by subject.

    Args:
        sources: files with their shares and the subjects held out for validation.
        validation_images: how many held-out slices validate (evenly spaced).
        contrast: largest |log| of the power that half of the magnitudes are raised to.
    """

    def __init__(self, sources: Sequence[Source], validation_images: int = 24, contrast: float = 0.0) -> None:
        self.contrast = contrast
        self.shares = torch.tensor([source.share for source in sources])
        self.train: list[Tensor] = []
        held: list[Tensor] = []
        for source in sources:
            with np.load(source.path) as file:
                images, subject = torch.from_numpy(file["images"]), file["subject"]
            out = torch.from_numpy(np.isin(subject, list(source.held_out)))
            content = (images > 25).float().mean(dim=(1, 2)) > 0.08  # nearly empty slices teach nothing
            self.train.append(images[~out & content])
            if bool(out.any()):
                chosen = images[out & content]
                count = max(1, round(validation_images * source.share))
                picks = torch.linspace(0, len(chosen) - 1, min(count, len(chosen))).long()
                held.append(chosen[picks])
        self._held = held

    def batch(self, size: int, crop: int, generator: torch.Generator) -> Float[Tensor, "size 1 crop crop"]:
        """`size` augmented crops of `crop` x `crop`."""
        wide = math.ceil(crop * 1.45) // 2 * 2  # room for a rotated, shrunk crop
        which = torch.multinomial(self.shares, size, replacement=True, generator=generator)
        raw = []
        for index in which.tolist():
            images = self.train[index]
            for _ in range(4):
                pick = int(torch.randint(len(images), (1,), generator=generator))
                window = self._window(images[pick], wide, generator)
                if float((window > 25).float().mean()) > 0.15:
                    break
            raw.append(window)
        magnitude = torch.stack(raw)[:, None].float() / 255
        magnitude = self._geometry(magnitude, crop, generator)
        if self.contrast > 0:
            power = _uniform(-self.contrast, self.contrast, (size, 1, 1, 1), generator).exp()
            power = torch.where(torch.rand(size, 1, 1, 1, generator=generator) < 0.5, power, 1.0)
            magnitude = magnitude.pow(power)
        shading = _uniform(0, 0.4, (size, 1, 1, 1), generator) * smooth_field(size, crop, 3, generator)
        shading = shading * (torch.rand(size, 1, 1, 1, generator=generator) < 0.6)
        gain = _uniform(0.6, 1.3, (size, 1, 1, 1), generator)
        magnitude = magnitude * gain * shading.clamp(-0.9, 0.9).exp()
        signed = torch.rand(size, 1, 1, 1, generator=generator) < 0.5
        phase = random_phase(magnitude, generator)
        return torch.where(signed, magnitude * phase.cos(), magnitude)

    def validation(self) -> Float[Tensor, "images 1 y x"]:
        """Held-out slices, half magnitude and half signed real part, cropped to 128."""
        generator = torch.Generator().manual_seed(0)
        images = []
        for part in self._held:
            for slice_ in part:
                top, left = (slice_.shape[0] - 128) // 2, (slice_.shape[1] - 128) // 2
                images.append(slice_[top : top + 128, left : left + 128].float() / 255)
        magnitude = torch.stack(images)[:, None]
        phase = random_phase(magnitude, generator)
        odd = (torch.arange(len(magnitude)) % 2 == 1)[:, None, None, None]
        return torch.where(odd, magnitude * phase.cos(), magnitude)

    @staticmethod
    def _window(image: Tensor, side: int, generator: torch.Generator) -> Tensor:
        for axis in (0, 1):
            length = image.shape[axis]
            if length < side:
                before = (side - length) // 2
                pads = [0, 0, 0, 0]
                pads[2 * (1 - axis)], pads[2 * (1 - axis) + 1] = before, side - length - before
                image = F.pad(image, pads)
            else:
                start = int(torch.randint(length - side + 1, (1,), generator=generator))
                image = image.narrow(axis, start, side)
        return image

    @staticmethod
    def _geometry(wide: Tensor, crop: int, generator: torch.Generator) -> Tensor:
        # Half of the batch keeps its own pixels (flips and quarter turns only), so that
        # the texture of real images is seen without interpolation.
        size, side = wide.shape[0], wide.shape[-1]
        angle = _uniform(-math.pi, math.pi, (size,), generator)
        scale = _uniform(0.8, 1.25, (size,), generator) * crop / side
        flip = torch.where(torch.rand(size, generator=generator) < 0.5, -1.0, 1.0)
        cos, sin = scale * angle.cos(), scale * angle.sin()
        matrix = torch.stack([flip * cos, -sin, 0 * cos, flip * sin, cos, 0 * cos], 1).reshape(size, 2, 3)
        keep = torch.rand(size, generator=generator) < 0.5
        out = wide.new_empty(size, 1, crop, crop)
        if not bool(keep.all()):
            grid = F.affine_grid(matrix[~keep], [int((~keep).sum()), 1, crop, crop], align_corners=False)
            out[~keep] = F.grid_sample(wide[~keep], grid, mode="bicubic", align_corners=False).clamp_min(0)
        start = (side - crop) // 2
        quarter = torch.randint(4, (size,), generator=generator)
        for index in keep.nonzero().flatten().tolist():
            square = wide[index, :, start : start + crop, start : start + crop]
            square = torch.rot90(square, int(quarter[index]), (1, 2))
            out[index] = square.flip(2) if flip[index] < 0 else square
        return out
