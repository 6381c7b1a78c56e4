"""Draws and scores of the likelihood alone, which samplers that split prior and data share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.measurement.linear import expand
from invdiff.measurement.measurement import Measurement
from invdiff.sampler.keys import ParticleNoise


def posterior_draw(
    measurement: Measurement,
    center: Float[Tensor, "batch *event"],
    r2: float,
    noise: ParticleNoise,
    iterations: int,
    tolerance: float,
    sampler: str,
) -> Float[Tensor, "batch *event"]:
    """An exact draw of `exp(-|y - A z|^2 / 2 sigma_y^2 - |z - center|^2 / 2 r^2)`, by perturb-and-solve."""
    operator = measurement.linear(sampler)
    variance = measurement.noise.variance()
    y = measurement.y.to(center)[None]
    perturbed = center + r2**0.5 * noise.normal(tuple(center.shape[1:]))
    data = operator.adjoint(y + variance**0.5 * noise.normal(tuple(y.shape[1:])))
    solution = measurement.proximal(
        perturbed, r2 / variance, data=data, iterations=iterations, tolerance=tolerance
    )
    return solution.x


def likelihood_score(
    measurement: Measurement,
    x: Float[Tensor, "batch *event"],
    probe: Float[Tensor, "batch *event"],
    rounds: int,
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch *event"], Float[Tensor, "batch"]]:
    """`grad log p(y | x)`, and its curvature by power iteration from `probe`, each sample on its own.

    The curvature is the largest eigenvalue of the Fisher information `W^T W`, W the derivative of
    E[y | x] / std[y | x] with the std held: |A|^2 / sigma_y^2 for linear A and Gaussian noise.
    """
    jvp: Callable[..., tuple[Tensor, Tensor]] = torch.autograd.functional.jvp
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (score,) = torch.autograd.grad(measurement.log_likelihood(leaf).sum(), leaf)
    noise = measurement.noise
    with torch.no_grad():
        std = noise.variance_at(measurement.operator(leaf)).sqrt()

    def white(x: Tensor) -> Tensor:
        return noise.mean_at(measurement.operator(x)) / std

    for _ in range(rounds):
        length = probe.flatten(1).norm(dim=1)
        unit = probe / expand(torch.where(length > 0, length, 1.0), x)
        image = jvp(white, leaf, unit)[1]
        with torch.enable_grad():
            back = white(leaf)
        (probe,) = torch.autograd.grad(back, leaf, image)
    curvature = probe.flatten(1).norm(dim=1)
    # A probe that the operator does not see would stay zero for good.
    return score.to(x.dtype), torch.where(expand(curvature > 0, x), probe, unit), curvature
