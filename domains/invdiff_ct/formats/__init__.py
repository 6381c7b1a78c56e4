"""Readers and writers, one format a file; `read` chooses by ending."""

from __future__ import annotations

from pathlib import Path

from invdiff import InputError
from invdiff_ct.formats import dicom, exchange, images, sinograms
from invdiff_ct.formats.options import ReadOptions
from invdiff_ct.scan import Projections, Volume

ENDINGS = (".npy", ".npz", ".nii", ".nii.gz", ".dcm", ".h5", ".hdf5", ".hdf")

__all__ = ["ReadOptions", "ending", "read"]


def ending(path: Path) -> str:
    """The file's ending in lower case; `.nii.gz` counts as one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def read(path: Path, options: ReadOptions | None = None) -> Projections | Volume:
    """Read projections, or images to simulate them from.

    A `.npy` is a sinogram where a geometry file lies beside it (or is given), else slices in HU.

    Raises:
        InputError: for a file that is missing, damaged, of unknown kind, or whose content cannot be CT.
    """
    options = options or ReadOptions()
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if path.is_dir() or options.format == "dcm" or ending(path) == ".dcm":
        return dicom.read(path, options)
    suffix = f".{options.format}" if options.format else ending(path)
    if suffix not in ENDINGS:
        raise InputError(
            f"{path.name} ends in {suffix or 'nothing'!r}; expected one of {', '.join(ENDINGS)} or a folder "
            "of DICOM files"
        )
    if path.stat().st_size == 0:
        raise InputError(f"{path.name} is empty")
    if suffix in (".h5", ".hdf5", ".hdf"):
        return exchange.read(path, options)
    if suffix in (".nii", ".nii.gz"):
        return images.read_nifti(path, options)
    arrays = sinograms.load(path)
    if sinograms.is_sinogram(path, arrays, options):
        return sinograms.read(path, arrays, options)
    return images.read_arrays(path, arrays, options)
