"""Scalars of an image or a vector that calibration is judged by; never single-pixel ranks of whole images."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.measurement.measurement import Measurement
from invdiff.measurement.operator import LinearOperator

PROJECTIONS = 4


def functionals(
    x: Float[Tensor, "batch *event"], measurement: Measurement, seed: int = 0
) -> dict[str, Float[Tensor, "batch"]]:
    """Projections, region means, norm, energy that was not measured, and log p(y | x).

    The projections and regions belong to `seed`, not to the problem; the last two depend on the data.
    """
    flat = x.flatten(1).double()
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number in range(PROJECTIONS):
        direction = torch.randn(flat.shape[1], generator=generator, dtype=torch.float64)
        found[f"projection {number + 1}"] = flat @ (direction / direction.norm())
    if x.ndim >= 3:
        height, width = x.shape[-2:]
        for number in range(2):
            top = int(torch.randint(max(1, height * 3 // 4), (1,), generator=generator))
            left = int(torch.randint(max(1, width * 3 // 4), (1,), generator=generator))
            window = x[..., top : top + max(1, height // 4), left : left + max(1, width // 4)]
            found[f"region mean {number + 1}"] = window.flatten(1).double().mean(dim=1)
    else:
        half = max(1, flat.shape[1] // 2)
        found["mean of the first half"] = flat[:, :half].mean(dim=1)
    found["norm"] = flat.norm(dim=1)
    with torch.no_grad():
        if isinstance(measurement.operator, LinearOperator):
            found["unmeasured energy"] = unmeasured(x, measurement)
        found["log p(y | x)"] = measurement.log_likelihood(x)
    return found


def unmeasured(x: Float[Tensor, "batch *event"], measurement: Measurement) -> Float[Tensor, "batch"]:
    """|x - P x|^2 with P the (regularised) projection on what the operator sees."""
    operator = measurement.linear("unmeasured energy")
    norm = operator.norm(tuple(x.shape[1:]), x.device, x.dtype)
    gamma = 1e3 / max(norm, 1e-12) ** 2
    seen = measurement.proximal(torch.zeros_like(x), gamma, data=operator.normal(x), iterations=100).x
    return (x - seen).flatten(1).double().square().sum(dim=1)
