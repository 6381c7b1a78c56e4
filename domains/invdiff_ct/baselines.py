"""The classical reconstructions that stand beside every result.

    FBP    filtered back-projection
    SIRT   x <- box( x + C A^T R (y - A x) ),  R and C one over row and column sums
    TV     argmin |A x - y|^2 / (2 |A|^2) + lambda |grad x|_1  over 0 <= x,  FISTA

SIRT: Gregor & Benson, IEEE TMI 27:918, 2008; FISTA and the dual gradient projection for its TV step:
Beck & Teboulle, IEEE TIP 18:2419, 2009. All see the line integrals without noise weights, as such
codes do. Lambda by the number of views was chosen on training slices at 30 and 60 views and at 90 degrees
(`benchmarks/ct.py tune-baselines DATA` repeats such a choice).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import Estimates, Tick
from invdiff_ct.fbp import filtered_back_projection
from invdiff_ct.projector import Projector

TITLES = {"fbp": "FBP", "sirt": "SIRT", "tv": "TV"}


@dataclass(frozen=True)
class BaselineSettings:
    """`tv`: lambda, None by the number of views; iteration counts."""

    tv: float | None = None
    sirt_iterations: int = 100
    tv_iterations: int = 100


def fbp(projector: Projector, sinogram: Float[Tensor, "view detector"]) -> Float[Tensor, "1 y x"]:
    """Filtered back-projection of line integrals, clipped at air."""
    image = filtered_back_projection(
        sinogram.double().numpy(), projector.geometry, projector.size, projector.pixel_mm
    )
    return torch.from_numpy(image).to(sinogram.dtype)[None]


def sirt(
    projector: Projector, sinogram: Float[Tensor, "view detector"], iterations: int = 100
) -> Float[Tensor, "1 y x"]:
    """Simultaneous iterative reconstruction in the box [0, 1], from zero."""
    x = torch.zeros(1, *projector.event_shape, dtype=sinogram.dtype)
    rows = projector(torch.ones_like(x))
    columns = projector.adjoint(torch.ones_like(sinogram)[None])
    rows = torch.where(rows > 0, 1 / rows.clamp_min(1e-6), 0.0)
    columns = torch.where(columns > 0, 1 / columns.clamp_min(1e-6), 0.0)
    for _ in range(iterations):
        step = projector.adjoint(rows * (sinogram[None] - projector(x)))
        x = (x + columns * step).clamp(0, 1)
    return x[0]


def default_weight(projector: Projector) -> float:
    """Lambda by coverage: 5e-4 at 30 views, 2e-4 from 60 on, 1e-3 below 150 degrees."""
    angles = projector.geometry.angles
    if projector.geometry.beam == "parallel" and angles.max() - angles.min() < 2.6 and len(angles) > 30:
        return 1e-3
    return float(max(2e-4, 5e-4 * (30 / len(angles)) ** 1.32))


def _gradient(x: Float[Tensor, "y x"]) -> Float[Tensor, "2 y x"]:
    out = torch.zeros(2, *x.shape, dtype=x.dtype)
    out[0, :-1] = x[1:] - x[:-1]
    out[1, :, :-1] = x[:, 1:] - x[:, :-1]
    return out


def _divergence(p: Float[Tensor, "2 y x"]) -> Float[Tensor, "y x"]:
    """Minus the adjoint of the gradient."""
    out = torch.zeros_like(p[0])
    out[:-1] += p[0, :-1]
    out[1:] -= p[0, :-1]
    out[:, :-1] += p[1, :, :-1]
    out[:, 1:] -= p[1, :, :-1]
    return out


def total_variation(
    projector: Projector,
    sinogram: Float[Tensor, "view detector"],
    weight: float | None = None,
    iterations: int = 100,
) -> Float[Tensor, "1 y x"]:
    """Isotropic TV by FISTA; each TV step is ten dual projections, warm-started."""
    weight = default_weight(projector) if weight is None else weight
    operator = projector.scaled()
    y = operator.whiten(sinogram)[None]
    x = torch.zeros(1, *projector.event_shape, dtype=sinogram.dtype)
    z, t = x, 1.0
    dual = torch.zeros(2, projector.size, projector.size, dtype=sinogram.dtype)
    for _ in range(iterations):
        target = (z + operator.adjoint(y - operator(z)))[0, 0]
        for _ in range(10):
            inner = (target + weight * _divergence(dual)).clamp_min(0)
            dual = dual + _gradient(inner) / (8 * weight)
            dual = dual / dual.square().sum(dim=0).sqrt().clamp_min(1)
        fresh = (target + weight * _divergence(dual)).clamp_min(0)[None, None]
        t_next = 0.5 * (1 + (1 + 4 * t * t) ** 0.5)
        z = fresh + (t - 1) / t_next * (fresh - x)
        x, t = fresh, t_next
    return x[0]


def all_baselines(
    projector: Projector,
    sinogram: Float[Tensor, "view detector"],
    settings: BaselineSettings | None = None,
    tick: Tick = lambda: None,
) -> Estimates:
    """Every baseline by its name, from line integrals in mm."""
    settings = settings or BaselineSettings()
    plain = projector.unweighted()
    out = {"fbp": fbp(plain, sinogram)}
    tick()
    out["sirt"] = sirt(plain, sinogram, settings.sirt_iterations)
    tick()
    out["tv"] = total_variation(plain, sinogram, settings.tv, settings.tv_iterations)
    tick()
    return out
