"""The classical reconstructions that stand beside every result.

    FBP    filtered back-projection
    SIRT   x <- box( x + C A^T R (y - A x) ),  R and C one over row and column sums
    TV     argmin |A x - y|^2 / (2 |A|^2) + lambda |grad x|_1  over 0 <= x,  FISTA; of volumes also in 3-D

SIRT: Gregor & Benson, IEEE TMI 27:918, 2008; FISTA and the dual gradient projection for its TV step:
Beck & Teboulle, IEEE TIP 18:2419, 2009. All see the line integrals without noise weights, as such
codes do. Lambda follows pixels per view, by a rule fitted on held-out training slices of 128 and 256 pixels
at 8 to 60 views and at 90 degrees (`benchmarks/ct.py tune-baselines DATA` repeats such a choice).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import Estimates, Tick
from invdiff_ct.fbp import filtered_back_projection
from invdiff_ct.projector import Projector

TITLES = {"fbp": "FBP", "sirt": "SIRT", "tv": "TV", "tv_3d": "3-D TV"}


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


def default_weight(projector: Projector, noisy: bool = False) -> float:
    """Lambda by coverage: `2e-4 (N / V / 8.5)^1.75 (256 / N)^.7` for V views of N pixels.

    1e-3 below 150 degrees. Within .1 dB of the best of a grid in noise-free training data; noisy data take
    2e-4 at least.
    """
    angles, size = projector.geometry.angles, projector.size
    if projector.geometry.beam == "parallel" and angles.max() - angles.min() < 2.6 and len(angles) > 30:
        return 1e-3
    weight = 2e-4 * (size / len(angles) / 8.5) ** 1.75 * (256 / size) ** 0.7
    return float(max(weight, 2e-4) if noisy else weight)


def _gradient(x: Float[Tensor, "*shape"], axes: int) -> Float[Tensor, "axes *shape"]:
    """Forward differences along the last `axes` axes, zero at the end of each."""
    out = torch.zeros(axes, *x.shape, dtype=x.dtype)
    for k in range(axes):
        size = x.shape[-1 - k]
        out[k].narrow(-1 - k, 0, size - 1).copy_(
            x.narrow(-1 - k, 1, size - 1) - x.narrow(-1 - k, 0, size - 1)
        )
    return out


def _divergence(p: Float[Tensor, "axes *shape"]) -> Float[Tensor, "*shape"]:
    """Minus the adjoint of the gradient."""
    out = torch.zeros_like(p[0])
    for k in range(len(p)):
        size = out.shape[-1 - k]
        part = p[k].narrow(-1 - k, 0, size - 1)
        out.narrow(-1 - k, 0, size - 1).add_(part)
        out.narrow(-1 - k, 1, size - 1).sub_(part)
    return out


def total_variation(
    projector: Projector,
    sinogram: Float[Tensor, "*slice view detector"],
    weight: float | None = None,
    iterations: int = 100,
) -> Float[Tensor, "*slice 1 y x"]:
    """Isotropic TV by FISTA, of a slice or of a whole stack; ten dual projections a step, warm-started."""
    weight = default_weight(projector) if weight is None else weight
    operator = projector.scaled()
    y = operator.whiten(sinogram)[None]
    x = torch.zeros(1, *projector.event_shape, dtype=sinogram.dtype)
    axes = 2 if projector.slices is None else 3
    z, t = x, 1.0
    image = x[0].squeeze(-3).shape
    dual = torch.zeros(axes, *image, dtype=sinogram.dtype)
    for _ in range(iterations):
        target = (z + operator.adjoint(y - operator(z))).reshape(image)
        for _ in range(10):
            inner = (target + weight * _divergence(dual)).clamp_min(0)
            dual = dual + _gradient(inner, axes) / (4 * axes * weight)
            dual = dual / dual.square().sum(dim=0).sqrt().clamp_min(1)
        fresh = (target + weight * _divergence(dual)).clamp_min(0).reshape(x.shape)
        t_next = 0.5 * (1 + (1 + 4 * t * t) ** 0.5)
        z = fresh + (t - 1) / t_next * (fresh - x)
        x, t = fresh, t_next
    return x[0]


def all_baselines(
    projector: Projector,
    sinogram: Float[Tensor, "*slice view detector"],
    settings: BaselineSettings | None = None,
    tick: Tick = lambda: None,
    noisy: bool = False,
) -> Estimates:
    """Every baseline by its name, from line integrals in mm."""
    settings = settings or BaselineSettings()
    if settings.tv is None:
        settings = replace(settings, tv=default_weight(projector, noisy))
    plain = projector.unweighted()
    if plain.slices is not None:
        out = _slice_by_slice(plain, sinogram, settings, tick)
        out["tv_3d"] = total_variation(plain, sinogram, settings.tv, settings.tv_iterations)
        tick()
        return out
    out = {"fbp": fbp(plain, sinogram)}
    tick()
    out["sirt"] = sirt(plain, sinogram, settings.sirt_iterations)
    tick()
    out["tv"] = total_variation(plain, sinogram, settings.tv, settings.tv_iterations)
    tick()
    return out


def _slice_by_slice(
    projector: Projector,
    sinogram: Float[Tensor, "slice view detector"],
    settings: BaselineSettings,
    tick: Tick,
) -> Estimates:
    one = projector.single()
    parts = [all_baselines(one, lines, settings) for lines in sinogram]
    tick()
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
