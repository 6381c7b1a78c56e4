"""What the posterior is compared with: no registration, the mode, SimpleITK's demons where it is installed.

SimpleITK is run untuned: histogram matching, then symmetric or diffeomorphic demons on three levels (shrink
4, 2, 1; 40, 30, 15 iterations; smoothing 1.5 voxels).
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import Estimates, InputError, Tick
from invdiff_deformation.item import Item

TITLES = {
    "identity": "no registration",
    "mode": "mode (MAP)",
    "demons": "SimpleITK symmetric demons",
    "diffeomorphic": "SimpleITK diffeomorphic demons",
}
LEVELS = ((4, 40), (2, 30), (1, 15))
SMOOTHING = 1.5


def has_simpleitk() -> bool:
    """Whether the optional baseline can run."""
    return find_spec("SimpleITK") is not None


def all_baselines(item: Item, mode: Tensor | None, tick: Tick) -> Estimates:
    """Displacements in voxels of the fixed grid, by name."""
    found: Estimates = {"identity": torch.zeros((item.grid.dimensions, *item.grid.shape))}
    tick()
    if mode is not None:
        found["mode"] = item.transform.displacement(mode[None])[0]
        tick()
    if item.moving is not None and has_simpleitk() and item.carried is None:
        fixed, moving = item.scaled
        for name in ("demons", "diffeomorphic"):
            found[name] = demons(fixed, moving, diffeomorphic=name == "diffeomorphic")
            tick()
    return found


def demons(
    fixed: Float[np.ndarray, "*grid"], moving: Float[np.ndarray, "*grid"], diffeomorphic: bool = False
) -> Float[Tensor, "d *grid"]:
    """SimpleITK's demons on images of one grid, as a displacement in voxels.

    Raises:
        InputError: where SimpleITK is missing.
    """
    if not has_simpleitk():
        raise InputError("SimpleITK is not installed; pip install invdiff[deformation]")
    import SimpleITK

    def image(values: np.ndarray) -> SimpleITK.Image:
        return SimpleITK.GetImageFromArray(values.astype(np.float32))

    whole_f, whole_m = image(fixed), image(moving)
    whole_m = SimpleITK.HistogramMatching(whole_m, whole_f)
    kind = (
        SimpleITK.DiffeomorphicDemonsRegistrationFilter
        if diffeomorphic
        else SimpleITK.FastSymmetricForcesDemonsRegistrationFilter
    )
    field = None
    for shrink, iterations in LEVELS:
        f, m = whole_f, whole_m
        if shrink > 1:
            factors = [min(shrink, max(size // 8, 1)) for size in whole_f.GetSize()]
            f, m = (
                SimpleITK.Shrink(SimpleITK.SmoothingRecursiveGaussian(one, shrink / 2), factors)
                for one in (whole_f, whole_m)
            )
        filter_ = kind()
        filter_.SetNumberOfIterations(iterations)
        filter_.SetStandardDeviations(SMOOTHING)
        filter_.SetSmoothDisplacementField(True)
        if field is None:
            field = filter_.Execute(f, m)
        else:
            field = filter_.Execute(f, m, SimpleITK.Resample(field, f))
    vectors = SimpleITK.GetArrayFromImage(field)  # [z, y, x, (x, y, z)]: array order, vectors reversed
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(vectors[..., ::-1], -1, 0), dtype=np.float32))
