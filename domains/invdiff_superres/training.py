"""Training images for the photograph priors: RGB crops in [0, 1].

Half of the crops keep their pixels; the others are made coarser by up to 1.6, averaged as a camera of fewer
pixels would. All are flipped and turned by quarter turns at random, a third get a gain of .7 to 1.1, and one
in eight is made grey (three equal channels), so that luminance images are of the prior's world too.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from invdiff import InputError
from invdiff_superres.baselines import upsampled
from invdiff_superres.operators import LUMA, Separable, matrices


@functools.lru_cache(maxsize=8)
def _operator(height: int, width: int, scale: int) -> Separable:
    rows, columns, kind = matrices({"kernel": "bicubic", "scale": scale, "antialias": True}, height, width)
    return Separable(rows, columns, 3, kind=kind)


class Photographs:
    """Augmented crops of photographs, split by photograph.

    Args:
        path: an .npz with `images` uint8 [crop, y, x, 3] and `ids` str, the photograph of each crop.
        held_out: every n-th photograph is held out for validation and for every choice of settings.
        scale: of the bicubic data that a conditional prior is given, upsampled; None: an unconditional prior.
    """

    def __init__(
        self,
        path: Path,
        held_out: int = 10,
        scale: int | None = None,
    ) -> None:
        if not path.is_file():
            raise InputError(f"there is no training file {path}; set data.root=FOLDER")
        with np.load(path) as file:
            images = torch.from_numpy(file["images"]).permute(0, 3, 1, 2)
            ids = file["ids"]
        names = np.unique(ids)
        out = torch.from_numpy(np.isin(ids, names[::held_out]))
        self.train, self.held = images[~out], images[out]
        if scale is not None:
            self.scale = scale
            self.condition = self._upsampled

    def batch(self, size: int, crop: int, generator: torch.Generator) -> Float[Tensor, "size 3 crop crop"]:
        """`size` augmented crops of `crop` x `crop`."""
        return torch.stack([self._crop(crop, generator) for _ in range(size)])

    def validation(self) -> Float[Tensor, "images 3 y x"]:
        """The held-out crops, whole; one of the four of every photograph."""
        return self.held[::4].float() / 255

    def _upsampled(
        self, clean: Float[Tensor, "batch 3 y x"], generator: torch.Generator
    ) -> Float[Tensor, "batch 3 y x"]:
        """Bicubic down, rounded to 8 bits as files are, and bicubic up."""
        height, width = clean.shape[-2:]
        operator = _operator(height, width, self.scale)
        low = (operator(clean).clamp(0, 1) * 255).round() / 255
        return torch.stack([upsampled(operator, one, "bicubic") for one in low])

    def _crop(self, crop: int, generator: torch.Generator) -> Tensor:
        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        image = self.train[int(torch.randint(len(self.train), (1,), generator=generator))].float() / 255
        side = image.shape[-1]
        room = side / crop
        if uniform(0, 1) < 0.5 and room > 1:
            side = round(side / uniform(1, min(room, 1.6)))
            image = F.interpolate(image[None], size=(side, side), mode="bicubic", antialias=True)[0].clamp(
                0, 1
            )
        top, left = (int(torch.randint(side - crop + 1, (1,), generator=generator)) for _ in range(2))
        image = image[:, top : top + crop, left : left + crop]
        image = image.rot90(int(torch.randint(4, (1,), generator=generator)), (1, 2))
        if uniform(0, 1) < 0.5:
            image = image.flip(2)
        if uniform(0, 1) < 1 / 3:
            image = (image * uniform(0.7, 1.1)).clamp_max(1)
        if uniform(0, 1) < 1 / 8:
            image = (image * image.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True).expand(3, -1, -1)
        return image
