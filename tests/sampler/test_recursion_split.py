"""Linear samplers that are not the loop are their formulas too: one law, to 1e-9 (see `test_recursion`).

Not here: RED-diff, whose Adam divides each component of the step by the root of its own running square,
so that it is linear for no prior.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from invdiff.sampler.daps import DAPS
from invdiff.sampler.plug_and_play import PlugAndPlay
from invdiff.sampler.schedule import karras, loguniform
from invdiff.sampler.split_gibbs import SplitGibbs
from invdiff.sampler.split_langevin import SplitLangevin
from tests.sampler.affine import Affine, Normals, assert_equal_laws, law
from tests.sampler.formulas import (
    DIM,
    NOISE,
    denoise,
    multistep_2m,
    order_one,
    problem,
    start,
    variance,
)


def posterior_draw(p, center, r2, normals):
    """A draw of exp(-|y - A z|^2 / 2 sigma_y^2 - |z - center|^2 / 2 r^2), by its mean and covariance."""
    precision = p.A.T @ p.A / NOISE**2 + p.I / r2
    covariance = np.linalg.inv(precision)
    mean = covariance @ (p.A.T @ p.y / NOISE**2 + (1 / r2) * center)
    return mean + np.linalg.cholesky(covariance) @ normals(DIM)


# --- DAPS -------------------------------------------------------------------------------------------


def daps(p, levels, published):
    """x0 by a posterior draw around x_hat, x' = x0 + sigma' n; published: x_hat by the ODE, r = sigma."""
    normals = Normals()
    x = start(p, levels[0], normals)
    for sigma, following in itertools.pairwise((*levels, 0.0)):
        center, r2 = denoise(p, x, sigma), variance(p, sigma)
        if published:
            center, r2 = x, sigma**2
            for here, after in itertools.pairwise(
                karras(6, sigma, 0.01)
            ):  # Euler: dx = (x - D) dsigma / sigma
                center = center + (after - here) / here * (center - denoise(p, center, here))
        x0 = posterior_draw(p, center, r2, normals)
        x = x0 + following * normals(DIM)
    return x0


@pytest.mark.parametrize("published", [False, True])
def test_daps_is_its_formula(published):
    prior, measurement, p = problem()
    levels = karras(6, 10.0, 0.05)
    found = law(DAPS(levels, published=published, tolerance=1e-14), prior, measurement, (DIM,))
    assert_equal_laws(found, daps(p, levels, published))


# --- split Gibbs ------------------------------------------------------------------------------------


def split_gibbs(p, sweeps, inner, ratio, order):
    """z | x by the exact conditional, x | z by `inner` calls of the reverse SDE: rho to ratio rho, then D."""
    normals, rule = Normals(), order_one(1) if order == 1 else multistep_2m(1.0)
    x = start(p, 0.0, normals)
    for rho in sweeps:
        x, past = posterior_draw(p, x, rho**2, normals), []
        levels = [rho * ratio ** (i / (inner - 1)) for i in range(inner)]
        for sigma, following in itertools.pairwise((*levels, 0.0)):
            past.append((sigma, denoise(p, x, sigma)))
            x = rule(x, past, following, normals) if following else past[-1][1]
    return x


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("schedule", "final"), [((0.5,), 4), (loguniform(4, 5.0, 0.1), 1)])
def test_split_gibbs_is_its_formula(order, schedule, final):
    """At a fixed rho, and annealed."""
    prior, measurement, p = problem()
    method = SplitGibbs(schedule, rho_final=final, inner=5, ratio=0.1, order=order, tolerance=1e-14)
    sweeps = (*schedule, *[schedule[-1]] * final)
    found = law(method, prior, measurement, (DIM,))
    assert_equal_laws(found, split_gibbs(p, sweeps, 5, 0.1, order))


# --- plug-and-play and split Langevin ---------------------------------------------------------------


def ridge(p, center, gamma):
    """`argmin gamma |y - A x|^2 + |x - center|^2`."""
    return np.linalg.inv(p.I + gamma * p.A.T @ p.A) @ (center + gamma * p.A.T @ p.y)


def plug_and_play(p, levels, trust=5.0, momentum=0.7):
    """d = D(z), x' = ridge at trust sigma^2 / sigma_y^2 around d, z' = x' + m (x' - x); a point."""
    x = z = ridge(p, np.zeros(DIM), trust * p.s2 / NOISE**2)
    for sigma in levels:
        fresh = ridge(p, denoise(p, z, sigma), trust * sigma**2 / NOISE**2)
        x, z = fresh, fresh + momentum * (fresh - x)
    return x


def test_plug_and_play_is_its_formula():
    prior, measurement, p = problem()
    levels = loguniform(6, 1.0, 0.05)
    found = law(PlugAndPlay(levels, trust=3.0, momentum=0.4), prior, measurement, (DIM,))
    assert found.root.size == 0
    expected = Affine(plug_and_play(p, levels, 3.0, 0.4), np.zeros((DIM, 0)))
    assert_equal_laws(found, expected)


def split_langevin(p, levels, momentum, first):
    """z' = P (x + m (z - z_) + sqrt(2 (1 - m)) rho n + gamma A^T (y + sqrt(k) sigma_y e)), x' = D(z')."""
    normals, m = Normals(), momentum
    x = z = Affine(first, np.zeros((DIM, normals.total)))
    speed = 0.0 * x
    for rho in levels:
        gamma, k = rho**2 / NOISE**2, 1.0
        if m:
            g = gamma * np.linalg.norm(p.A, 2) ** 2
            k = ((1 + g - m) * (2 + g + 2 * m) / (1 + g + m) - 2 * (1 - m)) / g
        center = x + m * speed + math.sqrt(2 * (1 - m)) * rho * normals(DIM)
        data = p.y + math.sqrt(k) * NOISE * normals(len(p.y))
        fresh = np.linalg.inv(p.I + gamma * p.A.T @ p.A) @ (center + gamma * p.A.T @ data)
        speed, z = fresh - z, fresh
        x = denoise(p, z, rho)
    return x


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("start_steps", [0, 4])
def test_split_langevin_is_its_formula(momentum, start_steps):
    """From least squares, and from the plug-and-play estimate."""
    prior, measurement, p = problem()
    levels = loguniform(6, 0.6, 0.05)
    method = SplitLangevin(levels, momentum, start_steps, tolerance=1e-14)
    first = ridge(p, np.full(DIM, p.m.mean()), 1e2 * p.s2 / NOISE**2)
    if start_steps:
        first = plug_and_play(p, loguniform(start_steps, 0.3, 0.03))
    ready = method.prepare(prior, measurement, (DIM,), torch.device("cpu"), torch.float64)
    found = law(ready, prior, measurement, (DIM,))
    assert_equal_laws(found, split_langevin(p, levels, momentum, first))
