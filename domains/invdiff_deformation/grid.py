"""Voxel grids in the world: shapes, affines, millimetres.

    world = A [x; 1],   x in voxels (array index order),   world in RAS mm, as nibabel has it

A plane of two axes keeps the 4 x 4 affine of the space it lies in; its world vectors have three components.
ITK, ANTs and Slicer use LPS: diag(-1, -1, 1) times RAS.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import InputError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Grid:
    """A grid of voxel centres.

    Attributes:
        shape: voxels along each of the 2 or 3 array axes.
        affine: voxel to RAS mm; of a plane, its third column is the normal.
        known: whether the affine came from a file; else it is the identity and mm are voxels.
    """

    shape: tuple[int, ...]
    affine: Float[np.ndarray, "4 4"]
    known: bool = True

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm from voxel to voxel along each axis."""
        return tuple(float(h) for h in np.linalg.norm(self.affine[:3, : self.dimensions], axis=0))

    @property
    def voxel(self) -> float:
        """Volume of a voxel in mm^d."""
        return float(np.prod(self.spacing))

    @property
    def centre(self) -> Float[np.ndarray, "d"]:
        """The middle of the grid, in voxels."""
        return (np.asarray(self.shape, dtype=np.float64) - 1) / 2

    def full(self, voxels: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 3"]:
        """Voxel coordinates with the axis that a plane lacks."""
        missing = 3 - voxels.shape[1]
        return np.concatenate([voxels, np.zeros((len(voxels), missing))], axis=1)

    def world(self, voxels: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 3"]:
        """RAS mm of voxel coordinates."""
        return self.full(voxels) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def voxels(self, world: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Voxel coordinates of RAS mm; of a plane the third is the distance from it in normals."""
        inverse = np.linalg.inv(self.affine)
        return world @ inverse[:3, :3].T + inverse[:3, 3]

    def mm(self, u: Float[Tensor, "*batch d *grid"], axis: int = 1) -> Float[Tensor, "*batch three *grid"]:
        """World vectors (RAS mm) of vectors in voxels along `axis`."""
        turn = torch.as_tensor(self.affine[:3, : self.dimensions], dtype=u.dtype, device=u.device)
        return torch.movedim(torch.movedim(u, axis, -1) @ turn.mT, -1, axis)

    def box(self) -> Float[np.ndarray, "2 3"]:
        """Smallest and largest world coordinates of the corners."""
        sides = np.stack(np.meshgrid(*[[0, n - 1] for n in self.shape], indexing="ij"), axis=-1)
        corners = self.world(sides.reshape(-1, self.dimensions).astype(np.float64))
        return np.stack([corners.min(axis=0), corners.max(axis=0)])


def between(fixed: Grid, moving: Grid) -> Float[np.ndarray, "d dplus1"]:
    """`[M | t]` with `M x + t` the moving voxel of the world point that the fixed voxel x lies at.

    Raises:
        InputError: for grids of different dimensions, planes that are not one plane, or no overlap.
    """
    if fixed.dimensions != moving.dimensions:
        raise InputError(
            f"the fixed image has {fixed.dimensions} axes and the moving one {moving.dimensions}; both must "
            "be planes or both volumes"
        )
    whole = np.linalg.inv(moving.affine) @ fixed.affine
    d = fixed.dimensions
    if d == 2:
        corners = np.array([[i, j, 0.0] for i in (0, fixed.shape[0] - 1) for j in (0, fixed.shape[1] - 1)])
        height = np.abs(corners @ whole[2, :3] + whole[2, 3]).max()
        if height > 0.5:
            raise InputError(
                f"the planes of the two images lie up to {height:.3g} slice distances apart; resample "
                "one of them into the plane of the other"
            )
    low, high = fixed.box()
    other_low, other_high = moving.box()
    if bool((low > other_high + 1e-6).any() or (other_low > high + 1e-6).any()):
        raise InputError(
            f"the images do not overlap in the world: fixed {_said(low)} to {_said(high)} mm, moving "
            f"{_said(other_low)} to {_said(other_high)} mm; align their centres with domain.align=centres"
        )
    return np.concatenate([whole[:d, :d], whole[:d, 3:]], axis=1)


def _said(corner: Float[np.ndarray, "3"]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in corner) + ")"
