"""Split Gibbs, DAPS and RED-diff against closed forms, and the laws they must obey.

Seeds are fixed; each statistical test states its false-alarm rate.
"""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement, simulate
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import FunctionOperator, MatrixOperator
from invdiff.prior.gaussian import GaussianPrior
from invdiff.sampler.daps import DAPS
from invdiff.sampler.likelihood import likelihood_score, posterior_draw
from invdiff.sampler.loop import draw
from invdiff.sampler.red_diff import REDdiff
from invdiff.sampler.schedule import karras, loguniform, vp_linear
from invdiff.sampler.split_gibbs import SplitGibbs

DOUBLE = torch.float64
DIM, NOISE = 8, 0.05
STD = torch.logspace(math.log10(0.05), math.log10(1.5), DIM, dtype=DOUBLE)


def problem(noise=NOISE):
    """Eight components of std .05 to 1.5, every other one measured."""
    prior = GaussianPrior.diagonal(torch.zeros(DIM, dtype=DOUBLE), STD**2)
    rows = torch.eye(DIM, dtype=DOUBLE)[::2]
    truth = prior.sample(1, torch.Generator().manual_seed(0))[0]
    return prior, simulate(MatrixOperator(rows), truth, noise, torch.Generator().manual_seed(1))


def blind(std):
    """A Gaussian prior of mean 3 and data that say nothing."""
    one = torch.ones(4, dtype=DOUBLE)
    prior = GaussianPrior.diagonal(3 * one, std**2 * one)
    return prior, Measurement(MatrixOperator(torch.eye(4, dtype=DOUBLE)), GaussianNoise(1e6), 0 * one)


def errors(x, exact):
    """Std ratio and bias in exact stds, of each component."""
    std = exact.covariance.diagonal().sqrt()
    return x.std(dim=0) / std, (x.mean(dim=0) - exact.mean) / std


# --- split Gibbs -------------------------------------------------------------------------------


def test_perturb_and_solve_draws_the_conditional_law():
    """Mean and covariance of 20 000 draws for a random A: six standard errors, false alarm 1e-7."""
    g = torch.Generator().manual_seed(3)
    rows = torch.randn(3, 5, generator=g, dtype=DOUBLE)
    measurement = Measurement(MatrixOperator(rows), GaussianNoise(0.4), torch.randn(3, generator=g).double())
    prior = GaussianPrior.diagonal(torch.full((5,), 0.7, dtype=DOUBLE), torch.full((5,), 0.9, dtype=DOUBLE))
    exact = prior.posterior(lambda x: x @ rows.mT, measurement.y, 0.4)

    class Center:
        """Draws it where a sampler would."""

        name, claim, steps = "center", "exact", 1

        def __call__(self, prior, measurement, shape, noise, progress=None):
            from invdiff.sampler.loop import Draws

            center = torch.full((len(noise.streams), *shape), 0.7, dtype=DOUBLE)
            return Draws(posterior_draw(measurement, center, 0.9, noise, 50, 1e-10, "center"))

    x = draw(Center(), prior, measurement, (5,), particles=range(20_000), dtype=DOUBLE).x
    root = exact.covariance.diagonal().sqrt()
    assert float(((x.mean(0) - exact.mean) / root).abs().max()) < 6 / math.sqrt(20_000)
    error = (x.mT.cov() - exact.covariance) / (root[:, None] * root)
    assert float(error.abs().max()) < 6 * math.sqrt(2 / 20_000)


def mixed():
    """Four components seen through a random matrix, so that A A^T is not a multiple of the identity."""
    prior = GaussianPrior.diagonal(torch.ones(4, dtype=DOUBLE), torch.tensor([0.2, 0.4, 0.8, 1.0]).double())
    rows = torch.randn(2, 4, generator=torch.Generator().manual_seed(6), dtype=DOUBLE)
    return prior, Measurement(MatrixOperator(rows), GaussianNoise(0.1), torch.tensor([2.0, -1.0]).double())


@pytest.mark.parametrize("make", [problem, mixed])
def test_split_gibbs_at_a_fixed_rho(make):
    """The x-marginal is the posterior of noise covariance sigma_y^2 + rho^2 A A^T, here rho = .5.

    1500 chains: standard error of a std ratio 1.8 %, of a mean 2.6 %; the bands are four of these and
    the 1 to 2 % of the x-step's discretisation: false alarm 2e-3.
    """
    (prior, measurement), rho = make(), 0.5
    rows, level = measurement.operator.matrix, measurement.noise.sigma
    sampler = SplitGibbs((rho,), rho_final=20, inner=24)
    x = draw(sampler, prior, measurement, rows.shape[1:], particles=range(1500), dtype=DOUBLE).x
    noise = level**2 * torch.eye(len(rows), dtype=DOUBLE) + rho**2 * rows @ rows.mT
    cross = prior.covariance() @ rows.mT
    gain = torch.linalg.solve(rows @ cross + noise, cross, left=False)
    std = (prior.covariance() - gain @ cross.mT).diagonal().sqrt()
    mean = prior.mean + gain @ (measurement.y - rows @ prior.mean)
    assert float((x.std(0) / std - 1).abs().max()) < 0.09, x.std(0) / std
    assert float(((x.mean(0) - mean) / std).abs().max()) < 0.12
    # and not the posterior itself: what is measured best is too wide by far
    exact = prior.posterior(lambda x: x @ rows.mT, measurement.y, level)
    assert float(((x @ rows.mT).var(0) / (rows @ exact.covariance @ rows.mT).diagonal()).max()) > 2


def test_split_gibbs_annealed():
    """rho down to sigma_y / 5: stds and means as in the module's docstring; 500 draws, SE 3.2 and 4.5 %."""
    prior, measurement = problem()
    sampler = SplitGibbs(loguniform(60, 10, 0.01))
    x = draw(sampler, prior, measurement, (DIM,), particles=range(500), dtype=DOUBLE).x
    rows = measurement.operator.matrix
    ratio, bias = errors(x, prior.posterior(lambda x: x @ rows.mT, measurement.y, NOISE))
    assert float((ratio - 1).abs().max()) < 0.18, ratio
    assert float(bias.abs().max()) < 0.3, bias


def test_split_gibbs_returns_the_prior_without_data():
    """4 components of 1000 draws: the mean std ratio has standard error 1.1 %; band 5 %, false alarm 1e-5."""
    prior, measurement = blind(2.0)
    x = draw(
        SplitGibbs(loguniform(12, 10, 1)), prior, measurement, (4,), particles=range(1000), dtype=DOUBLE
    ).x
    assert float(x.std(0).mean()) == pytest.approx(2.0, rel=0.05)
    assert float(x.mean()) == pytest.approx(3.0, abs=0.15)


# --- DAPS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_daps_returns_the_prior_without_data(std):
    """16 000 numbers: standard error of the variance 1.1 %; band 5 %, false alarm 1e-5."""
    prior, measurement = blind(std)
    x = draw(DAPS(karras(30, 100, 0.1)), prior, measurement, (4,), particles=range(4000), dtype=DOUBLE).x
    assert float(x.var(0).mean()) / std**2 == pytest.approx(1.0, abs=0.05)
    assert float(x.mean()) == pytest.approx(3.0, abs=0.04 * std)


def test_daps_as_published_returns_a_wider_prior():
    """Measured: 1.6 to 1.7 times the prior's variance with the paper's 5-step ODE (2 with an exact one)."""
    prior, measurement = blind(1.0)
    sampler = DAPS(karras(200, 100, 0.1), published=True)
    x = draw(sampler, prior, measurement, (4,), particles=range(500), dtype=DOUBLE).x
    assert 1.45 < float(x.var(0).mean()) < 2.1


def isotropic():
    one = torch.ones(4, dtype=DOUBLE)
    prior = GaussianPrior.diagonal(3 * one, 4 * one)
    rows = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    y = torch.tensor([1.0, -2.0], dtype=DOUBLE)
    return prior, rows, y, prior.posterior(lambda x: x @ rows.mT, y, 0.2)


@pytest.mark.parametrize("langevin", [False, True])
def test_daps_is_exact_for_an_isotropic_gaussian(langevin):
    """1000 draws, SE 2.2 and 3.2 %; bands: four of them and 2.5 % of Langevin's step; false alarm 2e-3."""
    prior, rows, y, exact = isotropic()
    operator = FunctionOperator(lambda x: x @ rows.mT) if langevin else MatrixOperator(rows)
    measurement = Measurement(operator, GaussianNoise(0.2), y)
    x = draw(DAPS(karras(12, 80, 0.02)), prior, measurement, (4,), particles=range(1000), dtype=DOUBLE).x
    ratio, bias = errors(x, exact)
    assert float((ratio - 1).abs().max()) < 0.12, ratio
    assert float(bias.abs().max()) < 0.13, bias


def test_daps_on_a_wide_spectrum():
    """Not isotropic, so approximate: stds within 10 %, means within .2 stds (measured .16) at 200 levels."""
    prior, measurement = problem()
    sampler = DAPS(karras(200, 80, 0.02))
    x = draw(sampler, prior, measurement, (DIM,), particles=range(1000), dtype=DOUBLE).x
    rows = measurement.operator.matrix
    ratio, bias = errors(x, prior.posterior(lambda x: x @ rows.mT, measurement.y, NOISE))
    assert float((ratio - 1).abs().max()) < 0.15, ratio
    assert float(bias.abs().max()) < 0.35, bias


def test_score_and_norm_of_a_linear_function():
    _, rows, y, _ = isotropic()
    measurement = Measurement(FunctionOperator(lambda x: x @ rows.mT), GaussianNoise(0.2), y)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    score, _, curvature = likelihood_score(measurement, x, x.flip(0), rounds=60)
    torch.testing.assert_close(score, (y - x @ rows.mT) @ rows / 0.04)
    torch.testing.assert_close(curvature, torch.linalg.matrix_norm(rows, 2).square().expand(3) / 0.04)


# --- RED-diff ----------------------------------------------------------------------------------


def test_red_diff_fits_the_data_and_has_no_spread():
    """A point: stds far below the posterior's where measured; the mean is near the data."""
    prior, measurement = problem()
    x = draw(REDdiff(vp_linear(500)), prior, measurement, (DIM,), particles=range(200), dtype=DOUBLE).x
    rows = measurement.operator.matrix
    ratio, _ = errors(x, prior.posterior(lambda x: x @ rows.mT, measurement.y, NOISE))
    assert float(ratio[::2].max()) < 0.5, ratio
    assert float(measurement.chi2(x).mean()) < 0.5
    assert REDdiff.claim == "point"


# --- laws of all three -------------------------------------------------------------------------

LEVELS = karras(10, 20, 0.02)
ALL = {
    "split_gibbs": SplitGibbs(loguniform(6, 5, 0.1), rho_final=2, inner=5),
    "split_gibbs, ancestral": SplitGibbs(loguniform(6, 5, 0.1), inner=5, order=1),
    "daps": DAPS(LEVELS),
    "daps, published": DAPS(LEVELS, published=True),
    "red_diff": REDdiff(LEVELS),
}


@pytest.mark.parametrize("name", ALL)
def test_a_sample_is_the_same_alone_or_among_16(name):
    prior, measurement = problem()
    many = draw(ALL[name], prior, measurement, (DIM,), particles=range(16), seed=5, dtype=DOUBLE).x
    one = draw(ALL[name], prior, measurement, (DIM,), particles=[11], seed=5, dtype=DOUBLE).x
    torch.testing.assert_close(many[11:12], one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_bytes_and_nothing_touched(name):
    prior, measurement = problem()
    y, matrix, state = measurement.y.clone(), measurement.operator.matrix.clone(), torch.get_rng_state()

    def run(seed):
        x = draw(ALL[name], prior, measurement, (DIM,), particles=range(3), seed=seed).x
        assert not x.requires_grad
        return hashlib.sha256(x.numpy().tobytes()).hexdigest()

    first = run(0)
    assert run(0) == first and run(1) != first
    assert torch.equal(measurement.y, y) and torch.equal(measurement.operator.matrix, matrix)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ALL)
def test_joint_scaling_of_data_operator_and_noise_changes_nothing(name):
    prior, measurement = problem()
    scaled = Measurement(
        MatrixOperator(7 * measurement.operator.matrix), GaussianNoise(7 * NOISE), 7 * measurement.y
    )
    a = draw(ALL[name], prior, measurement, (DIM,), particles=range(2), dtype=DOUBLE).x
    b = draw(ALL[name], prior, scaled, (DIM,), particles=range(2), dtype=DOUBLE).x
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_nan_is_raised_and_names_the_level(name):
    prior, measurement = problem()

    class Holed:
        card = prior.card

        def denoise(self, x, sigma):
            return prior.denoise(x, sigma) * (math.nan if float(sigma) < 1 else 1.0)

    with pytest.raises(FloatingPointError, match=r"at level \d.* not finite"):
        draw(ALL[name], Holed(), measurement, (DIM,), particles=range(2), dtype=DOUBLE)


@pytest.mark.parametrize("name", ALL)
def test_nonlinear_operators(name):
    """y = |x|: taken by those that need no adjoint, and refused with one sentence by the others."""
    prior, _ = problem()
    measurement = Measurement(
        FunctionOperator(lambda x: x.abs()), GaussianNoise(0.1), torch.ones(DIM, dtype=DOUBLE)
    )
    if name.startswith("split_gibbs"):
        with pytest.raises(InputError, match="needs a linear operator"):
            draw(ALL[name], prior, measurement, (DIM,), particles=range(2), dtype=DOUBLE)
        return
    x = draw(ALL[name], prior, measurement, (DIM,), particles=range(4), seed=2, dtype=DOUBLE).x
    alone = draw(ALL[name], prior, measurement, (DIM,), particles=[2], seed=2, dtype=DOUBLE).x
    assert bool(torch.isfinite(x).all())
    torch.testing.assert_close(x[2:3], alone, rtol=1e-9, atol=1e-9)


def test_daps_with_a_nonlinear_operator_has_the_right_two_modes():
    """x ~ N(0, 1), |x - .5| = 1 measured with sigma_y = .5: weight and moment by quadrature.

    500 draws, SE 2.2 % of the weight and 4 % of the moment. DAPS is approximate here: what it decides at
    high levels it decides by a Gaussian; the bands are its measured errors and four SE.
    """
    one = torch.ones(1, dtype=DOUBLE)
    prior = GaussianPrior.diagonal(0 * one, one)
    measurement = Measurement(FunctionOperator(lambda x: (x - 0.5).abs()), GaussianNoise(0.5), one)
    grid = torch.linspace(-6, 6, 20_001, dtype=DOUBLE)
    weights = torch.softmax(-0.5 * grid**2 - 2 * ((grid - 0.5).abs() - 1) ** 2, 0)
    x = draw(DAPS(karras(12, 80, 0.02)), prior, measurement, (1,), particles=range(500), dtype=DOUBLE).x
    assert float((x > 0.5).double().mean()) == pytest.approx(float(weights[grid > 0.5].sum()), abs=0.11)
    assert float(x.square().mean()) == pytest.approx(float(weights @ grid**2), abs=0.2)


def test_refusals():
    with pytest.raises(InputError, match="rho_final"):
        SplitGibbs((1.0,), rho_final=-1)
    with pytest.raises(InputError, match="order 1 or 2"):
        SplitGibbs((1.0,), order=3)
    with pytest.raises(InputError, match="langevin_step"):
        DAPS((1.0,), langevin_step=1.5)
    with pytest.raises(InputError, match="rate > 0"):
        REDdiff((1.0,), rate=0)
