"""Particle methods against posteriors known in closed form, and their controls, which must fail."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from invdiff.api import make_sampler, sample
from invdiff.benchmark import toys
from invdiff.benchmark.verify import Unweighted
from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import FunctionOperator, MatrixOperator
from invdiff.prior.gaussian import GaussianPrior
from invdiff.sampler import feynman_kac
from invdiff.sampler.loop import draw
from invdiff.sampler.weighting.ensemble import Ensemble
from invdiff.sampler.weighting.lookahead import Lookahead
from invdiff.sampler.weighting.moment_twisted import MomentTwisted
from invdiff.sampler.weighting.steering import Steering
from invdiff.sampler.weighting.target import Target
from invdiff.sampler.weighting.twisted import Twisted

CPU, DOUBLE = torch.device("cpu"), torch.float64


def build(method, prior, measurement, shape):
    target = Target(prior, measurement, shape, CPU, DOUBLE)
    return method.model(target, torch.Generator().manual_seed(9))


def moments(model, particles, seed, threshold=0.5):
    """Weighted mean, variance and log evidence of one filter."""
    out = feynman_kac.run(
        model, feynman_kac.Settings(particles, threshold), torch.Generator().manual_seed(seed)
    )
    x = out.particles if isinstance(out.particles, torch.Tensor) else out.particles.x
    mean = out.weights @ x
    return mean, out.weights @ (x - mean) ** 2, out.log_evidence


# --- linear-Gaussian: exact law, exact evidence ------------------------------------------------


def line(noise=0.3):
    """x ~ N(0, 1), y = x + noise e = 1.1."""
    one = torch.ones(1, dtype=DOUBLE)
    prior = GaussianPrior.diagonal(0 * one, one)
    return prior, Measurement(MatrixOperator(one[:, None]), GaussianNoise(noise), 1.1 * one)


def ancestral_variance(levels):
    """Variance of x0 = D at the end of the unguided ancestral chain for x0 ~ N(0, 1)."""
    variance = 1 + levels[0] ** 2
    for a, b in itertools.pairwise(levels):
        factor = (1 + b**2) / (1 + a**2)
        variance = factor**2 * variance + b**2 * (1 - b**2 / a**2)
    return variance / (1 + levels[-1] ** 2) ** 2


STEPS = 12
CHAIN = {
    "twisted": Twisted(steps=STEPS, sigma_max=10, sigma_min=0.05),
    "twisted, pigdm": Twisted(steps=STEPS, sigma_max=10, sigma_min=0.05, proposal="pigdm"),
    "twisted, unit variance": Twisted(steps=STEPS, sigma_max=10, sigma_min=0.05, variance="unit"),
    "twisted, prior proposal": Twisted(steps=STEPS, sigma_max=10, sigma_min=0.05, proposal="prior"),
    "steering": Steering(steps=STEPS, sigma_max=10, sigma_min=0.05),
    "steering, sum, every 5": Steering(steps=STEPS, sigma_max=10, sigma_min=0.05, every=5, potential="sum"),
    "steering, maximum": Steering(steps=STEPS, sigma_max=10, sigma_min=0.05, every=4, potential="maximum"),
    "lookahead": Lookahead(steps=STEPS, sigma_max=10, sigma_min=0.05, candidates=4),
}


def chain_evidence(model, noise=0.3):
    """Evidence of y under the discretised prior of the model's levels."""
    variance = ancestral_variance(model.levels) + noise**2
    return math.exp(-0.5 * 1.1**2 / variance) / math.sqrt(2 * math.pi * variance)


@pytest.mark.parametrize("name", [name for name in CHAIN if name != "lookahead"])
def test_evidence_is_unbiased_for_the_discretised_prior(name):
    """mean(w) = N(y; 0, V + sigma_y^2), V of the 12-step chain in closed form; 40 000 particles.

    Never resampled, so that the particles are independent; |z| < 4 for eight methods: false alarm 5e-4.
    """
    prior, measurement = line()
    model = build(CHAIN[name], prior, measurement, (1,))
    settings = feynman_kac.Settings(40_000, threshold=0)
    out = feynman_kac.run(model, settings, torch.Generator().manual_seed(4))
    ratios = out.log_weights.exp() / chain_evidence(model)
    error = float(ratios.std()) / 200
    assert abs(float(ratios.mean()) - 1) < 4 * error, (float(ratios.mean()), error)
    assert error < 0.02


@pytest.mark.parametrize(("name", "noise"), [("twisted, prior proposal", 0.3), ("lookahead", 1.0)])
def test_evidence_is_unbiased_with_resampling(name, noise):
    """300 filters of 16 that resample at ESS < N/2; |z| < 4: false alarm 1e-4."""
    prior, measurement = line(noise)
    model = build(CHAIN[name], prior, measurement, (1,))
    ratios = torch.tensor([math.exp(moments(model, 16, seed)[2]) for seed in range(300)])
    ratios = ratios / chain_evidence(model, noise)
    error = float(ratios.std()) / math.sqrt(300)
    assert abs(float(ratios.mean()) - 1) < 4 * error < 0.2, (float(ratios.mean()), error)


def test_dropped_weights_are_caught():
    """Weights dropped where the ESS is fine (as in released steering code) miss the evidence."""
    prior, measurement = line()
    model = build(CHAIN["twisted"], prior, measurement, (1,))
    exact = chain_evidence(model)
    ratios = []
    for seed in range(200):
        g, total = torch.Generator().manual_seed(seed), 0.0
        particles, logs = model.start(16, g)
        for k in range(model.steps):
            share = torch.softmax(logs, 0)
            if 1 / float((share**2).sum()) < 8:
                total += float(torch.logsumexp(logs, 0)) - math.log(16)
                chosen = torch.multinomial(share, 16, replacement=True, generator=g)
                particles = feynman_kac.gather(particles, chosen)
            particles, logs = model.move(k, particles, g)  # forgets what was carried
        ratios.append(math.exp(total + float(torch.logsumexp(logs, 0)) - math.log(16)) / exact)
    values = torch.tensor(ratios)
    assert abs(float(values.mean()) - 1) > 10 * float(values.std()) / math.sqrt(200)


def test_moment_twisted_is_exact_for_an_isotropic_gaussian():
    """Kernel, proposal and last jump are all exact there: any number of steps, no weight variance."""
    one = torch.ones(6, dtype=DOUBLE)
    prior = GaussianPrior.diagonal(3 * one, 4 * one)
    rows = torch.randn(2, 6, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    y = torch.tensor([1.0, -2.0], dtype=DOUBLE)
    measurement = Measurement(MatrixOperator(rows), GaussianNoise(0.2), y)
    exact = prior.posterior(lambda x: x @ rows.mT, y, 0.2)
    for steps in (5, 30):
        method = MomentTwisted(steps=steps, pilot=0, twist="gaussian", spread=50)
        model = build(method, prior, measurement, (6,))
        mean, variance, evidence = moments(model, 4000, 1)
        std = exact.covariance.diagonal().sqrt()
        assert abs(evidence - exact.log_evidence) < 0.01
        assert float(((mean - exact.mean) / std).abs().max()) < 0.08  # 5 standard errors
        assert float((variance / std**2 - 1).abs().max()) < 0.12


def test_moment_twisted_on_a_wide_spectrum():
    """Variances .01 to 10: the step error of the kernel is below 3 % in variance at 60 steps."""
    variances = torch.logspace(-2, 1, 12, dtype=DOUBLE)
    prior = GaussianPrior.diagonal(0 * variances, variances)
    rows = torch.randn(3, 12, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    y = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
    measurement = Measurement(MatrixOperator(rows), GaussianNoise(0.1), y)
    exact = prior.posterior(lambda x: x @ rows.mT, y, 0.1)
    model = build(MomentTwisted(steps=60, twist="gaussian", sigma_min=0.02), prior, measurement, (12,))
    mean, variance, evidence = moments(model, 8000, 3)
    assert abs(evidence - exact.log_evidence) < 0.06
    total = exact.covariance.diagonal()
    assert abs(float(variance.sum() / total.sum()) - 1) < 0.05
    assert float(((mean - exact.mean) ** 2 / total).mean()) < 0.02


# --- mixtures: the Feynman-Kac table -----------------------------------------------------------

LEVELS = toys.levels(4.0, 150)
SHORT = toys.levels(1.0, 120)
PATH = {"levels": LEVELS, "final": False}
P, Q1, Q2 = toys.three_modes(), toys.first_factor(), toys.second_factor()
# name: toy, method, limits on |bias| of mean and variance at 10 filters of 3000.
# The limits are 5 standard errors plus the step error seen at 150 levels; the table of
# `invdiff verify --full` has the slopes in N.
PASSES = {
    "AFDPS, eta 1/2": (toys.fk1d(), Ensemble(temper=0, **PATH), 0.03, 0.06),
    "AFDPS, eta 1/2, tempered": (toys.fk1d(), Ensemble(**PATH), 0.03, 0.06),
    "AFDPS, eta 0": (toys.fk1d(), Ensemble(temper=0, guidance=0.0, **PATH), 0.03, 0.06),
    "clean, eta 1": (
        toys.fk1d_clean(),
        Ensemble(temper=0, guidance=1.0, levels=SHORT, final=False),
        0.08,
        0.08,
    ),
    "clean, eta 3/2": (
        toys.fk1d_clean(),
        Ensemble(temper=0, guidance=1.5, levels=SHORT, final=False),
        0.08,
        0.08,
    ),
    "clean, ODE": (toys.fk1d_clean(), Ensemble(temper=0, noise=0.0, levels=SHORT, final=False), 0.08, 0.08),
    "two dimensions": (
        toys.fk2d(),
        Ensemble(temper=0, levels=toys.levels(1.5, 150), final=False),
        0.06,
        0.06,
    ),
    "FKC, annealed 2": (toys.composed((P, 2.0)), Ensemble(noise=2.0, **PATH), 0.08, 0.10),
    "FKC, annealed 1/2": (toys.composed((P, 0.5)), Ensemble(**PATH), 0.07, 0.12),
    "FKC, product": (toys.composed((Q1, 1.0), (Q2, 1.0)), Ensemble(noise=2.0, **PATH), 0.05, 0.09),
    "FKC, guidance 1.75": (toys.composed((Q1, -0.75), (Q2, 1.75)), Ensemble(**PATH), 0.05, 0.06),
    "steering, difference": (toys.fk1d(), Steering(levels=LEVELS), 0.05, 0.09),
    "steering, maximum": (toys.fk1d(), Steering(levels=LEVELS, potential="maximum"), 0.05, 0.09),
    "lookahead, 5": (toys.fk1d(), Lookahead(levels=LEVELS, candidates=5), 0.05, 0.09),
    "moment-twisted": (toys.fk1d(), MomentTwisted(sigma_min=0.02), 0.03, 0.05),
    "twisted": (toys.fk1d(), Twisted(sigma_max=30, steps=150), 0.04, 0.06),
}


def bias(toy, model, particles=3000):
    found = [moments(model, particles, seed) for seed in range(10)]
    mean = torch.stack([one[0] for one in found]).mean(0) - toy.mean
    variance = torch.stack([one[1] for one in found]).mean(0) - toy.variance
    return float(mean.abs().max()), float(variance.abs().max())


@pytest.mark.parametrize("name", PASSES)
def test_consistent_methods_reach_the_target(name):
    toy, method, mean_limit, variance_limit = PASSES[name]
    mean, variance = bias(toy, build(method, toy.prior, toy.measurement, toy.shape))
    assert mean < mean_limit and variance < variance_limit, (mean, variance)


@pytest.mark.parametrize(
    "name",
    [n for n in PASSES if not n.startswith(("steering", "lookahead", "moment-twisted", "twisted"))],
)
def test_the_same_proposals_without_weights_fail(name):
    """The table can fail: each row exceeds its limits without weights."""
    toy, method, mean_limit, variance_limit = PASSES[name]
    model = Unweighted(build(method, toy.prior, toy.measurement, toy.shape))
    mean, variance = bias(toy, model)
    assert mean > mean_limit or variance > variance_limit, (mean, variance)


# Right formulas that no number of particles rescues: the weights have no finite variance (eta above
# 2 - sqrt 2 without tempering), or the deterministic flow never reaches a part of the target.
FLAGS = {
    "AFDPS, eta 1": (toys.fk1d(), Ensemble(temper=0, guidance=1.0, **PATH)),
    "FKC, ODE, annealed 2": (toys.composed((P, 2.0)), Ensemble(noise=0.0, **PATH)),
    "FKC, ODE, product": (toys.composed((Q1, 1.0), (Q2, 1.0)), Ensemble(noise=0.0, **PATH)),
}


@pytest.mark.parametrize("name", FLAGS)
def test_what_cannot_converge_is_flagged(name):
    """Root mean square error of the variance over ten filters above any limit of `PASSES`."""
    toy, method = FLAGS[name]
    model = build(method, toy.prior, toy.measurement, toy.shape)
    errors = torch.stack([moments(model, 3000, seed)[1] - toy.variance for seed in range(10)])
    assert float(errors.square().mean().sqrt()) > 0.13


def test_lookahead_without_weights_is_an_optimiser():
    """SVDD as published: the variance is too small by .31 at 20 candidates, and its claim says heuristic."""
    toy = toys.fk1d()
    method = Lookahead(levels=LEVELS, candidates=20, exact=False)
    _, variance = bias(toy, build(method, toy.prior, toy.measurement, toy.shape), particles=400)
    assert variance > 0.2
    assert method.claim == "heuristic"


def test_composition_starts_with_the_scaled_variance():
    """The start of q1 q2 at sigma has variance (sigma^2 + v) / B."""
    toy = toys.composed((Q1, 1.0), (Q2, 1.0))
    model = build(Ensemble(**PATH), toy.prior, toy.measurement, (1,))
    x, _ = model.start(40_000, torch.Generator().manual_seed(0))
    assert float(x.var()) == pytest.approx(LEVELS[0] ** 2 / 2 + toy.prior.card.std**2, rel=0.05)


def test_error_falls_as_the_root_of_the_particles():
    """RMSE of the mean at 100, 400, 1600, 6400 particles: slope -.5 +- .25 over 12 filters."""
    toy = toys.fk1d()
    model = build(Ensemble(**PATH), toy.prior, toy.measurement, (1,))
    sizes = (100, 400, 1600, 6400)
    logs = []
    for size in sizes:
        errors = torch.stack([moments(model, size, seed)[0] - toy.mean for seed in range(12)])
        logs.append(0.5 * math.log(float(errors.square().mean())))
    slope = (logs[-1] - logs[0]) / math.log(sizes[-1] / sizes[0])
    assert -0.75 < slope < -0.25, logs


# --- laws of every particle sampler ------------------------------------------------------------

NAMES = ("moment_twisted", "twisted", "ensemble", "steering", "lookahead")
QUICK = {
    "moment_twisted": {"steps": 8, "pilot": 16},
    "twisted": {"steps": 8},
    "ensemble": {"steps": 8},
    "steering": {"steps": 8},
    "lookahead": {"steps": 8, "candidates": 3},
}


def small():
    prior = GaussianPrior.diagonal(torch.zeros(4, dtype=DOUBLE), torch.ones(4, dtype=DOUBLE))
    rows = torch.eye(4, dtype=DOUBLE)[:2]
    y = torch.tensor([0.3, -0.2], dtype=DOUBLE)
    return prior, Measurement(MatrixOperator(rows), GaussianNoise(0.5), y)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_the_same_whatever_else_is_drawn(name):
    prior, measurement = small()
    sampler = make_sampler(name, prior.card, particles=12, keep=4, **QUICK[name])
    state = torch.get_rng_state()
    many = draw(sampler, prior, measurement, (4,), particles=range(12), seed=5, dtype=DOUBLE)
    few = draw(sampler, prior, measurement, (4,), particles=[5, 9], seed=5, dtype=DOUBLE)
    assert torch.equal(few.x, many.x[[5, 9]])
    assert len(many.filters) == 3 and len(few.filters) == 2
    assert not torch.equal(
        many.x, draw(sampler, prior, measurement, (4,), particles=range(12), seed=0, dtype=DOUBLE).x
    )
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_scaling_the_data_changes_nothing_but_the_evidence(name):
    """(y, A, sigma_y) times c: the same samples, log Z lower by m log c."""
    prior, measurement = small()
    matrix = measurement.operator.matrix
    scaled = Measurement(MatrixOperator(7 * matrix), GaussianNoise(3.5), 7 * measurement.y)
    sampler = make_sampler(name, prior.card, particles=16, keep=8, **QUICK[name])
    a = draw(sampler, prior, measurement, (4,), particles=range(8), dtype=DOUBLE)
    b = draw(sampler, prior, scaled, (4,), particles=range(8), dtype=DOUBLE)
    torch.testing.assert_close(a.x, b.x, rtol=1e-4, atol=1e-4)
    assert a.filters[0].log_evidence - b.filters[0].log_evidence == pytest.approx(2 * math.log(7), abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_raised_and_never_repaired(name):
    prior, measurement = small()

    class Holed:
        card = prior.card

        def denoise(self, x, sigma):
            out = prior.denoise(x, sigma)
            return out * math.nan if float(sigma) < 1 else out

    sampler = make_sampler(name, prior.card, particles=8, keep=2, **QUICK[name])
    with pytest.raises(FloatingPointError):
        draw(sampler, Holed(), measurement, (4,), particles=range(2), dtype=DOUBLE)


@pytest.mark.parametrize("name", ["steering", "lookahead", "moment_twisted", "ensemble"])
def test_nonlinear_operators(name):
    """y = |x - .5| = 1, sigma_y = .5: two modes with unequal weights, moments by quadrature.

    Four filters of 4000; the limits are five standard errors of the noisiest method.
    """
    one = torch.ones(1, dtype=DOUBLE)
    prior = GaussianPrior.diagonal(0 * one, one)
    measurement = Measurement(FunctionOperator(lambda x: (x - 0.5).abs()), GaussianNoise(0.5), one)
    grid = torch.linspace(-6, 6, 20_001, dtype=DOUBLE)
    weights = torch.softmax(-0.5 * grid**2 - 2 * ((grid - 0.5).abs() - 1) ** 2, 0)
    settings = {"sigma_max": 20.0} if name != "moment_twisted" else {"sigma_min": 0.02}
    sampler = make_sampler(name, prior.card, particles=4000, keep=4000, **settings)
    x = draw(sampler, prior, measurement, (1,), particles=range(16_000), dtype=DOUBLE).x
    assert float((x > 0.5).double().mean()) == pytest.approx(float(weights[grid > 0.5].sum()), abs=0.06)
    assert float(x.square().mean()) == pytest.approx(float(weights @ grid**2), abs=0.08)


def test_api_returns_the_evidence():
    prior, measurement = small()
    posterior = sample(
        prior, measurement, (4,), sampler="moment_twisted", samples=64, particles=128, keep=32, dtype=DOUBLE
    )
    exact = prior.posterior(lambda x: x @ measurement.operator.matrix.mT, measurement.y, 0.5).log_evidence
    assert len(posterior.info["filters"]) == 2
    assert posterior.log_evidence == pytest.approx(exact, abs=0.2)


def test_refusals():
    prior = small()[0]
    with pytest.raises(InputError, match="keep lies between"):
        make_sampler("twisted", prior.card, particles=4, keep=8)
    with pytest.raises(InputError, match="does not know"):
        make_sampler("twisted", prior.card, propsal="pigdm")
    with pytest.raises(InputError, match="greedy"):
        make_sampler("lookahead", prior.card, greedy=True)
    wide = GaussianPrior.diagonal(torch.zeros(400, dtype=DOUBLE), torch.ones(400, dtype=DOUBLE))
    many = Measurement(
        MatrixOperator(torch.eye(400, dtype=DOUBLE)), GaussianNoise(1.0), torch.zeros(400, dtype=DOUBLE)
    )
    sampler = make_sampler("moment_twisted", wide.card, particles=8, keep=1)
    with pytest.raises(InputError, match="at most 256"):
        draw(sampler, wide, many, (400,), particles=[0], dtype=DOUBLE)
    assert replace(sampler, particles=16).particles == 16
