"""What a user asked of the input: slices, one coil or many, mask, maps, reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from invdiff import InputError
from invdiff_mri.coils import espirit
from invdiff_mri.masks import SIMULATED, MaskSettings, make_mask, mask_from_data
from invdiff_mri.operators import to_image, to_kspace
from invdiff_mri.scan import Scan, arrange


def crop(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """The centred part of the last two axes."""
    if size is None:
        return image
    top = (image.shape[-2] - size[0]) // 2
    left = (image.shape[-1] - size[1]) // 2
    return image[..., top : top + size[0], left : left + size[1]]


def parse_slices(text: object) -> tuple[int | None, int | None, int | None] | None:
    """`start:stop:step` or one number."""
    if text is None:
        return None
    parts = str(text).split(":")
    try:
        numbers = [int(part) if part else None for part in parts]
    except ValueError:
        raise InputError(f"input.slices is {text!r}; expected start:stop:step or a number") from None
    if len(numbers) == 1 and numbers[0] is not None:
        return (numbers[0], numbers[0] + 1 or None, None)
    if len(numbers) > 3:
        raise InputError(f"input.slices is {text!r}; expected start:stop:step or a number")
    numbers += [None] * (3 - len(numbers))
    return (numbers[0], numbers[1], numbers[2])


def combined(scan: Scan) -> Scan:
    """A fully sampled multi-coil scan as a single-coil one, by ESPIRiT combination.

    Raises:
        InputError: where the scan is not fully sampled.
    """
    if not bool((scan.kspace != 0).any(dim=1).all()):
        raise InputError(
            "operator.single_coil=true combines the coils of a fully sampled scan and this one is "
            "undersampled; leave it out to use all coils"
        )
    images = []
    for kspace in scan.kspace:
        maps = espirit(kspace, (24, 24)).maps
        images.append((maps.conj() * to_image(kspace)).sum(dim=0))
    kspace = to_kspace(torch.stack(images))[:, None]
    return replace(scan, kspace=kspace, coil_maps=None, noise=None, reference=None)


def choose_mask(scan: Scan, operator: Mapping[str, Any]) -> tuple[Bool[Tensor, "y x"], bool]:
    """The mask, and whether it is applied here (retrospective) or was at the scanner."""
    name = str(operator["mask"])
    shape = (scan.kspace.shape[-2], scan.kspace.shape[-1])
    present = mask_from_data(scan.kspace.flatten(0, 1))
    full = float(present.float().mean()) > 0.999
    if name == "auto":
        if scan.mask is not None and not bool(scan.mask.all()):
            return scan.mask & present, False
        if not full:
            return present, False
        name = "equispaced"
    if name == "from_data":
        if full:
            raise InputError(
                "operator.mask=from_data found every sample measured; choose a mask to undersample "
                "with (operator.mask=equispaced operator.acceleration=4)"
            )
        return present, False
    if name == "file":
        return file_mask(operator.get("mask_file"), shape), full
    settings = MaskSettings(
        name=name,
        acceleration=float(operator["acceleration"]),
        center_fraction=operator["center_fraction"],
        exact_count=bool(operator["exact_count"]),
        axis=int(operator["axis"]),
        calibration=int(operator["calibration"]),
        seed=int(operator["mask_seed"]),
    )
    mask = make_mask(shape, settings)
    if name in SIMULATED and not full:
        raise InputError(
            f"operator.mask={name} undersamples a full scan, and only "
            f"{100 * float(present.float().mean()):.1f} % of this one was measured; "
            "use operator.mask=from_data"
        )
    return mask, True


def file_mask(path: object, shape: tuple[int, int]) -> Bool[Tensor, "y x"]:
    """A mask from .npy or .npz (key `mask`), 2-D or one entry a phase-encode line."""
    if not path:
        raise InputError("operator.mask=file needs operator.mask_file=FILE (.npy or .npz)")
    file = Path(str(path))
    if not file.is_file():
        raise InputError(f"there is no mask file {file}")
    try:
        loaded = np.load(file, allow_pickle=False)
        raw = np.asarray(loaded if isinstance(loaded, np.ndarray) else loaded["mask"])
    except (ValueError, OSError, KeyError) as error:
        raise InputError(f"{file.name} holds no mask ({error})") from None
    raw = raw.astype(bool)
    if raw.shape == (shape[1],):
        raw = np.broadcast_to(raw[None], shape)
    if raw.shape != shape:
        raise InputError(
            f"the mask in {file.name} has shape {raw.shape}; expected {shape} like the k-space, or "
            f"({shape[1]},) for whole phase-encode lines"
        )
    if not raw.any():
        raise InputError(f"the mask in {file.name} is all zeros: nothing would be measured")
    return torch.from_numpy(raw.copy())


def given_maps(scan: Scan, choice: str) -> Complex[Tensor, "slice coil y x"] | None:
    """Coil maps of the file or the user; None where they are to be estimated."""
    if choice in ("espirit", "ones"):
        if choice == "ones" and scan.kspace.shape[1] > 1:
            raise InputError(
                f"operator.coil_maps=ones is for one coil and this scan has {scan.kspace.shape[1]}; "
                "use espirit"
            )
        return None
    if choice == "auto":
        return scan.coil_maps
    file = Path(choice)
    if not file.is_file():
        raise InputError(
            f"operator.coil_maps is {choice!r}; expected auto, espirit, ones or an existing file"
        )
    try:
        loaded = np.load(file, allow_pickle=False)
        raw = loaded if isinstance(loaded, np.ndarray) else loaded["coil_maps"]
    except (ValueError, OSError, KeyError) as error:
        raise InputError(f"{file.name} holds no coil maps ({error})") from None
    maps = arrange(np.asarray(raw), None, f"coil maps of {file.name}")
    return maps.expand(len(scan.kspace), *maps.shape[1:])


def volume_reference(
    scan: Scan, mask: Bool[Tensor, "y x"], retrospective: bool
) -> tuple[list[Float[np.ndarray, "y x"]] | None, float]:
    """Reference magnitudes of all slices and their common maximum.

    A simulated truth or a reference in the file; else, for a full scan that is
    undersampled here, the root sum of squares of its coils.
    """
    if scan.reference is not None:
        size = scan.crop or tuple(scan.reference.shape[-2:])
        if tuple(scan.reference.shape[-2:]) != size:
            images = list(crop(scan.reference, scan.crop).numpy())
        else:
            images = list(scan.reference.numpy())
        wanted = scan.crop or tuple(scan.kspace.shape[-2:])
        if tuple(images[0].shape) == wanted and len(images) == len(scan.kspace):
            return images, float(max(image.max() for image in images))
    if not retrospective:
        return None, 0.0
    images = [
        crop(to_image(kspace).abs().square().sum(dim=0).sqrt(), scan.crop).numpy() for kspace in scan.kspace
    ]
    return images, float(max(image.max() for image in images))
