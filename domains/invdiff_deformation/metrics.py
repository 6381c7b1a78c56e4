"""How good a registration is: overlap, boundaries, correlation, folding; coverage of spreads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from invdiff_deformation.jacobian import folded_strict, jacobian

CONVENTION = (
    "dice: mean over the labels in either map, warped by the nearest voxel; ncc inside the mask; residual: "
    "root mean square over the fixed image's range; folded: det(I + du/dx) <= 0 by central differences (as "
    "papers do) and by all one-sided ones; |u| in mm, or voxels where no affine is known."
)


def dice(fixed: Int[np.ndarray, "*grid"], warped: Int[np.ndarray, "*grid"]) -> dict[int, float]:
    """`2 |A & B| / (|A| + |B|)` of every label above 0 that is in either map."""
    found = {}
    for label in np.union1d(np.unique(fixed), np.unique(warped)):
        if label > 0:
            a, b = fixed == label, warped == label
            found[int(label)] = float(2 * (a & b).sum() / (a.sum() + b.sum()))
    return found


def ncc(
    first: Float[np.ndarray, "*grid"], second: Float[np.ndarray, "*grid"], inside: Bool[np.ndarray, "*grid"]
) -> float:
    """Correlation inside a mask."""
    return float(np.corrcoef(first[inside].astype(np.float64), second[inside])[0, 1])


def surface(mask: Bool[np.ndarray, "*grid"]) -> Bool[np.ndarray, "*grid"]:
    """Voxels of a region that touch its outside."""
    edge: np.ndarray = mask & ~binary_erosion(mask)
    return edge


def signed_distance(mask: Bool[np.ndarray, "*grid"], spacing: Sequence[float]) -> Float[np.ndarray, "*grid"]:
    """mm to the boundary, negative inside; 0 lies between the voxels of both sides."""
    h = float(np.mean(spacing))
    outer = distance_transform_edt(~mask, sampling=spacing) - h / 2
    inner = distance_transform_edt(mask, sampling=spacing) - h / 2
    return np.where(mask, -inner, outer)


def field_figures(u: Float[Tensor, "d *grid"], spacing: Sequence[float]) -> dict[str, float]:
    """Folding and size of one displacement in voxels."""
    j = jacobian(u[None])[0]
    strict = folded_strict(u[None])[0]
    h = u.new_tensor(spacing).reshape(-1, *([1] * (u.ndim - 1)))
    size = (u * h).norm(dim=0)
    return {
        "folded_%": 100 * float((j <= 0).double().mean()),
        "folded_strict_%": 100 * float(strict.double().mean()),
        "min_det": float(j.min()),
        "mean_|u|": float(size.mean()),
        "max_|u|": float(size.max()),
    }


def coverage_of_draws(
    truth: Float[np.ndarray, "n"],
    draws: Float[np.ndarray, "draws n"],
    levels: Sequence[float] = (0.5, 0.9, 0.95),
    extra: float = 0.0,
) -> dict[str, float]:
    """Share of numbers inside the central interval of a further draw, by level.

    A normal law whose n draws are known has (truth - mean) / (s sqrt(1 + 1 / n)) distributed as Student's t
    with n - 1 degrees; `extra` (the std of the truth's own error) is added in quadrature.
    """
    from scipy.stats import t

    count = len(draws)
    spread = np.sqrt(draws.var(axis=0, ddof=1) * (1 + 1 / count) + extra**2)
    z = np.abs(truth - draws.mean(axis=0)) / np.maximum(spread, 1e-12)
    limits = {level: float(t.ppf(0.5 + level / 2, count - 1)) for level in levels}
    return {f"within {100 * level:.0f} %": float((z <= limit).mean()) for level, limit in limits.items()}
