"""NUTS and the Gibbs sampler of a level against closed forms and quadrature."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from invdiff.api import make_sampler
from invdiff.errors import InputError
from invdiff.measurement.likelihoods import LaplaceNoise, PoissonNoise
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import FunctionOperator, MatrixOperator
from invdiff.prior.gaussian import GaussianPrior
from invdiff.prior.mixture import GaussianMixture
from invdiff.sampler.reference import Gain, NoiseLevel, drawing, global_random_state, infer_level, nuts

DOUBLE = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=DOUBLE)


def linear():
    """Three unknowns, two data."""
    prior = GaussianPrior.diagonal(tensor(1, -1, 0), tensor(1, 0.2, 3))
    operator = MatrixOperator(tensor([1.0, 0.5, 0.0], [0.0, 1.0, 1.0]))
    return prior, Measurement(operator, GaussianNoise(0.3), tensor(1, 2))


# --- NUTS --------------------------------------------------------------------------------------


def assert_moments(chains, mean, covariance, divergences=0):
    """Means and variances within 4.5 standard errors by the effective sample size, R-hat below 1.03.

    False alarm below 1e-4 for the six comparisons of three components, twice that for the errors of the
    effective size itself.
    """
    x = chains.x.flatten(0, 1)
    variance = covariance.diagonal()
    z = (x.mean(0) - mean) / (variance / chains.effective).sqrt()
    assert float(z.abs().max()) < 4.5, z
    # The squares of draws mix more slowly than the draws: half the effective size.
    spread = (x.var(0) / variance - 1) / (4 / chains.effective).sqrt()
    assert float(spread.abs().max()) < 4.5, spread
    assert float(chains.r_hat.max()) < 1.03
    assert float(chains.effective.min()) > 100
    assert chains.divergences <= divergences


def test_nuts_on_a_gaussian():
    """With the prior at a level: N(m, C + sigma^2)."""
    sigma = 0.7
    prior, measurement = linear()
    chains = nuts(prior, measurement, (3,), samples=200, warmup=80, chains=2, seed=1, sigma=sigma)
    assert chains.x.shape == (2, 200, 3) and chains.x.dtype == DOUBLE
    widened = GaussianPrior.diagonal(prior.mean, prior.variance + sigma**2)
    exact = widened.posterior(lambda x: x @ measurement.operator.matrix.mT, measurement.y, 0.3)
    assert_moments(chains, exact.mean, exact.covariance)


def test_nuts_on_a_mixture():
    """Two modes that touch, seen through one number: weights, means and covariance of the exact mixture."""
    prior = GaussianMixture(tensor(0.6, 0.4), tensor([-1.0, 0.0], [1.0, 0.5]), tensor([0.5, 0.3], [0.4, 0.6]))
    rows = tensor([1.0, 0.5])
    measurement = Measurement(MatrixOperator(rows), GaussianNoise(0.8), tensor(0.3))
    chains = nuts(prior, measurement, (2,), samples=200, warmup=80, chains=2, seed=2)
    exact = prior.posterior(lambda x: x @ rows.mT, measurement.y, 0.8)
    mean = exact.mean()
    between = exact.means - mean
    covariance = torch.einsum("k,kij->ij", exact.weights, exact.covariances)
    covariance = covariance + torch.einsum("k,ki,kj->ij", exact.weights, between, between)
    assert_moments(chains, mean, covariance)


def test_nuts_on_counts():
    """x ~ N(0, 1), y ~ Poisson(2 e^x + .5): mean and variance by quadrature."""
    prior = GaussianPrior.diagonal(tensor(0.0), tensor(1.0))
    measurement = Measurement(FunctionOperator(torch.exp), PoissonNoise(2.0, background=0.5), tensor(4.0))
    chains = nuts(prior, measurement, (1,), samples=250, warmup=80, chains=2, seed=3)
    grid = torch.linspace(-6, 5, 4001, dtype=DOUBLE)[:, None]
    mean, std = moments(grid[:, 0], prior.log_density(grid) + measurement.log_likelihood(grid))
    assert_moments(chains, tensor(mean), tensor([std**2]), divergences=5)  # e^x makes some steps overshoot


def test_nuts_says_when_chains_disagree():
    """Modes 40 standard deviations apart: each chain stays where it began and R-hat is far above 1."""
    prior = GaussianMixture(tensor(0.5, 0.5), tensor([-20.0], [20.0]), tensor(1.0, 1.0))
    measurement = Measurement(
        MatrixOperator(torch.ones(1, 1, dtype=DOUBLE)), GaussianNoise(100.0), tensor(0.0)
    )
    chains = nuts(prior, measurement, (1,), samples=60, warmup=40, chains=4, seed=0)
    assert float(chains.r_hat.max()) > 2


def states():
    """Global generators; not that of `random`, from which the type checker of the tests draws too."""
    return torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64))  # noqa: NPY002


def test_nuts_repeats_and_leaves_the_global_generators_alone():
    prior, measurement = linear()
    before, settings = states(), {"samples": 15, "warmup": 15, "chains": 2}
    first = nuts(prior, measurement, (3,), seed=5, **settings).x
    assert all(torch.equal(a, b) for a, b in zip(before, states(), strict=True))
    torch.manual_seed(77)
    assert torch.equal(nuts(prior, measurement, (3,), seed=5, **settings).x, first)
    assert not torch.equal(nuts(prior, measurement, (3,), seed=6, **settings).x, first)
    kept = random.getstate()
    with pytest.raises(ZeroDivisionError), global_random_state():
        random.random()
        _ = 1 / 0
    assert random.getstate() == kept


def test_nuts_refuses_a_prior_without_a_density():
    prior, measurement = linear()

    class Denoiser:
        card = prior.card
        denoise = prior.denoise

    with pytest.raises(InputError, match="needs a prior with a log_density and gaussian has none"):
        nuts(Denoiser(), measurement, (3,), samples=2, warmup=2, chains=1)


# --- Gibbs over a level ------------------------------------------------------------------------


def field(size=8, gain=1.0, sigma=0.5, seed=0):
    """x ~ N(1, diag), y = gain A x + sigma e, A square and random."""
    g = torch.Generator().manual_seed(seed)
    prior = GaussianPrior.diagonal(torch.ones(3, dtype=DOUBLE), tensor(0.5, 1, 2))
    rows = torch.randn(size, 3, generator=g, dtype=DOUBLE)
    y = gain * rows @ prior.sample(1, g)[0] + sigma * torch.randn(size, generator=g, dtype=DOUBLE)
    return prior, Measurement(MatrixOperator(rows), GaussianNoise(sigma), y)


def exact_draw(prior):
    """x | y, level from the closed form."""

    def draw_x(measurement, seed):
        sigma = measurement.noise.sigma
        law = prior.posterior(measurement.operator.forward, measurement.y, sigma)
        root = torch.linalg.cholesky(law.covariance)
        g = torch.Generator().manual_seed(seed)
        return law.mean + root @ torch.randn(len(law.mean), generator=g, dtype=DOUBLE)

    return draw_x


def moments(grid, log_density):
    weights = torch.softmax(log_density, dim=0)
    mean = float(weights @ grid)
    return mean, math.sqrt(float(weights @ (grid - mean) ** 2))


def evidence(prior, measurement, gain, sigma):
    law = prior.posterior(lambda x: gain * measurement.operator.forward(x), measurement.y, sigma)
    return law.log_evidence


def assert_law(draws, mean, std, effective):
    """Mean and standard deviation of correlated draws within 4.5 standard errors: false alarm 1e-4."""
    assert abs(float(draws.mean()) - mean) < 4.5 * std / math.sqrt(effective)
    assert abs(float(draws.std()) / std - 1) < 4.5 / math.sqrt(effective / 2)


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (3.0, 1.0)])
def test_the_noise_level_has_its_marginal_law(a, b):
    """p(log sigma | y) by quadrature over the evidence; 2000 sweeps, effective size above 300."""
    prior, measurement = field()
    x, sigma = infer_level(
        NoiseLevel(a, b), measurement, exact_draw(prior), start=3.0, sweeps=2000, burn=50, seed=1
    )
    grid = torch.linspace(math.log(0.02), math.log(20), 600, dtype=DOUBLE)
    # p(sigma^2) ~ (sigma^2)^(-a-1) exp(-b / sigma^2), in log sigma.
    law = torch.tensor([evidence(prior, measurement, 1.0, math.exp(v)) for v in grid])
    law = law - 2 * a * grid - b * (-2 * grid).exp()
    assert_law(sigma.log(), *moments(grid, law), effective=300)
    assert x.shape == (2000, 3) and bool((sigma > 0).all())


def test_the_gain_has_its_marginal_law():
    """p(s | y) by quadrature; 2000 sweeps, effective size above 200."""
    prior, measurement = field(gain=1.6, seed=2)
    unknown = Gain(mean=1.0, std=0.5)
    _, gain = infer_level(unknown, measurement, exact_draw(prior), start=1.0, sweeps=2000, burn=50, seed=2)
    grid = torch.linspace(-1, 4, 400, dtype=DOUBLE)
    law = torch.tensor([evidence(prior, measurement, float(v), 0.5) for v in grid])
    mean, std = moments(grid, law - 0.5 * (grid - 1) ** 2 / 0.25)
    assert_law(gain, mean, std, effective=200)


def test_a_registered_sampler_draws_x():
    """Noise level with moment_twisted for x, one draw a sweep: the law of the exact draws, loosely."""
    prior, measurement = field()
    sampler = make_sampler(
        "moment_twisted", prior.card, particles=8, keep=1, steps=8, pilot=0, twist="gaussian"
    )
    draw_x = drawing(sampler, prior, (3,))
    _, sigma = infer_level(NoiseLevel(), measurement, draw_x, start=1.0, sweeps=50, burn=5, seed=4)
    _, exact = infer_level(NoiseLevel(), measurement, exact_draw(prior), start=1.0, sweeps=1000, seed=4)
    # 4.5 standard errors at an effective size of 15.
    error = float(exact.log().std()) / math.sqrt(15)
    assert abs(float(sigma.log().mean() - exact.log().mean())) < 4.5 * error


def test_a_gain_of_a_nonlinear_operator_and_the_same_seed():
    """A x held at (1, 2) and y = (2, 4): s ~ N(2, .04 / 5) but for the wide prior; 400 independent draws."""
    measurement = Measurement(FunctionOperator(torch.exp), GaussianNoise(0.2), tensor(2.0, 4.0))
    before, seen = torch.get_rng_state(), []

    def fixed(scaled, seed):
        seen.append(float(scaled.operator(torch.zeros(1, 2, dtype=DOUBLE))[0, 0]))  # s e^0
        return tensor(0.0, math.log(2.0))

    runs = [
        infer_level(Gain(0.0, 100.0), measurement, fixed, start=1.0, sweeps=400, burn=0, seed=7)[1]
        for _ in range(2)
    ]
    assert torch.equal(runs[0], runs[1]) and torch.equal(before, torch.get_rng_state())
    assert seen[:400] == [1.0, *runs[0][:-1].tolist()]  # each x is drawn under the gain of the sweep before
    # 4.5 standard errors: false alarm 1.4e-5.
    assert float(runs[0].mean()) == pytest.approx(2.0, abs=4.5 * math.sqrt(0.008 / 400))
    assert float(runs[0].std()) == pytest.approx(math.sqrt(0.008), rel=4.5 / math.sqrt(800))


def test_an_unknown_gain_needs_gaussian_noise():
    _, measurement = field()
    heavy = Measurement(measurement.operator, LaplaceNoise(0.3), measurement.y)
    with pytest.raises(
        InputError, match="unknown gain is inferred under Gaussian noise and this is LaplaceNoise"
    ):
        infer_level(Gain(), heavy, lambda m, seed: torch.zeros(3, dtype=DOUBLE), start=1.0, sweeps=2)
