"""Nonlinear operators and non-Gaussian noise in one and two dimensions, known by quadrature.

The priors are the mixtures P1 (one dimension) and P2 (two) of `toys`:

    magnitude          y = |x| + .5 e
    square             y = (x^2, saturating at 4) + .4 e
    laplace            y = x + Laplace(.3)
    quantised          y = round(x + .2 e)
    poisson exp        y ~ Poisson(2 exp(x) + .5)
    poisson-gaussian   y ~ Poisson(2 exp(x) + .5) + 1.5 e
    poisson affine     y ~ Poisson(max(4 + M x, 0) + .2), two counts of two unknowns
    rician             y = Rician magnitude of x in the plane, sigma = .4

The density is tabulated on a uniform grid: sums over it converge faster than any power of the cell
where it is smooth, and to 1e-6 at the kink of |x|.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invdiff.benchmark.known import Known
from invdiff.benchmark.problems import toy
from invdiff.benchmark.toys import Toy, plane, three_modes
from invdiff.measurement.likelihoods import (
    LaplaceNoise,
    PoissonGaussianNoise,
    PoissonNoise,
    QuantisedNoise,
    RicianNoise,
)
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise, Noise
from invdiff.measurement.nonlinear import Magnitude, Saturation
from invdiff.measurement.operator import Composed, FunctionOperator, Operator
from invdiff.prior.mixture import GaussianMixture

REACH = 9.0
POINTS = {1: 20_001, 2: 601}


def tabulated(prior: GaussianMixture, operator: Operator, noise: Noise, y: list[float]) -> Toy:
    """A problem of one or two unknowns with moments and evidence by quadrature."""
    dim = prior.means.shape[1]
    measurement = Measurement(operator, noise, torch.tensor(y, dtype=torch.float64))
    axis = torch.linspace(-REACH, REACH, POINTS[dim], dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(*[axis] * dim, indexing="ij"), dim=-1).reshape(-1, dim)
    log_joint = prior.log_density(grid) + measurement.log_likelihood(grid)
    weights = torch.softmax(log_joint, dim=0)
    mean = weights @ grid
    variance = weights @ (grid - mean) ** 2
    cell = 2 * REACH / (POINTS[dim] - 1)
    log_evidence = float(log_joint.logsumexp(dim=0)) + dim * math.log(cell)
    return Toy(prior, prior.log_density, measurement, mean, variance, log_evidence)


def affine(x: Tensor) -> Tensor:
    """Two rates of two unknowns, positive over almost all of P2."""
    return 4 + x @ torch.tensor([[1.0, -0.5], [0.5, 1.0]]).to(x)


def nonlinear_toys() -> dict[str, Toy]:
    """The problems by name."""
    line, points = three_modes(), plane()
    exponential, identity = FunctionOperator(torch.exp), FunctionOperator(lambda x: x)
    square = Composed(FunctionOperator(torch.square), Saturation(4.0, sharpness=2.0))
    radius = Composed(Magnitude(), FunctionOperator(lambda size: size[:, None]))
    dark = PoissonNoise(2.0, background=0.5)
    return {
        "magnitude": tabulated(line, FunctionOperator(torch.abs), GaussianNoise(0.5), [1.5]),
        "square": tabulated(line, square, GaussianNoise(0.4), [2.0]),
        "laplace": tabulated(line, identity, LaplaceNoise(0.3), [0.2]),
        "quantised": tabulated(line, identity, QuantisedNoise(0.2, 1.0), [2.0]),
        "poisson exp": tabulated(line, exponential, dark, [4.0]),
        "poisson-gaussian": tabulated(
            line, exponential, PoissonGaussianNoise(2.0, 1.5, background=0.5), [3.7]
        ),
        "poisson affine": tabulated(
            points, FunctionOperator(affine), PoissonNoise(1.0, background=0.2), [6.0, 3.0]
        ),
        "rician": tabulated(points, radius, RicianNoise(0.4), [1.6]),
    }


def nonlinear_problems() -> list[Known]:
    """The problems with exact draws from the grid."""
    return [toy(name, problem) for name, problem in nonlinear_toys().items()]
