"""Readers and writers, one format a file; `read` chooses by ending and magic bytes."""

from __future__ import annotations

from pathlib import Path

from invdiff import InputError
from invdiff_mri.formats import bart, fastmri, ismrmrd, numpy_arrays
from invdiff_mri.formats.options import ReadOptions
from invdiff_mri.scan import Scan, check_centred

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
IMAGE_ENDINGS = (".nii", ".nii.gz", ".dcm", ".png", ".tif", ".tiff")
KSPACE_ENDINGS = (".h5", ".hdf5", ".mrd", ".npz", ".npy", ".cfl", ".hdr")

__all__ = ["ReadOptions", "ending", "is_image", "read"]


def ending(path: Path) -> str:
    """The file's ending in lower case; `.nii.gz` counts as one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def is_image(path: Path) -> bool:
    """Whether the ending is that of an image format (or a DICOM folder)."""
    return path.is_dir() or ending(path) in IMAGE_ENDINGS


def read(path: Path, options: ReadOptions | None = None) -> Scan:
    """Read k-space from any supported file.

    Raises:
        InputError: for a file that is missing, is not what its ending says, is
            damaged, or whose axes do not fit.
    """
    options = options or ReadOptions()
    if not path.exists():
        raise InputError(f"there is no file {path}")
    suffix = f".{options.format}" if options.format else ending(path)
    if suffix not in KSPACE_ENDINGS:
        raise InputError(
            f"{path.name} ends in {suffix or 'nothing'!r}; expected k-space as one of "
            f"{', '.join(KSPACE_ENDINGS)} or an image as one of {', '.join(IMAGE_ENDINGS)}"
        )
    if path.stat().st_size == 0:
        raise InputError(f"{path.name} is empty")
    if suffix in (".h5", ".hdf5", ".mrd"):
        with path.open("rb") as file:
            if file.read(8) != HDF5_MAGIC:
                raise InputError(
                    f"{path.name} is not an HDF5 file although it ends in {suffix}; "
                    "check that the download or export was complete"
                )
        scan = ismrmrd.read(path, options) if ismrmrd.matches(path) else fastmri.read(path, options)
    elif suffix in (".cfl", ".hdr"):
        scan = bart.read(path, options)
    else:
        scan = numpy_arrays.read(path, options)
    if options.shift:
        from dataclasses import replace

        import torch

        scan = replace(scan, kspace=torch.fft.fftshift(scan.kspace, dim=(-2, -1)))
    check_centred(scan.kspace, path.name)
    return scan
