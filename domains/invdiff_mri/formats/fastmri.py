"""fastMRI HDF5: `kspace` (slice, coil, y, x) complex, optional 1-D `mask` over x.

Single-coil files have no coil axis. The readout (y) is oversampled: the final
image is cropped to the header's reconstruction size, after the inverse FFT. A
file without `mask` has no mask (it is fully sampled or says nothing), which is
not the same as a mask of zeros.
"""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import torch

from invdiff import InputError
from invdiff_mri.formats.options import ReadOptions
from invdiff_mri.scan import Scan, arrange


def read(path: Path, options: ReadOptions) -> Scan:
    """One volume.

    Raises:
        InputError: for a damaged file or one without `kspace`.
    """
    try:
        with h5py.File(path) as file:
            if "kspace" not in file:
                raise InputError(
                    f"{path.name} has no dataset 'kspace' (it has: {', '.join(file) or 'nothing'}); "
                    "expected a fastMRI or ISMRMRD file"
                )
            array = file["kspace"][()]
            mask_line = file["mask"][()] if "mask" in file else None
            names = ("reconstruction_rss", "reconstruction_esc")
            name = next((name for name in names if name in file), None)
            reference = None if name is None else file[name][()]
            header = file["ismrmrd_header"][()] if "ismrmrd_header" in file else None
            meta = {key: _plain(value) for key, value in file.attrs.items()}
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be read as HDF5 ({error}); the file is truncated or damaged"
        ) from None
    axes = options.axes or ("slice,coil,y,x" if array.ndim == 4 else "slice,y,x")
    if options.axes is None and array.ndim not in (3, 4):
        raise InputError(
            f"'kspace' of {path.name} has {array.ndim} axes; fastMRI has slice, coil, y, x "
            "(or slice, y, x for single-coil): name them with input.axes="
        )
    kspace = arrange(array, axes, f"'kspace' of {path.name}")
    height, width = kspace.shape[-2:]
    mask = None
    if mask_line is not None:
        flat = np.asarray(mask_line).astype(bool).reshape(-1)
        if flat.size == width:
            mask = torch.from_numpy(flat)[None, :].expand(height, width).clone()
        elif flat.size == height * width:
            mask = torch.from_numpy(flat.reshape(height, width))
        else:
            raise InputError(
                f"'mask' of {path.name} has {flat.size} entries; expected {width} (one for each "
                f"phase-encode line) or {height}x{width}"
            )
        if not bool(mask.any()):
            raise InputError(f"'mask' of {path.name} is all zeros; remove it, or use operator.mask=from_data")
    crop = None
    if header is not None:
        text = header.decode() if isinstance(header, bytes) else str(header)
        found = re.search(r"<reconSpace>.*?<matrixSize>\s*<x>(\d+)</x>\s*<y>(\d+)</y>", text, re.DOTALL)
        if found:
            x, y = int(found[1]), int(found[2])
            if x <= height and y <= width:
                crop = (x, y)
    target = None if reference is None else torch.from_numpy(np.asarray(reference, np.float32))
    if target is not None and crop is None and tuple(target.shape[1:]) != (height, width):
        crop = (int(target.shape[1]), int(target.shape[2]))
    return Scan(kspace, mask=mask, reference=target, crop=crop, meta={"format": "fastMRI", **meta})


def _plain(value: object) -> object:
    return value.item() if hasattr(value, "item") and getattr(value, "size", 2) == 1 else str(value)
