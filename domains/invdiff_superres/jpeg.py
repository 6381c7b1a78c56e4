"""JPEG as part of the forward model: cosine transform of 8 x 8 blocks, divided by the quantisation steps.

    y_c = round( C_h (m_c . W x) C_w^T / q_c ),      c = luminance, blue, red (ITU-R BT.601, full range)

C is the orthonormal transform (ITU-T T.81) with the border repeated to whole blocks, after averaging 2 x 2
pixels where the file subsamples its chroma. In units of the steps the rounding has standard deviation
1 / sqrt(12): that is the Gaussian noise model here, and `noise=quantised noise.step=1` the exact one for
files that subsample nothing. The coefficients of a file are found again from its decoded planes; where chroma
is subsampled its decoder has smoothed it, and one grey level is added to what is known of it.
"""

from __future__ import annotations

import copy
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import InputError, LinearOperator
from invdiff_superres.operators import Separable

COLOURS = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)  # rows: Y, Cb - 128, Cr - 128 of (R, G, B)
STD = 12**-0.5  # of rounding, in steps
SMOOTHED = 1.0  # std of what smoothing subsampled chroma does to a coefficient, in grey levels


@dataclass(frozen=True)
class Coefficients:
    """What a JPEG file holds.

    Attributes:
        planes: quantised coefficients over their steps, whole numbers, by plane in blocks as an image.
        steps: quantisation steps of an 8 x 8 block, by plane, in grey levels of 0 to 255.
        size: height and width of the picture.
        shrink: (vertical, horizontal) subsampling by plane.
    """

    planes: tuple[Float[np.ndarray, "rows columns"], ...]
    steps: tuple[Float[np.ndarray, "8 8"], ...]
    size: tuple[int, int]
    shrink: tuple[tuple[int, int], ...]


def cosine() -> Float[np.ndarray, "8 8"]:
    """The orthonormal transform: rows are frequencies."""
    k, n = np.arange(8)[:, None], np.arange(8)[None]
    rows = np.cos(np.pi * (2 * n + 1) * k / 16) / 2
    rows[0] /= math.sqrt(2)
    return np.asarray(rows)


def blocks(size: int, shrink: int) -> Float[np.ndarray, "coefficients size"]:
    """Average `shrink` samples, repeat the last to whole blocks, transform each."""
    short = -(-size // shrink)
    average = np.zeros((short, size))
    for index in range(short):
        for part in range(shrink):
            average[index, min(index * shrink + part, size - 1)] += 1 / shrink
    whole = -(-short // 8) * 8
    padded = average[np.minimum(np.arange(whole), short - 1)]
    return np.kron(np.eye(whole // 8), cosine()) @ padded


def read(source: Path | bytes, name: str) -> Coefficients:
    """The coefficients of a JPEG file.

    Raises:
        InputError: for files that are no baseline JPEG of one or three planes.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.format != "JPEG" or image.mode not in ("L", "RGB"):
                raise InputError(
                    f"{name} is {image.format} of mode {image.mode}; expected a grey or RGB JPEG"
                )
            tables = {
                key: np.array(table, dtype=float).reshape(8, 8) for key, table in image.quantization.items()
            }
            layers = list(image.layer)
            image.draft("YCbCr" if image.mode == "RGB" else "L", image.size)
            values = np.asarray(image, dtype=float)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} cannot be read as JPEG ({type(error).__name__}); the file is damaged"
        ) from None
    values = values[..., None] if values.ndim == 2 else values
    tallest, widest = max(layer[2] for layer in layers), max(layer[1] for layer in layers)
    planes, steps, shrinks = [], [], []
    for plane, (_, horizontal, vertical, table) in zip(np.moveaxis(values, 2, 0), layers, strict=True):
        shrink = (tallest // vertical, widest // horizontal)
        rows, columns = (blocks(size, by) for size, by in zip(plane.shape, shrink, strict=True))
        step = tables[table]
        tiled = np.tile(step, (len(rows) // 8, len(columns) // 8))
        planes.append(np.rint(rows @ (plane - 128) @ columns.T / tiled))
        steps.append(step)
        shrinks.append(shrink)
    return Coefficients(tuple(planes), tuple(steps), values.shape[:2], tuple(shrinks))


def encode(image: Float[np.ndarray, "channel y x"], quality: int) -> bytes:
    """A JPEG of that quality of an image in [0, 1], by the usual encoder.

    Raises:
        InputError: for a quality outside 1 to 100.
    """
    from PIL import Image

    if not 1 <= quality <= 100:
        raise InputError(f"operator.jpeg is {quality}; expected a quality from 1 to 100")
    shown = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    shown = shown[0] if len(shown) == 1 else np.moveaxis(shown, 0, 2)
    buffer = io.BytesIO()
    Image.fromarray(shown).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode(content: bytes) -> Float[np.ndarray, "channel y x"]:
    """What a viewer shows of it, in [0, 1]."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        values = np.asarray(image, dtype=np.float32) / 255
    return np.ascontiguousarray(np.moveaxis(values.reshape(*values.shape[:2], -1), 2, 0))


class Jpeg(LinearOperator):
    """x [batch, channel, Y, X] to all planes' coefficients in steps, [batch, data], after resampling.

    Args:
        resampled: from high to low resolution.
        file: whose steps and sizes.

    Raises:
        InputError: where the planes are neither one nor the three of a colour image.
    """

    def __init__(self, resampled: Separable, file: Coefficients) -> None:
        rows, columns = resampled.axes()
        channels = resampled.event_shape[-3]
        if len(file.planes) not in (1, 3) or (len(file.planes) == 3 and channels != 3):
            raise InputError(
                f"a JPEG of {len(file.planes)} planes for {channels} channels; expected 1 or 3 of each"
            )
        self.event_shape: tuple[int, ...] = resampled.event_shape
        self.kind, self.scale = f"{resampled.kind}, JPEG", 1.0
        self._parts: list[Separable] = []
        self._steps: list[Tensor] = []
        for number, (step, shrink) in enumerate(zip(file.steps, file.shrink, strict=True)):
            weights = resampled.mix if len(file.planes) == 1 else tuple(COLOURS[number])
            tall, wide = (blocks(size, by) for size, by in zip(file.size, shrink, strict=True))
            self._parts.append(Separable(tall @ rows, wide @ columns, channels, weights))
            unsure = np.sqrt(step**2 + (SMOOTHED / STD) ** 2) if max(shrink) > 1 else step
            self._steps.append(torch.from_numpy(np.tile(unsure, (len(tall) // 8, len(wide) // 8)) / 255))
        self._sizes = [math.prod(part.data_shape) for part in self._parts]
        self.data_shape = (sum(self._sizes),)

    def scaled(self) -> Jpeg:
        """This operator with its norm brought to 1."""
        out = copy.copy(self)
        out.scale = 1 / self.norm(self.event_shape)
        out.__dict__.pop("_norms", None)
        return out

    def data(self, file: Coefficients) -> Float[Tensor, "data"]:
        """The file's coefficients as this operator makes them; the 128 that files take off Y is added."""
        flat = []
        for number, plane in enumerate(file.planes):
            true = np.tile(file.steps[number], tuple(size // 8 for size in plane.shape)) / 255
            y = torch.from_numpy(plane * true).float() / self._steps[number].float()
            if number == 0:
                white = self._parts[0](torch.ones(1, *self.event_shape))[0, 0]
                y = y + (128 / 255) * white / self._steps[0].float()
            flat.append(y.flatten())
        return torch.cat(flat)

    def forward(self, x: Float[Tensor, "batch channel Y X"]) -> Float[Tensor, "batch data"]:
        planes = zip(self._parts, self._steps, strict=True)
        return self.scale * torch.cat([(part(x) / step.to(x)).flatten(1) for part, step in planes], dim=1)

    def adjoint(self, y: Float[Tensor, "batch data"]) -> Float[Tensor, "batch channel Y X"]:
        planes = zip(torch.split(y, self._sizes, dim=1), self._parts, self._steps, strict=True)
        parts = [part.adjoint(one.reshape(-1, *part.data_shape) / step.to(y)) for one, part, step in planes]
        return self.scale * torch.stack(parts).sum(dim=0)
