"""Magnitude images (NIfTI, DICOM, PNG) as *simulated* acquisitions.

Raw k-space cannot be recovered from an image: phase, coils and noise are ours,
and every result says so. The phase is smooth with local detail; without one,
simulated k-space would be conjugate symmetric and half of it redundant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from invdiff import InputError, keyed_stream
from invdiff_mri.coils import simulate_coils
from invdiff_mri.operators import to_kspace
from invdiff_mri.scan import Scan
from invdiff_mri.training import random_phase


@dataclass(frozen=True)
class SimulateOptions:
    """Attributes:
    coils: simulated receive coils.
    sigma: noise per real component and coil, over the 99.5th percentile of the image.
    slices: which slices of a volume (start, stop, step as in Python), None for the middle one.
    seed: of phase and noise.
    one_phase: the same phase in every slice, as in a volume, where it goes smoothly from slice to slice.
    """

    coils: int = 8
    sigma: float = 0.01
    slices: tuple[int | None, int | None, int | None] | None = None
    seed: int = 0
    one_phase: bool = False


def read_image(path: Path) -> tuple[Float[np.ndarray, "slice y x"], np.ndarray | None]:
    """Slices and affine (None where the format has none).

    Raises:
        InputError: for damaged files, colour images, or values that are negative.
    """
    name = path.name.lower()
    try:
        if path.is_dir() or name.endswith(".dcm"):
            return _dicom(path), None
        if name.endswith((".nii", ".nii.gz")):
            import nibabel

            image = nibabel.load(path)
            data = np.asarray(image.dataobj, dtype=np.float32)
            data = data[..., 0] if data.ndim == 4 else data
            volume = data[..., None] if data.ndim == 2 else data
            return np.ascontiguousarray(np.moveaxis(volume, 2, 0)), image.affine
        from PIL import Image

        with Image.open(path) as picture:
            if picture.mode not in ("L", "I", "I;16", "F", "1"):
                picture = picture.convert("L")
            return np.asarray(picture, dtype=np.float32)[None], None
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path.name} cannot be read as an image ({type(error).__name__}: {error}); "
            "the file is damaged or not what its ending says"
        ) from None


def _dicom(path: Path) -> Float[np.ndarray, "slice y x"]:
    import pydicom

    files = sorted(path.iterdir()) if path.is_dir() else [path]
    slices = []
    for file in files:
        if file.is_file() and not file.name.startswith("."):
            slices.append(pydicom.dcmread(file))
    if not slices:
        raise InputError(f"{path} holds no DICOM file")

    def position(dataset: pydicom.Dataset) -> float:
        place = getattr(dataset, "ImagePositionPatient", None)
        axes = getattr(dataset, "ImageOrientationPatient", None)
        if place is None or axes is None:
            return float(getattr(dataset, "InstanceNumber", 0) or 0)
        normal = np.cross(np.array(axes[:3], float), np.array(axes[3:], float))
        return float(normal @ np.array(place, float))

    slices.sort(key=position)
    images = [dataset.pixel_array.astype(np.float32) for dataset in slices]
    if len({image.shape for image in images}) != 1:
        raise InputError(f"{path} mixes slices of shapes {sorted({i.shape for i in images})}")
    return np.stack(images)


def read(path: Path, options: SimulateOptions) -> Scan:
    """A fully sampled simulated scan of the chosen slices."""
    volume, affine = read_image(path)
    if not np.isfinite(volume).all() or volume.min() < 0:
        raise InputError(f"{path.name} holds negative or non-finite values; expected a magnitude image")
    if min(volume.shape[1:]) < 16:
        raise InputError(f"{path.name} has slices of {volume.shape[1:]}; at least 16x16 is expected")
    chosen = volume[slice(*options.slices)] if options.slices else volume[len(volume) // 2][None]
    if len(chosen) == 0:
        raise InputError(f"input.slices selects none of the {len(volume)} slices of {path.name}")
    level = float(np.percentile(volume, 99.5))
    if level <= 0:
        raise InputError(f"{path.name} is zero nearly everywhere; expected an image")
    magnitude = torch.from_numpy(chosen / level)
    kspace, reference = [], []
    height, width = magnitude.shape[1:]
    maps = simulate_coils(options.coils, height, width)
    if options.coils == 1:
        maps = torch.ones_like(maps)
    for index, image in enumerate(magnitude):
        generator = keyed_stream(options.seed, index)
        side = max(height, width)
        square = torch.zeros(1, 1, side, side)
        square[0, 0, :height, :width] = image
        smooth = keyed_stream(options.seed, 0) if options.one_phase else generator
        phase = random_phase(square, smooth)[0, 0, :height, :width]
        clean = to_kspace(maps * image * torch.exp(1j * phase))
        noise = torch.randn((*clean.shape, 2), generator=generator)
        kspace.append(clean + options.sigma * torch.view_as_complex(noise))
        reference.append(image)
    text = (
        f"simulated from magnitude: phase, {options.coils} coils and noise "
        f"({options.sigma:g} of the image's 99.5th percentile) are ours"
    )
    return Scan(
        torch.stack(kspace).to(torch.complex64),
        reference=torch.stack(reference),
        affine=affine,
        simulated=text,
        meta={"format": "image", "noise_sigma": options.sigma, "level": level},
    )
