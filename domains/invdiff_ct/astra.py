"""The matrix of a scan as the ASTRA toolbox computes it on a CPU: an option, never imported by default.

ASTRA (van Aarle et al., Ultramicroscopy 157:35, 2015) is under the GPL and is not a dependency of invdiff:
`pip install astra-toolbox`. Its `linear` kernel is Joseph's method, the same matrix as ours to single
precision; `line` takes the length of a ray in a pixel, `strip` the area of a pixel under a beam as wide as a
detector. Parallel beams have all three, flat fans `line`; curved fans none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from invdiff import InputError
from invdiff_ct.geometry import Geometry

KERNELS = ("astra_linear", "astra_line", "astra_strip")


def astra_matrix(kernel: str) -> Callable[[Geometry, int, float], Any]:
    """A function of geometry, size and pixel_mm that returns ASTRA's matrix in compressed rows, in mm.

    Raises:
        InputError: without the astra-toolbox, or (from the function) for a beam that the kernel lacks.
    """
    try:
        import astra
    except ModuleNotFoundError:
        raise InputError(
            f"operator.kernel={kernel} needs ASTRA: pip install astra-toolbox, or use kernel=joseph"
        ) from None

    def matrix(geometry: Geometry, size: int, pixel_mm: float) -> Any:
        kind = kernel.removeprefix("astra_")
        if geometry.beam == "fan_curved" or (geometry.beam == "fan_flat" and kind != "line"):
            raise InputError(
                f"ASTRA has no kernel {kind!r} for the beam {geometry.beam}; use operator.kernel=joseph"
                + (" or astra_line" if geometry.beam == "fan_flat" else "")
            )
        half = size * pixel_mm / 2
        volume = astra.create_vol_geom(size, size, -half, half, -half, half)
        e = np.stack([np.cos(geometry.angles), np.sin(geometry.angles)], axis=1)
        f = np.stack([-np.sin(geometry.angles), np.cos(geometry.angles)], axis=1)
        middle, pitch = geometry.positions[[0, -1]].mean() * e, geometry.pitch_mm * e
        if geometry.beam == "parallel":
            vectors = np.concatenate([f, middle, pitch], axis=1)
            scan = astra.create_proj_geom("parallel_vec", geometry.detectors, vectors)
        else:
            detector = geometry.axis_detector_mm * f + middle
            vectors = np.concatenate([-geometry.source_axis_mm * f, detector, pitch], axis=1)
            scan = astra.create_proj_geom("fanflat_vec", geometry.detectors, vectors)
            kind += "_fanflat"
        projector = astra.create_projector(kind, scan, volume)
        identifier = astra.projector.matrix(projector)
        try:
            return astra.matrix.get(identifier).tocsr()
        finally:
            astra.matrix.delete(identifier)
            astra.projector.delete(projector)

    return matrix
