"""Pictures in and out: PNG, JPEG, TIFF (8 and 16 bits, grey and RGB) and NPY, without colour management.

Values are the file's own over its largest, in [0, 1]; they are taken as they are (no profile, no gamma).
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from invdiff import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        values: in [0, 1], 1 or 3 channels.
        bits: of the file's integers; None for floating point.
        alpha: opacity in [0, 1], where the file has one.
        notes: for the report.
    """

    values: Float[np.ndarray, "channel y x"]
    bits: int | None
    alpha: Float[np.ndarray, "1 y x"] | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def rounding(self) -> float:
        """Standard deviation of rounding to the file's integers, on the scale of [0, 1]."""
        return 0.0 if self.bits is None else 1 / ((2**self.bits - 1) * 12**0.5)


def files(path: Path) -> list[Path]:
    """The file, or the pictures of a folder by name.

    Raises:
        InputError: where there is none.
    """
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if not path.is_dir():
        return [path]
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in ENDINGS)
    if not found:
        raise InputError(f"{path} holds no picture; expected files ending in {', '.join(ENDINGS)}")
    return found


def read(path: Path) -> Picture:
    """A picture from a file.

    Raises:
        InputError: for a missing or damaged file, an unknown ending, or values that are no picture.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"{path.name} ends in {ending or 'nothing'!r}; expected one of {', '.join(ENDINGS)}")
    try:
        raw = _tiff(path) if ending in (".tif", ".tiff") else _npy(path) if ending == ".npy" else _coded(path)
    except InputError:
        raise
    except ModuleNotFoundError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path.name} cannot be read ({reason}); the file is damaged or not what its ending says"
        ) from None
    notes: dict[str, Any] = {}
    if ending in (".jpg", ".jpeg"):
        notes["format"] = "JPEG: the quantisation of its coefficients is the noise"
    return picture(raw, path.name, notes)


def picture(raw: np.ndarray, name: str, notes: dict[str, Any] | None = None) -> Picture:
    """An array [y, x], [y, x, channel] or [channel, y, x] as a picture.

    Raises:
        InputError: for other shapes or types, NaN, or floating-point values outside [0, 1].
    """
    if raw.ndim == 3 and raw.shape[0] in (1, 3, 4) and raw.shape[2] not in (1, 3, 4):
        raw = np.moveaxis(raw, 0, 2)
    if raw.ndim == 2:
        raw = raw[..., None]
    if raw.ndim != 3 or raw.shape[2] not in (1, 2, 3, 4):
        raise InputError(
            f"{name} has shape {raw.shape}; expected a grey or RGB picture: [y, x] or [y, x, channel]"
        )
    if min(raw.shape[:2]) < 4:
        raise InputError(f"{name} is {raw.shape[1]} x {raw.shape[0]} pixels; at least 4 x 4 are needed")
    bits = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16}.get(raw.dtype)
    if raw.dtype == bool:
        raise InputError(f"{name} holds one bit a pixel; a grey or colour picture is needed")
    values = raw.astype(np.float32)
    if bits is None:
        if not np.isfinite(values).all():
            raise InputError(f"{name} holds values that are NaN or infinite; repair or mask them")
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise InputError(
                f"{name} holds {raw.dtype} values from {low:g} to {high:g}; expected 8 or 16 bits, or "
                "floating point in [0, 1]"
            )
    else:
        values /= 2**bits - 1
    planes = np.ascontiguousarray(np.moveaxis(values, 2, 0))
    alpha = planes[-1:] if len(planes) in (2, 4) else None
    planes = planes if alpha is None else planes[:-1]
    found = dict(notes or {})
    if alpha is not None:
        found["alpha"] = "taken off, and upsampled by bicubic interpolation"
    return Picture(planes, bits, alpha, found)


def write(path: Path, values: Float[np.ndarray, "channel y x"], bits: int | None) -> Path:
    """A PNG of 8 bits, or a TIFF of 16 (also for floating point); whole or not at all. Returns the path.

    Values outside [0, 1] are clipped here, and only here.
    """
    top = 255 if bits == 8 else 65535
    shown = np.rint(np.clip(values, 0, 1) * top).astype(np.uint8 if bits == 8 else np.uint16)
    shown = shown[0] if len(shown) == 1 else np.moveaxis(shown, 0, 2)
    target = path.with_suffix(".png" if bits == 8 else ".tif")
    part = target.with_name("." + target.name)
    if bits == 8:
        from PIL import Image

        Image.fromarray(shown).save(part)
    else:
        import tifffile

        tifffile.imwrite(part, shown, photometric="minisblack" if shown.ndim == 2 else "rgb", metadata=None)
    os.replace(part, target)
    return target


def _coded(path: Path) -> np.ndarray:
    from PIL import Image

    head = path.read_bytes()[:26]
    if not head:
        raise InputError(f"{path.name} is empty")
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10":
        return _deep_png(path)
    with Image.open(path) as image:
        palette = image.mode == "P"
        opened = image.convert("RGBA" if "transparency" in image.info else "RGB") if palette else image
        if opened.mode not in ("L", "LA", "RGB", "RGBA"):
            raise InputError(f"{path.name} has colours of mode {opened.mode}; expected grey or RGB")
        return np.asarray(opened)


def _deep_png(path: Path) -> np.ndarray:
    """16 bits a channel, which Pillow reduces to 8 where there are colours."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        return np.moveaxis(decode_image(data, mode=ImageReadMode.UNCHANGED).numpy(), 0, 2)


def _tiff(path: Path) -> np.ndarray:
    import tifffile

    found: np.ndarray = tifffile.imread(path)
    return found


def _npy(path: Path) -> np.ndarray:
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.ndarray) or np.iscomplexobj(loaded):
        raise InputError(f"{path.name} must be one real .npy array")
    return loaded
