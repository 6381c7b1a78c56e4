"""The HDF5 layout of tomopy and DXchange: counts with flat and dark fields.

    /exchange/data [angle, row, detector], data_white, data_dark [frame, row, detector], theta (degrees)

Transmission is (data - dark) / (white - dark), and y = -ln of it; without a white
field the data are taken as line integrals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from invdiff import InputError
from invdiff_ct.formats import sinograms
from invdiff_ct.formats.options import ReadOptions
from invdiff_ct.scan import Projections, check_angles, finite

MAGIC = b"\x89HDF\r\n\x1a\n"


def read(path: Path, options: ReadOptions) -> Projections:
    """A file of that layout as line integrals.

    Raises:
        InputError: for files of another layout, angles that do not fit, or a dead white field.
    """
    with path.open("rb") as file:
        if file.read(8) != MAGIC:
            raise InputError(
                f"{path.name} is not an HDF5 file; check that the download or export was complete"
            )
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "exchange/data" not in file:
                raise InputError(f"{path.name} has no /exchange/data; expected the tomopy (DXchange) layout")
            parts = {
                key: np.asarray(file[f"exchange/{key}"])
                for key in ("data", "data_white", "data_dark", "theta")
                if f"exchange/{key}" in file
            }
    except OSError as error:
        raise InputError(f"{path.name} is damaged ({error})") from None
    data = np.asarray(finite(parts["data"], path.name), dtype=np.float64)
    if data.ndim != 3:
        raise InputError(
            f"/exchange/data of {path.name} has shape {data.shape}; expected [angle, row, detector]"
        )
    if "theta" in parts:
        angles = check_angles(np.asarray(parts["theta"], dtype=np.float64).ravel(), path.name)
    else:
        angles = np.linspace(0, np.pi, len(data), endpoint=False)
    settings: dict[str, Any] = (
        {} if options.geometry_file is None else sinograms.read_geometry(options.geometry_file)
    )
    if len(angles) != len(data):
        raise InputError(
            f"{path.name} has {len(data)} projections and {len(angles)} angles in theta; repair the file"
        )
    notes: dict[str, Any] = {} if "theta" in parts else {"angles": "no theta in the file: half a turn taken"}
    if "data_white" in parts:
        white = np.asarray(parts["data_white"], dtype=np.float64).reshape(-1, *data.shape[1:]).mean(axis=0)
        dark = np.zeros_like(white)
        if "data_dark" in parts:
            dark = np.asarray(parts["data_dark"], dtype=np.float64).reshape(-1, *data.shape[1:]).mean(axis=0)
        open_beam = white - dark
        if not (open_beam > 0).all():
            raise InputError(
                f"the white field of {path.name} is not above its dark one in {int((open_beam <= 0).sum())} "
                "pixels; mask them or repair the file"
            )
        transmission = (data - dark) / open_beam
        low = transmission <= 1e-6
        notes["clamped"] = f"{100 * float(low.mean()):.3g} % of the rays had no transmission left"
        data = -np.log(np.maximum(transmission, 1e-6))
    sinogram = np.ascontiguousarray(np.moveaxis(data, 1, 0))
    read = sinograms.make(sinogram, angles, settings, options, path.name)
    read.notes.update(notes)
    return read
