"""What is known of a region as a whole: where its surface lies, how large it is.

    surface    dist_m(phi(p_k)) + h / 2 = 0 + n_k      mm; p_k: voxels on the fixed region's rim
    volume     log mean_R det J = log V_m / V_f + n    the volume of phi(R) over that of R

dist_m is the signed distance to the moving region's surface (negative inside). Rim voxels lie half a voxel h
inside the surface on average. No point of the surface is told which other point it goes to. The mean is
taken before the logarithm: the volume of phi(R) is the integral of det J, and the mean of log det J is
smaller.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from invdiff_deformation import flow
from invdiff_deformation.jacobian import jacobian


class Surface:
    """`(dist_m(phi(p_k)) + h / 2) / std`, so that the noise is N(0, 1).

    Args:
        distance: dist_m in mm on the moving grid.
        points: p_k, fixed voxels.
        std: mm.
        half: h / 2 in mm.
        to_moving: see `grid.between`.
    """

    def __init__(
        self,
        distance: Float[Tensor, "*moving"],
        points: Int[Tensor, "n d"],
        std: float,
        half: float = 0.0,
        to_moving: Float[Tensor, "d dplus1"] | None = None,
    ) -> None:
        self.distance, self.points = distance, points
        self.std, self.half, self.to_moving = std, half, to_moving

    def of(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch data"]:
        where = self.points.mT.to(u) + u[(slice(None), slice(None), *self.points.unbind(1))]
        found = flow.sample_at(self.distance.to(u)[None, None], flow.carried(where, self.to_moving))
        return (found[:, 0] + self.half) / self.std


class Volume:
    """`log mean_R det J / std`, one number; det J is kept above `SMALLEST` where phi folds."""

    SMALLEST = 1e-3

    def __init__(self, region: Bool[Tensor, "*grid"], std: float) -> None:
        self.region, self.std = region, std

    def of(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch data"]:
        growth = jacobian(u)[:, self.region.to(u.device)].mean(dim=1, keepdim=True)
        return growth.clamp_min(self.SMALLEST).log() / self.std
