"""The teleport is the closed form of a Gaussian prior's ODE, and is refused where it is none."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from invdiff.errors import InputError
from invdiff.prior.gaussian import GaussianPrior
from invdiff.prior.mixture import GaussianMixture
from invdiff.sampler.guidance.moment_matching import MomentMatching
from invdiff.sampler.guidance.unguided import Unguided
from invdiff.sampler.integrator import named
from invdiff.sampler.loop import DiffusionSampler, draw
from invdiff.sampler.noise_search import NoiseSearch
from invdiff.sampler.schedule import karras, loguniform
from invdiff.sampler.start import WarmStart
from invdiff.sampler.teleport import GaussianTeleport, teleport, teleported
from tests.sampler.affine import law
from tests.sampler.formulas import DIM, problem

DOUBLE = torch.float64


def states(shape, sigma, seed=0):
    return sigma * torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def fields():
    """Dense, diagonal and circulant."""
    yield problem()[0]
    yield GaussianPrior.diagonal(torch.linspace(-1, 1, 6).double(), torch.logspace(-2, 0.4, 6).double())
    k = torch.fft.fftfreq(8, 1 / 8, dtype=DOUBLE)
    spectrum = (1 + k[:, None] ** 2 + k**2) ** -1.5
    yield GaussianPrior.circulant(torch.full((2, 8, 8), 0.5, dtype=DOUBLE), spectrum)


@pytest.mark.parametrize("gaussian", [*fields()], ids=["dense", "diagonal", "circulant"])
def test_it_solves_the_probability_flow_ode(gaussian):
    """d x / d sigma = (x - D) / sigma: central difference of step 1e-4, error 1e-9 and less."""
    x = states(gaussian.mean.shape, 20.0)
    for sigma in (20.0, 2.0, 0.1):
        here = teleport(gaussian, x, 20.0, sigma)
        h = 1e-4 * sigma
        up, down = (teleport(gaussian, x, 20.0, sigma + step) for step in (h, -h))
        slope = (here - gaussian.denoise(here, sigma)) / sigma
        torch.testing.assert_close((up - down) / (2 * h), slope, rtol=1e-7, atol=1e-7)
    there = teleport(gaussian, teleport(gaussian, x, 20.0, 1.0), 1.0, 0.3)
    torch.testing.assert_close(there, teleport(gaussian, x, 20.0, 0.3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(teleport(gaussian, there, 0.3, 20.0), x, rtol=1e-10, atol=1e-10)


def test_the_solver_lands_where_the_teleport_does():
    """Third-order steps from 80: the difference falls by 8 when they double."""
    prior, _, _ = problem()
    x = states((DIM,), 80.0)
    there, errors = teleport(prior, x, 80.0, 0.05), []
    for steps in (100, 200):
        levels, integrator = loguniform(steps + 1, 80.0, 0.05), named("unipc2")
        state = integrator.start(x, 80.0)
        for sigma, following in itertools.pairwise(levels):
            state = integrator.step(state, prior.denoise(state.x, sigma), following, torch.zeros)
        errors.append(float((state.x - there).abs().max()))
    assert errors[1] < 2e-4 and errors[0] / errors[1] == pytest.approx(8, rel=0.25), errors


def test_the_start_has_its_law():
    """Mean and root of the teleported start in closed form, read off a one-level sampler."""
    prior, measurement, p = problem()
    largest = math.sqrt(np.linalg.eigvalsh(p.C).max())
    sigma, begin = 2.5 * largest, 80.0
    sampler = DiffusionSampler((sigma,), Unguided(), named("ddim"), GaussianTeleport(prior, begin))
    found = law(sampler, prior, measurement, (DIM,))
    values, vectors = np.linalg.eigh(p.C)
    scale = vectors @ np.diag(np.sqrt((sigma**2 + values) / (begin**2 + values))) @ vectors.T
    gain = p.C @ np.linalg.inv(p.C + sigma**2 * p.I)
    mean = p.m + gain @ scale @ (np.full(DIM, p.m.mean()) - p.m)
    covariance = (begin**2 + p.s2) * gain @ scale @ scale.T @ gain.T
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-10)


def largest_std(gaussian):
    return math.sqrt(float(gaussian.variance.max()))


def mixture():
    """Stds .2 to 1.1 in all, five modes, and the Gaussian of its moments."""
    g = torch.Generator().manual_seed(0)
    std = torch.logspace(math.log10(0.2), math.log10(1.5), 8, dtype=DOUBLE)
    means = 0.8 * torch.randn(5, 8, generator=g, dtype=DOUBLE) * std
    spread = 2 * torch.rand(5, 8, generator=g, dtype=DOUBLE)
    prior = GaussianMixture(torch.rand(5, generator=g, dtype=DOUBLE) + 0.2, means, 0.36 * std**2 * spread)
    mean = prior.weights @ prior.means
    centred = prior.means - mean
    second = torch.diag(prior.weights @ prior.variances) + (centred.mT * prior.weights) @ centred
    return prior, GaussianPrior.dense(mean, second)


@pytest.mark.parametrize(
    ("ratio", "low", "high"), [(5, 0.0, 0.001), (3, 0.0, 0.004), (2, 0.0, 0.012), (1, 0.03, 1)]
)
def test_how_far_a_mixture_is_from_it(ratio, low, high):
    """Root mean square of a component of the trajectory's error over sigma: fine at 2 stds, not at 1."""
    prior, gaussian = mixture()
    sigma = ratio * largest_std(gaussian)
    x = gaussian.mean + 80 * torch.randn(128, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    state, integrator = named("unipc3").start(x, 80.0), named("unipc3")
    for here, following in itertools.pairwise(loguniform(200, 80.0, sigma)):
        state = integrator.step(state, prior.denoise(state.x, here), following, torch.zeros)
    error = float((state.x - teleport(gaussian, x, 80.0, sigma)).square().mean().sqrt()) / sigma
    assert low <= error <= high


def test_a_sampler_skips_its_first_levels():
    """The law of the prior's ODE is kept, means to .01 stds, stds to .5 %; 25 of 60 calls are saved."""
    prior, measurement, p = problem()
    whole = DiffusionSampler(karras(60, 80.0, 0.002), Unguided(), named("2m"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = teleported(whole, prior)
    assert short.schedule == whole.schedule[25:]
    assert short.schedule[0] >= 3 * largest_std(prior) > short.schedule[1]
    std = np.sqrt(np.diag(p.C))
    for sampler in (whole, short):
        found = law(sampler, prior, measurement, (DIM,))
        assert np.abs((found.mean - p.m) / std).max() < 0.01
        assert np.abs(np.sqrt(np.diag(found.covariance)) / std - 1).max() < 0.005


def test_a_guided_sampler_is_warned_and_biased():
    prior, measurement, _ = problem()
    whole = DiffusionSampler(karras(60, 80.0, 0.002), MomentMatching(tolerance=1e-10), named("2m"))
    with pytest.warns(UserWarning, match="moment_matching loses what the data say"):
        short = teleported(whole, prior)
    exact = prior.posterior(
        lambda x: x @ measurement.operator.matrix.mT, measurement.y, measurement.noise.sigma
    )
    std = exact.covariance.diagonal().sqrt().numpy()
    bias = [
        np.abs((law(sampler, prior, measurement, (DIM,)).mean - exact.mean.numpy()) / std).max()
        for sampler in (whole, short)
    ]
    assert bias[0] < 0.05 and bias[1] == pytest.approx(0.545, abs=0.02)


def test_below_two_largest_stds_it_is_refused():
    prior, measurement, _ = problem()
    low = 1.9 * largest_std(prior)
    with pytest.raises(InputError, match="2 times the prior's largest std"):
        sampler = DiffusionSampler((low, 0.1), Unguided(), start=GaussianTeleport(prior, 80.0))
        draw(sampler, prior, measurement, (DIM,), particles=[0], dtype=DOUBLE)
    with pytest.raises(InputError, match="not valid"):
        sampler = DiffusionSampler((90.0, 0.1), Unguided(), start=GaussianTeleport(prior, 80.0))
        draw(sampler, prior, measurement, (DIM,), particles=[0], dtype=DOUBLE)
    with pytest.raises(InputError, match=r"ratio=1\.5"):
        teleported(DiffusionSampler(karras(9, 80, 0.1), Unguided()), prior, ratio=1.5)
    short = DiffusionSampler(karras(9, low, 0.1), Unguided())
    assert teleported(short, prior) is short  # nothing to skip


def test_samples_are_those_of_their_particle():
    """Alone or among 16, in float32 too; and another start is teleported like the prior's."""
    prior, measurement, _ = problem()
    sampler = teleported(DiffusionSampler(karras(20, 80.0, 0.05), Unguided(), named("ddpm")), prior)
    many = draw(sampler, prior, measurement, (DIM,), particles=range(16), seed=3, dtype=DOUBLE).x
    one = draw(sampler, prior, measurement, (DIM,), particles=[9], seed=3, dtype=DOUBLE).x
    torch.testing.assert_close(many[9:10], one, rtol=1e-12, atol=1e-12)
    single = draw(sampler, prior, measurement, (DIM,), particles=[9], seed=3)
    assert single.x.dtype == torch.float32
    warm = WarmStart(torch.full((DIM,), 2.0, dtype=DOUBLE))
    levels = sampler.schedule
    begun = GaussianTeleport(prior, 80.0, warm)
    other = draw(
        DiffusionSampler(levels, Unguided(), start=begun),
        prior,
        measurement,
        (DIM,),
        particles=[0],
        dtype=DOUBLE,
    )
    assert bool(torch.isfinite(other.x).all())


def test_a_search_keeps_the_start_of_its_sampler():
    """The noise of a teleported or a warm start is searched like the prior's."""
    prior, measurement, _ = problem()
    base = teleported(DiffusionSampler(karras(20, 80.0, 0.05), Unguided(), named("2m")), prior)
    second = lambda x, m: x[:, 1]  # noqa: E731
    for kind in ("random", "zero_order", "paths"):
        search = NoiseSearch(base, kind, candidates=8, verifier=second)
        best = draw(search, prior, measurement, (DIM,), particles=range(8), dtype=DOUBLE).x[:, 1].mean()
        plain = draw(base, prior, measurement, (DIM,), particles=range(8), dtype=DOUBLE).x[:, 1].mean()
        assert float(best) > float(plain) + 0.4, kind
