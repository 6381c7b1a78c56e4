"""Jacobians of deformations: growth, shrinkage, folding.

    J(x) = det(I + du/dx),   in voxels or in mm alike (a similarity transform)

`central`: numpy.gradient's differences, as papers report folding. They miss some: a centre voxel does not
enter its own difference. `strict`: all 2^d determinants of one-sided differences (forward or backward along
each axis) are positive. In two dimensions that is a digital diffeomorphism; in three it is necessary, not
sufficient (Liu et al., arXiv 2212.06060, ask ten).
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def central_gradient(u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch d d *grid"]:
    """`du_c / dx_a` as [batch, c, a, *grid]: central differences, one-sided at the edges."""
    d = u.shape[1]
    return torch.stack(torch.gradient(u, dim=list(range(2, 2 + d))), dim=2)


def determinant(gradient: Float[Tensor, "batch d d *grid"]) -> Float[Tensor, "batch *grid"]:
    """`det(I + gradient)`, written out for two and three axes."""
    d = gradient.shape[1]
    g = [[gradient[:, c, a] + float(c == a) for a in range(d)] for c in range(d)]
    if d == 2:
        return g[0][0] * g[1][1] - g[0][1] * g[1][0]
    return (
        g[0][0] * (g[1][1] * g[2][2] - g[1][2] * g[2][1])
        - g[0][1] * (g[1][0] * g[2][2] - g[1][2] * g[2][0])
        + g[0][2] * (g[1][0] * g[2][1] - g[1][1] * g[2][0])
    )


def jacobian(u: Float[Tensor, "batch d *grid"]) -> Float[Tensor, "batch *grid"]:
    """`det(I + du/dx)` by central differences."""
    return determinant(central_gradient(u))


def folded_strict(u: Float[Tensor, "batch d *grid"]) -> Bool[Tensor, "batch *grid"]:
    """Voxels where some one-sided determinant is not positive."""
    d = u.shape[1]
    both = []
    for axis in range(2, 2 + d):
        step = torch.diff(u, dim=axis)
        first, last = step.narrow(axis, 0, 1), step.narrow(axis, step.shape[axis] - 1, 1)
        both.append((torch.cat([step, last], dim=axis), torch.cat([first, step], dim=axis)))
    bad = torch.zeros(u.shape[:1] + u.shape[2:], dtype=torch.bool, device=u.device)
    for sides in itertools.product((0, 1), repeat=d):
        gradient = torch.stack([both[axis][side] for axis, side in enumerate(sides)], dim=2)
        bad |= determinant(gradient) <= 0
    return bad
