"""Nonlinear problems: their quadrature, and which particle methods are right on them."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.benchmark.nonlinear import nonlinear_problems, nonlinear_toys
from invdiff.errors import InputError
from invdiff.sampler import feynman_kac
from invdiff.sampler.weighting.ensemble import Ensemble
from invdiff.sampler.weighting.moment_twisted import MomentTwisted
from invdiff.sampler.weighting.steering import Steering
from invdiff.sampler.weighting.target import Target

CPU, DOUBLE = torch.device("cpu"), torch.float64
TOYS = nonlinear_toys()
GAUSSIAN = ("magnitude", "square")  # noise
SHARP = ("square", "quantised")


class Runs:
    """Errors of mean, variance and log evidence over independent filters."""

    def __init__(self, method, toy, filters=10, particles=1000):
        target = Target(toy.prior, toy.measurement, toy.shape, CPU, DOUBLE)
        model = method.model(target, torch.Generator().manual_seed(9))
        rows = []
        for seed in range(filters):
            settings = feynman_kac.Settings(particles)
            out = feynman_kac.run(model, settings, torch.Generator().manual_seed(seed))
            x = out.particles if isinstance(out.particles, torch.Tensor) else out.particles.x
            mean = out.weights @ x
            variance = out.weights @ (x - mean) ** 2
            evidence = torch.tensor([out.log_evidence - toy.log_evidence], dtype=DOUBLE)
            rows.append(
                torch.cat([(mean - toy.mean) / toy.variance.sqrt(), variance / toy.variance - 1, evidence])
            )
        table = torch.stack(rows)
        self.mean, self.variance = (float(part.abs().max()) for part in table.mean(0)[:-1].chunk(2))
        self.log_evidence = table[:, -1]
        ratios = self.log_evidence.exp()
        self.ratio, self.error = float(ratios.mean()), float(ratios.std()) / math.sqrt(filters)


# --- the problems ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_evidence_is_that_of_plain_monte_carlo(name):
    """mean p(y | x) over 200 000 prior draws, another route to log p(y).

    4.5 standard errors: false alarm 2e-4 for all.
    """
    toy = TOYS[name]
    x = toy.prior.sample(200_000, torch.Generator().manual_seed(0))
    ratios = (toy.measurement.log_likelihood(x) - toy.log_evidence).exp()
    error = float(ratios.std()) / math.sqrt(len(x))
    assert abs(float(ratios.mean()) - 1) < 4.5 * error < 0.05
    weights = ratios / ratios.sum()
    mean = weights @ x
    spread = ((weights[:, None] * (x - mean)) ** 2).sum(0).sqrt()
    assert float(((mean - toy.mean) / spread).abs().max()) < 4.5


def test_known_problems_draw_from_their_posteriors():
    """20 000 grid draws: moments within 4.5 standard errors (fourth moments from the draws)."""
    for known in nonlinear_problems():
        toy, x = TOYS[known.name], known.sample(20_000, torch.Generator().manual_seed(1))
        z = (x.mean(0) - toy.mean) / (toy.variance / len(x)).sqrt()
        assert float(z.abs().max()) < 4.5, known.name
        square = (x - x.mean(0)) ** 2
        z = (square.mean(0) - toy.variance) / (square.std(0) / math.sqrt(len(x)))
        assert float(z.abs().max()) < 4.5, known.name
        assert known.log_evidence == toy.log_evidence
        assert known.information > 0
        if known.name in GAUSSIAN:
            a, b, c, d = known.exact_sets(4, seed=1)
            assert known.distance(a, b) < 0.2 and known.distance(a + 1.0, b) > 3 * known.distance(c, d)
        assert 0 < known.statistics["chi2"](x) < 6, known.name


# --- the methods -------------------------------------------------------------------------------
# Limits are on |bias| over 10 filters of 1000 particles, in posterior standard deviations (mean) and
# relative (variance): the step error seen plus about five standard errors. Evidences are held to
# 5 standard errors of 10 filters (false alarm 7e-4 each) plus .03 of step error.


def right(runs):
    return (
        runs.mean < 0.12
        and runs.variance < 0.15
        and abs(runs.ratio - 1) < 5 * runs.error + 0.03
        and float(runs.log_evidence.std()) < 0.5
    )


@pytest.mark.parametrize("name", TOYS)
def test_moment_twisted_is_right_on_all(name):
    """Its weights take the true likelihood: a twist made for Gaussian noise costs particles, not truth."""
    runs = Runs(MomentTwisted(sigma_min=0.02), TOYS[name])
    assert right(runs), vars(runs)


@pytest.mark.parametrize("name", [name for name in TOYS if name not in (*SHARP, "poisson-gaussian")])
def test_steering_is_right_where_the_data_are_gentle(name):
    runs = Runs(Steering(sigma_max=20.0), TOYS[name])
    assert right(runs), vars(runs)


@pytest.mark.parametrize("name", SHARP)
def test_steering_fails_where_the_likelihood_is_sharp_and_its_evidence_says_so(name):
    """A rounded datum, or x^2 to 10 %, judged at D while modes are undecided: sd of log Z above .8."""
    runs = Runs(Steering(sigma_max=20.0), TOYS[name])
    assert not right(runs)
    assert float(runs.log_evidence.std()) > 0.8


@pytest.mark.parametrize("name", GAUSSIAN)
def test_ensemble_is_right_under_gaussian_noise(name):
    """Any operator. Its evidence is no exact ratio: off by .4 at 50 steps, of first order in the step."""
    few, many = (Runs(Ensemble(sigma_max=20.0, steps=steps), TOYS[name], 6) for steps in (50, 200))
    for runs in (few, many):
        assert runs.mean < 0.12 and runs.variance < 0.15, vars(runs)
    coarse, fine = (float(runs.log_evidence.mean()) for runs in (few, many))
    assert -0.6 < coarse < -0.25
    assert 0.1 < fine / coarse < 0.45


@pytest.mark.parametrize("name", ["laplace", "poisson affine"])
def test_ensemble_refuses_other_noise(name):
    """It weighs by |y - A x|^2 / (2 variance): it was wrong by a third and more, and refuses now."""
    with pytest.raises(InputError, match="Gaussian noise"):
        Runs(Ensemble(sigma_max=20.0), TOYS[name], 4)
