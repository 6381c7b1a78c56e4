"""What is seen of a deformation: displacements, landmarks, images, labels; alone or together.

    displacement    y_k = u(x_k) + n_k                         mm, n_k ~ N(0, Sigma_k)
    landmarks       q_k = p_k + u(p_k) + n_k                   mm, world points of both images
    intensity       f = m o phi + n                            voxels inside the mask
    local           sum_x -1/2 beta log(1 - cc(x)^2)           cc: correlation in a window around x
    mutual          beta n MI(m o phi, f)                      Parzen histogram
    labels          sum_x beta log sum_l f_l(x) [(1 - e) m_l(phi(x)) + e / L]

All are p(y | v) through phi = exp(v), or with `transform="displacement"` through phi = id + v, where the
first two are linear and their posterior under a Gaussian prior is known in closed form.

`local` is the profile likelihood of a linear relation of intensities within each window, `mutual` that of a
free joint histogram, up to constants (which are chosen so that no term exceeds 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invdiff import MatrixOperator, Operator
from invdiff_deformation import flow
from invdiff_deformation.grid import Grid
from invdiff_deformation.prior import Coordinates

TRANSFORMS = ("exponential", "displacement")


@dataclass(frozen=True)
class Transform:
    """From states to deformations.

    Attributes:
        coordinates: states to velocities.
        kind: `exponential`, or `displacement`: u = v, linear, and it may fold.
    """

    coordinates: Coordinates
    kind: str = "exponential"

    @property
    def grid(self) -> Grid:
        """Of the fixed image."""
        return self.coordinates.grid

    @property
    def linear(self) -> bool:
        """Whether u is linear in the state."""
        return self.kind == "displacement"

    def displacement(self, z: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch d *grid"]:
        """u in voxels of the fixed grid."""
        return self.of_velocity(self.coordinates.velocity(z))

    def of_velocity(self, v: Float[Tensor, "batch d *control"]) -> Float[Tensor, "batch d *grid"]:
        """u of a velocity on the control grid."""
        u = v if self.linear else flow.exponential(v, self.coordinates.squarings)
        control = self.coordinates.control
        if control == 1:
            return u
        where = flow.identity(self.grid.shape, u.dtype, u.device) / control
        return control * flow.sample_at(u, where[None].expand(len(u), *where.shape))

    def inverse(self, z: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch d *grid"]:
        """The displacement of phi^-1 where v generates phi."""
        return self.of_velocity(-self.coordinates.velocity(z))


@runtime_checkable
class Term(Protocol):
    """One observation: what it predicts of a displacement, without noise."""

    def of(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch data"]:
        """The prediction."""


class Observed(Operator):
    """Terms seen through one deformation; their predictions follow each other in one list."""

    def __init__(self, transform: Transform, terms: Sequence[Term]) -> None:
        self.transform, self.terms = transform, tuple(terms)
        self.event_shape = transform.coordinates.event_shape

    @property
    def seen(self) -> Float[Tensor, "*event"] | None:
        """Up to a factor how well data on the voxels see each coordinate, see `Coordinates`."""
        return self.transform.coordinates.seen

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch data"]:
        u = self.transform.displacement(x)
        return torch.cat([term.of(u) for term in self.terms], dim=1)


def observed(transform: Transform, terms: Sequence[Term]) -> Operator:
    """The operator of the terms: a matrix where everything is linear."""
    operator = Observed(transform, terms)
    if not transform.linear or not all(isinstance(term, Displacements) for term in terms):
        return operator  # a network prior's coordinates refuse what follows
    rows = [term.rows(transform.coordinates) for term in terms if isinstance(term, Displacements)]
    return MatrixOperator(torch.cat(rows))


class Weighted:
    """What a term predicts, times weights."""

    def __init__(self, term: Term, weight: Float[Tensor, "data"] | float) -> None:
        self.term, self.weight = term, weight

    def of(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch data"]:
        return self.weight * self.term.of(u)


class Displacements:
    """u at points, in whitened mm: W_k u_mm(x_k) with W_k^T W_k = Sigma_k^-1, so that the noise is N(0, 1).

    Args:
        points: fixed voxels.
        to_mm: voxel vectors to mm, `Grid.affine[:3, :d]` for a volume and mm along the axes for a plane.
        whitening: W_k.
    """

    def __init__(
        self,
        points: Float[Tensor, "n d"],
        to_mm: Float[Tensor, "d d"],
        whitening: Float[Tensor, "n d d"],
    ) -> None:
        self.points, self.matrix = points, whitening @ to_mm

    def rows(self, coordinates: Coordinates) -> Float[Tensor, "data event"]:
        """The prediction as a matrix on states, where u = v."""
        found = torch.einsum("nij,njz->niz", self.matrix.double(), coordinates.matrix_at(self.points))
        return found.flatten(0, 1)

    def of(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch data"]:
        where = self.points.to(u).mT[None].expand(len(u), -1, -1)
        found = flow.sample_at(u, where)
        return torch.einsum("nij,bjn->bni", self.matrix.to(u), found).flatten(1)


class Images:
    """`f + w (m o phi - f)` inside the fixed mask, w the moving mask o phi; y is f.

    Args:
        moving: m on its grid.
        fixed: f.
        inside: fixed voxels that count.
        to_moving: see `grid.between`.
        seen: the moving mask on its grid, if there is one.
        padding: beyond the moving image: `border` for cropped fields of view, `zeros` for air.
    """

    def __init__(
        self,
        moving: Float[Tensor, "*moving"],
        fixed: Float[Tensor, "*grid"],
        inside: Bool[Tensor, "*grid"],
        to_moving: Float[Tensor, "d dplus1"] | None = None,
        seen: Float[Tensor, "*moving"] | None = None,
        padding: str = "border",
    ) -> None:
        self.moving, self.fixed, self.inside = moving, fixed, inside
        self.to_moving, self.seen, self.padding = to_moving, seen, padding

    def warped(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch *grid"]:
        """`m o phi`."""
        image = self.moving.to(u)[None, None]
        return flow.warp(image, u, to_moving=self.to_moving, padding=self.padding)[:, 0]

    def left(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch *grid"]:
        """What the similarity leaves unexplained of f; here `f - m o phi`."""
        return self.fixed.to(u) - self.warped(u)

    def of(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch data"]:
        moved, fixed = self.warped(u), self.fixed.to(u)
        if self.seen is not None:
            weight = flow.warp(self.seen.to(u)[None, None], u, to_moving=self.to_moving, padding="zeros")[
                :, 0
            ]
            moved = fixed + weight * (moved - fixed)
        return moved[:, self.inside.to(u.device)]


def window_mean(images: Float[Tensor, "batch *grid"], side: int) -> Float[Tensor, "batch *grid"]:
    """Means over windows of `side` voxels centred at each voxel, of what lies inside the grid.

    Axis by axis: the window is a box, also where the border cuts it.
    """
    for axis in range(1, images.ndim):
        rows = images.movedim(axis, -1)
        flat = rows.reshape(-1, 1, rows.shape[-1])
        means = F.avg_pool1d(flat, side, 1, side // 2, count_include_pad=False)
        images = means.reshape(rows.shape).movedim(-1, axis)
    return images


class LocalCorrelation(Images):
    """`-1/2 beta [log(1 - cc^2) - log(1 - c^2)]` per voxel with c^2 the largest cc^2 that the nugget allows.

    cc^2 = cov^2 / ((var_f + nugget)(var_m + nugget)); invariant to gain and offset of either image where the
    nugget is small against its local variances (it is `nugget` times the variance of each image).
    """

    def __init__(self, *args: object, window: int = 9, beta: float = 1.0, nugget: float = 1e-3, **kw: object):
        super().__init__(*args, **kw)  # type: ignore[arg-type]
        self.window, self.beta = window, beta
        self.small_m = nugget * float(self.moving.double().var())
        self.small_f = nugget * float(self.fixed.double().var())

    def _local(self, moved: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Local means, the local variance of the moved image with its nugget, the covariance."""
        mean_m, mean_f = window_mean(moved, self.window), window_mean(fixed, self.window)
        variance = (window_mean(moved**2, self.window) - mean_m**2).clamp_min(0) + self.small_m
        return mean_m, mean_f, variance, window_mean(moved * fixed, self.window) - mean_m * mean_f

    def left(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch *grid"]:
        """f less its linear regression on m o phi in the window of each voxel."""
        moved, fixed = self.warped(u), self.fixed.to(u)[None]
        mean_m, mean_f, variance, cov = self._local(moved, fixed)
        return fixed - mean_f - cov / variance * (moved - mean_m)

    def of(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch data"]:
        moved, fixed = self.warped(u), self.fixed.to(u)[None]
        _, mean_f, total_m, cov = self._local(moved, fixed)
        var_f = (window_mean(fixed**2, self.window) - mean_f**2).clamp_min(0)
        total_f = var_f + self.small_f
        square = cov**2 / (total_m * total_f)
        best = var_f / total_f  # of moved = a fixed + b without the moving nugget
        term = -0.5 * self.beta * (torch.log1p(-square) - torch.log1p(-best))
        return term[:, self.inside.to(u.device)]

    def gaussian(self, u: Float[Tensor, "one d *grid"]) -> Weighted:
        """m o phi with weights whose squares are `beta` times the means over windows of a^2 / rho.

        a is the slope of f on m o phi in a window and rho the variance that it leaves: second derivatives of
        the term in m o phi, with a, the offset and rho held still at u.
        """
        moved, fixed = self.warped(u), self.fixed.to(u)[None]
        _, mean_f, total_m, cov = self._local(moved, fixed)
        total_f = (window_mean(fixed**2, self.window) - mean_f**2).clamp_min(0) + self.small_f
        share = (cov / total_m) ** 2 / (total_f - cov**2 / total_m).clamp_min(self.small_f)
        square = self.beta * window_mean(share * self.inside.to(u), self.window)
        images = Images(self.moving, self.fixed, self.inside, self.to_moving, self.seen, self.padding)
        return Weighted(images, square[0, self.inside.to(u.device)].sqrt())


def splines(values: Float[Tensor, "*shape"], bins: int) -> Float[Tensor, "*shape bins"]:
    """Cubic B-spline weights on `bins` centres of values in [0, 1]; each row adds up to 1."""
    centres = torch.arange(bins, dtype=values.dtype, device=values.device)
    t = (values[..., None] * (bins - 5) + 2 - centres).abs()
    inner = (4 - 6 * t**2 + 3 * t**3) / 6
    outer = (2 - t).clamp_min(0) ** 3 / 6
    return torch.where(t < 1, inner, outer)


class MutualInformation(Images):
    """`beta n [MI(m o phi, f) - H(f)]`, one term; Parzen histograms of cubic splines.

    Images are scaled to [0, 1] by their own extremes.
    """

    def __init__(self, *args: object, bins: int = 32, beta: float = 1.0, **kw: object):
        super().__init__(*args, **kw)  # type: ignore[arg-type]
        self.bins, self.beta = bins, beta
        self.low, self.high = float(self.moving.min()), float(self.moving.max())
        values = self.fixed[self.inside]
        scaled = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)
        self.rows = splines(scaled, bins)  # [voxels, bins]
        law = self.rows.double().mean(dim=0)
        self.entropy = -float((law * law.clamp_min(1e-300).log()).sum())

    def _scaled(self, moved: Tensor) -> Tensor:
        return ((moved - self.low) / max(self.high - self.low, 1e-12)).clamp(0, 1)

    def left(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch *grid"]:
        """f less its mean at the grey value of m o phi, in as many bins as the histogram has."""
        fixed = self.fixed.to(u)
        rows = []
        for moved in self._scaled(self.warped(u)):
            number = (moved * self.bins).long().clamp_max(self.bins - 1)
            total = torch.zeros(self.bins, dtype=u.dtype).index_add(0, number.flatten(), fixed.flatten())
            count = torch.bincount(number.flatten(), minlength=self.bins).clamp_min(1)
            rows.append(fixed - (total / count)[number])
        return torch.stack(rows)

    def of(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch data"]:
        scaled = self._scaled(self.warped(u)[:, self.inside.to(u.device)])
        joint = torch.einsum("nf,bnm->bfm", self.rows.to(u), splines(scaled, self.bins)) / len(self.rows)
        product = joint.sum(dim=1, keepdim=True) * joint.sum(dim=2, keepdim=True)
        ratio = joint.clamp_min(1e-12) / product.clamp_min(1e-12)
        information = (joint * ratio.log()).sum(dim=(1, 2))
        return (self.beta * len(self.rows) * (information - self.entropy))[:, None]


class Labels:
    """`beta log[(1 - e) m_f(x)(phi(x)) + e / L]` at the fixed voxels that count, m_l the warped one-hot maps.

    Args:
        moving, fixed: label numbers 0 .. L-1 on their grids.
        count: L.
        inside: fixed voxels that count.
        error: e, the share of wrong labels.
        beta: one over the voxels whose labels err together.
    """

    def __init__(
        self,
        moving: Int[Tensor, "*moving"],
        fixed: Int[Tensor, "*grid"],
        count: int,
        inside: Bool[Tensor, "*grid"],
        to_moving: Float[Tensor, "d dplus1"] | None = None,
        error: float = 0.05,
        beta: float = 0.1,
    ) -> None:
        self.maps = F.one_hot(moving.long(), count).movedim(-1, 0)
        self.inside, self.to_moving = inside, to_moving
        self.wanted = fixed[inside].long()
        self.error, self.beta, self.count = error, beta, count

    def of(self, u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch data"]:
        positions = flow.identity(tuple(u.shape[2:]), u.dtype, u.device) + u
        where = flow.carried(positions[:, :, self.inside.to(u.device)], self.to_moving)
        found = flow.sample_at(self.maps.to(u)[None], where)  # [batch, labels, voxels]
        index = self.wanted.to(u.device).expand(len(u), 1, -1)
        chance = (1 - self.error) * found.gather(1, index)[:, 0] + self.error / self.count
        return self.beta * chance.clamp_max(1).log()
