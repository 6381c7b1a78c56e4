"""Every linear sampler of the loop is its formula: one law, to 1e-9 of mean and covariance.

Dense Gaussian prior N(m, C) in five dimensions, two measurements, float64; the right-hand sides are the
methods' published (or documented) updates, written with dense inverses in numpy. Deterministic: nothing is
sampled. Not here, because they are not linear: DPS with more than one measurement divides by the residual's
norm (with one it is piecewise affine, and tested where the sign of the residual is fixed);
`likelihood_gradient` at its shipped limit (tested without it).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from invdiff.sampler.guidance.dps import DPS, LikelihoodGradient
from invdiff.sampler.guidance.moment_matching import MomentMatching
from invdiff.sampler.guidance.pigdm import PiGDM
from invdiff.sampler.guidance.proximal import DDS, DiffPIR, Proximal
from invdiff.sampler.guidance.stsl import STSL
from invdiff.sampler.guidance.unguided import Unguided
from invdiff.sampler.integrator import ExponentialMultistep, named
from invdiff.sampler.loop import DiffusionSampler
from tests.sampler.affine import Normals, assert_equal_laws, law
from tests.sampler.formulas import (
    DIM,
    LEVELS,
    NOISE,
    chain,
    corrected,
    deis,
    denoise,
    exponential_adams,
    gain,
    multistep_2m,
    order_one,
    problem,
    published_churn,
    start,
    unipc,
    variance,
)


def by_rule(rule):
    return lambda p: chain(p, rule, lambda x, sigma: denoise(p, x, sigma))


INTEGRATORS = {
    "ddim": (named("ddim"), by_rule(order_one(0.0))),
    "ddpm": (named("ddpm"), by_rule(order_one(1.0))),
    "ddim, eta .4": (named("ddim", 0.4), by_rule(order_one(0.4))),
    "published churn": (ExponentialMultistep(eta=0.7, churn="published"), by_rule(published_churn(0.7))),
    "2m": (named("2m"), by_rule(multistep_2m(0.0))),
    "2m_sde": (named("2m_sde"), by_rule(multistep_2m(1.0))),
    "2m_sde, eta .3": (named("2m_sde", 0.3), by_rule(multistep_2m(0.3))),
    "adams 2": (ExponentialMultistep(order=2), by_rule(exponential_adams(2))),
    "adams 3": (ExponentialMultistep(order=3), by_rule(exponential_adams(3))),
    "adams 2, eta .5": (ExponentialMultistep(order=2, eta=0.5), by_rule(exponential_adams(2, 0.5))),
    "adams 3, eta 1": (ExponentialMultistep(order=3, eta=1.0), by_rule(exponential_adams(3, 1.0))),
    "deis2": (named("deis2"), lambda p: deis(p, 2, Normals())),
    "deis3": (named("deis3"), lambda p: deis(p, 3, Normals())),
    "unipc2": (named("unipc2"), lambda p: unipc(p, 2, Normals())),
    "unipc3": (named("unipc3"), lambda p: unipc(p, 3, Normals())),
}


@pytest.mark.parametrize("name", INTEGRATORS)
def test_integrators_are_their_formulas(name):
    integrator, expected = INTEGRATORS[name]
    prior, measurement, p = problem()
    found = law(DiffusionSampler(LEVELS, Unguided(), integrator), prior, measurement, (DIM,))
    assert_equal_laws(found, expected(p))


# --- guidance: the estimate of E[x0 | x, y] ---------------------------------------------------------


def white(r2):
    """Both covariance models r^2 I: `argmin |y - A z|^2 / sigma_y^2 + |z - D|^2 / r^2`."""
    return lambda p, x, s: corrected(p, x, s, r2(p, s) * p.I, r2(p, s) * p.I)


ESTIMATES = {
    "moment_matching": (
        MomentMatching(tolerance=1e-14),
        lambda p, x, s: corrected(p, x, s, s**2 * gain(p, s), s**2 * gain(p, s)),
    ),
    "pigdm": (
        PiGDM(tolerance=1e-14),
        lambda p, x, s: corrected(p, x, s, s**2 * gain(p, s).T, variance(p, s) * p.I),
    ),
    "pigdm, unit variance": (
        PiGDM(variance="unit", tolerance=1e-14),
        lambda p, x, s: corrected(p, x, s, s**2 * gain(p, s).T, s**2 / (1 + s**2) * p.I),
    ),
    "proximal": (Proximal(tolerance=1e-14), white(variance)),
    "proximal, inflated": (
        Proximal(inflate=1.7, tolerance=1e-14),
        white(lambda p, s: 1.7 * variance(p, s)),
    ),
    "diffpir": (DiffPIR(weight=0.6, tolerance=1e-14), white(lambda p, s: s**2 / 0.6)),
    "likelihood_gradient": (
        LikelihoodGradient(limit=1e12),
        lambda p, x, s: (
            denoise(p, x, s) + s**2 / NOISE**2 * gain(p, s).T @ p.A.T @ (p.y - p.A @ denoise(p, x, s))
        ),
    ),
}
RULES = {
    "ddim": (named("ddim"), order_one(0.0)),
    "ddpm": (named("ddpm"), order_one(1.0)),
    "2m_sde": (named("2m_sde"), multistep_2m(1.0)),
    "published churn": (ExponentialMultistep(eta=0.5, churn="published"), published_churn(0.5)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ESTIMATES)
def test_guided_samplers_are_their_formulas(name, rule):
    guidance, estimate = ESTIMATES[name]
    integrator, step = RULES[rule]
    prior, measurement, p = problem()
    found = law(DiffusionSampler(LEVELS, guidance, integrator), prior, measurement, (DIM,))
    assert_equal_laws(found, chain(p, step, lambda x, sigma: estimate(p, x, sigma)))


# --- methods whose step is their own ----------------------------------------------------------------


def dds(p, gamma, eta):
    """`x' = z + sqrt(1 - eta^2) sigma' (x - D) / sigma + eta sigma' n`.

    (I + gamma A^T A) z = D + gamma A^T y, and the noise direction is the prior's: D, not z.
    """
    normals = Normals()
    x, solve = start(p, LEVELS[0], normals), np.linalg.inv(p.I + gamma * p.A.T @ p.A)
    for sigma, following in itertools.pairwise((*LEVELS, 0.0)):
        d = denoise(p, x, sigma)
        z = solve @ (d + gamma * p.A.T @ p.y)
        direction = math.sqrt(1 - eta**2) * following / sigma
        x = z + direction * (x - d) + eta * following * normals(DIM) if following else z
    return x


@pytest.mark.parametrize("gamma", [1.0, 4.0])
def test_dds_is_its_formula(gamma):
    """Five CG steps solve a system of two measurements: nothing is left of the early stop."""
    prior, measurement, p = problem()
    integrator = ExponentialMultistep(eta=0.85, churn="published")
    found = law(DiffusionSampler(LEVELS, DDS(gamma=gamma), integrator), prior, measurement, (DIM,))
    assert_equal_laws(found, dds(p, gamma, 0.85))


def dps(p, zeta, eta):
    """`x' = Step(x; D) + zeta c J^T A^T sign(e)`, c = sqrt((1 + sigma^2)(1 + sigma'^2)); D at the end."""
    normals, step = Normals(), order_one(eta)
    x = start(p, LEVELS[0], normals)
    for sigma, following in itertools.pairwise((*LEVELS, 0.0)):
        d = denoise(p, x, sigma)
        if not following:
            return d
        push = zeta * math.sqrt((1 + sigma**2) * (1 + following**2)) * gain(p, sigma).T @ p.A[0]
        x = step(x, [(sigma, d)], following, normals) + push
    return x


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dps_is_its_formula_where_the_residual_keeps_its_sign(eta):
    """One measurement: grad |e| = -J^T A^T sign(e), here with y so far away that e > 0 throughout."""
    prior, measurement, p = problem(rows=1, y=(1000.0,))
    found = law(DiffusionSampler(LEVELS, DPS(zeta=0.4), named("ddim", eta)), prior, measurement, (DIM,))
    assert_equal_laws(found, dps(p, 0.4, eta))


def stsl(p, inner, step, eta):
    """`inner` steps x <- x + a J^T A^T (y - A D), a = step / |A|^2, then one step from where they end."""
    normals, rule = Normals(), order_one(eta)
    x, length = start(p, LEVELS[0], normals), step / np.linalg.norm(p.A, 2) ** 2
    for sigma, following in itertools.pairwise((*LEVELS, 0.0)):
        for _ in range(inner):
            x = x + length * gain(p, sigma).T @ p.A.T @ (p.y - p.A @ denoise(p, x, sigma))
        d = denoise(p, x, sigma)
        x = rule(x, [(sigma, d)], following, normals) if following else d
    return x


@pytest.mark.parametrize("trace", [0.0, 0.02])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_stsl_is_its_formula(trace, eta):
    """With eta < 1, whose steps keep a part of x. The trace term is constant for a Gaussian prior."""
    prior, measurement, p = problem()
    method = STSL(inner=3, step=0.7, trace=trace)
    found = law(DiffusionSampler(LEVELS, method, named("ddim", eta)), prior, measurement, (DIM,))
    assert_equal_laws(found, stsl(p, 3, 0.7, eta))


def pigdm_published(p, eta):
    """`x' = Step(x; D) + r^2 J^T A^T (r^2 A A^T + sigma_y^2)^-1 (y - A D)`: added to the unguided step."""
    normals = Normals()
    x = start(p, LEVELS[0], normals)
    for sigma, following in itertools.pairwise((*LEVELS, 0.0)):
        d, r2 = denoise(p, x, sigma), variance(p, sigma)
        push = corrected(p, x, sigma, r2 * gain(p, sigma).T, r2 * p.I) - d
        std = following * math.sqrt(1 - (following / sigma) ** (2 * eta))
        step = d + math.sqrt(following**2 - std**2) / sigma * (x - d) + std * normals(DIM)
        x = push + (step if following else d)
    return x


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_pigdm_as_published_is_its_formula(eta):
    prior, measurement, p = problem()
    method = PiGDM(published=True, tolerance=1e-14)
    found = law(DiffusionSampler(LEVELS, method, named("ddim", eta)), prior, measurement, (DIM,))
    assert_equal_laws(found, pigdm_published(p, eta))
