"""`.npz` with keys kspace, mask, coil_maps, noise, reference; or a bare `.npy` array."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from invdiff import InputError
from invdiff_mri.formats.options import ReadOptions
from invdiff_mri.scan import Scan, arrange

NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK\x03\x04"


def read(path: Path, options: ReadOptions) -> Scan:
    """K-space from numpy files; never unpickles.

    Raises:
        InputError: for files that are not what they say, or lack `kspace`.
    """
    with path.open("rb") as file:
        magic = file.read(6)
    if not (magic.startswith(NPY_MAGIC) or magic.startswith(ZIP_MAGIC)):
        raise InputError(
            f"{path.name} is not a numpy file although it ends in {path.suffix}; "
            "write it with numpy.save or numpy.savez"
        )
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"kspace": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path.name} cannot be read ({error}); it is damaged or pickled") from None
    if "kspace" not in arrays:
        others = [name for name, array in arrays.items() if np.iscomplexobj(array)]
        if len(others) != 1:
            raise InputError(f"{path.name} has no array 'kspace' (it has: {', '.join(arrays) or 'nothing'})")
        arrays["kspace"] = arrays[others[0]]
    kspace = arrange(arrays["kspace"], options.axes, f"'kspace' of {path.name}")
    height, width = kspace.shape[-2:]
    mask = None
    if "mask" in arrays:
        raw = np.asarray(arrays["mask"]).astype(bool)
        if raw.shape == (width,):
            raw = np.broadcast_to(raw[None], (height, width))
        if raw.shape != (height, width):
            raise InputError(
                f"'mask' of {path.name} has shape {arrays['mask'].shape}; expected "
                f"({height}, {width}) like the k-space, or ({width},)"
            )
        if not raw.any():
            raise InputError(f"'mask' of {path.name} is all zeros; remove it, or use operator.mask=from_data")
        mask = torch.from_numpy(raw.copy())
    maps = None
    if "coil_maps" in arrays:
        maps = arrange(arrays["coil_maps"], None, f"'coil_maps' of {path.name}")
        maps = maps.expand(len(kspace), *maps.shape[1:])
        if maps.shape != kspace.shape:
            raise InputError(
                f"'coil_maps' of {path.name} has shape {tuple(maps.shape[1:])}; expected "
                f"{tuple(kspace.shape[1:])} (coil, y, x) like the k-space"
            )
    noise = None
    if "noise" in arrays:
        raw_noise = np.asarray(arrays["noise"])
        noise = torch.from_numpy(raw_noise.reshape(raw_noise.shape[0], -1).astype(np.complex64))
    reference = None
    if "reference" in arrays:
        image = np.abs(arrays["reference"]).astype(np.float32)
        reference = torch.from_numpy(image if image.ndim == 3 else image[None])
    return Scan(kspace, mask=mask, coil_maps=maps, noise=noise, reference=reference, meta={"format": "numpy"})
