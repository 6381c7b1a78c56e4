"""DDSMC and MCGDiff against closed forms, with the same moves unweighted as a control.

Seeds are fixed; each statistical test states its false-alarm rate.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from invdiff.benchmark.problems import mixture
from invdiff.benchmark.verify import Unweighted
from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import FunctionOperator, MatrixOperator
from invdiff.prior.gaussian import GaussianPrior
from invdiff.sampler import feynman_kac
from invdiff.sampler.loop import draw
from invdiff.sampler.particle_sampler import ParticleSampler
from invdiff.sampler.schedule import loguniform
from invdiff.sampler.weighting.ddsmc import DDSMC, log_determinants, variances
from invdiff.sampler.weighting.mcgdiff import MCGDiff, adapted
from invdiff.sampler.weighting.target import Target

CPU, DOUBLE = torch.device("cpu"), torch.float64


def build(method, prior, measurement, shape):
    target = Target(prior, measurement, shape, CPU, DOUBLE)
    return method.model(target, torch.Generator().manual_seed(9))


def run(model, particles, seed, threshold=0.5):
    return feynman_kac.run(
        model, feynman_kac.Settings(particles, threshold), torch.Generator().manual_seed(seed)
    )


class Direct(MatrixOperator):
    """A matrix with its resolvent, for speed; the other tests go through conjugate gradients."""

    def resolvent(self, rhs, gamma):
        normal = torch.eye(self.matrix.shape[1]).to(rhs) + gamma * self.matrix.mT @ self.matrix
        return torch.linalg.solve(normal, rhs, left=False)


# --- evidence, unbiased for the discretised prior ----------------------------------------------


def line(noise=0.3, scale=1.0):
    """x ~ N(0, 1), y = scale x + noise e = 1.1."""
    one = torch.ones(1, dtype=DOUBLE)
    prior = GaussianPrior.diagonal(0 * one, one)
    return prior, Measurement(Direct(scale * one[:, None]), GaussianNoise(noise), 1.1 * one)


def chain_variance(levels, stop=0.0):
    """Variance of x at the level `stop` of the ancestral chain for x0 ~ N(0, 1); of x0 = D for 0."""
    variance = 1 + levels[0] ** 2
    for a, b in itertools.pairwise(levels):
        if a <= stop * (1 + 1e-6):
            return variance
        factor = (1 + b**2) / (1 + a**2)
        variance = factor**2 * variance + b**2 * (1 - b**2 / a**2)
    return variance / (1 + levels[-1] ** 2) ** 2


def evidence(name, model, noise, scale):
    """Evidence under the chain: of x0 for DDSMC, of x at sigma = tau for MCGDiff where it gets there."""
    tau = noise / scale
    if name == "mcgdiff" and tau < model.levels[0]:
        variance = chain_variance(model.levels, tau) + model.settings.kappa * tau**2
    else:
        variance = chain_variance(model.levels) + tau**2
    return math.exp(-0.5 * (1.1 / scale) ** 2 / variance) / math.sqrt(2 * math.pi * variance) / scale


CHAIN = [
    ("ddsmc", DDSMC(steps=12, sigma_max=10, sigma_min=0.05), 0.3, 1.0),
    ("ddsmc", DDSMC(steps=12, sigma_max=10, sigma_min=0.05, widen=3.0), 0.3, 2.0),
    ("ddsmc", DDSMC(steps=4, sigma_max=10, sigma_min=0.05), 0.3, 1.0),  # rho is lowered
    ("mcgdiff", MCGDiff(steps=6, sigma_max=10, sigma_min=0.05, order=1), 0.3, 1.0),
    ("mcgdiff", MCGDiff(steps=6, sigma_max=10, sigma_min=0.05, order=1, kappa=0.1), 0.3, 2.0),
    ("mcgdiff", MCGDiff(steps=8, sigma_max=10, sigma_min=0.05, order=1), 20.0, 1.0),  # tau above the start
]


@pytest.mark.parametrize(("name", "method", "noise", "scale"), CHAIN)
def test_evidence_is_unbiased_for_the_discretised_prior(name, method, noise, scale):
    """40 000 particles that are never resampled; |z| < 4 for six methods: false alarm 4e-4."""
    prior, measurement = line(noise, scale)
    model = build(method, prior, measurement, (1,))
    ratios = run(model, 40_000, 4, threshold=0).log_weights.exp() / evidence(name, model, noise, scale)
    error = float(ratios.std()) / 200
    assert abs(float(ratios.mean()) - 1) < 4 * error + 1e-9, (float(ratios.mean()), error)
    assert error < 0.03


@pytest.mark.parametrize(("index", "filters"), [(0, 40), (3, 300)])
def test_evidence_is_unbiased_with_resampling(index, filters):
    """Filters of 16 particles; |z| < 4: false alarm 1e-4."""
    name, method, noise, scale = CHAIN[index]
    prior, measurement = line(noise, scale)
    model = build(method, prior, measurement, (1,))
    exact = evidence(name, model, noise, scale)
    ratios = torch.tensor([math.exp(run(model, 16, seed).log_evidence) for seed in range(filters)]) / exact
    error = float(ratios.std()) / math.sqrt(filters)
    assert abs(float(ratios.mean()) - 1) < 4 * error < 0.3, (float(ratios.mean()), error)


def test_determinants_telescope_to_the_dense_ones():
    """Against log det by dense algebra, also where steps are so long that rho is lowered."""
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    measurement = Measurement(MatrixOperator(rows), GaussianNoise(0.05), torch.zeros(3, dtype=DOUBLE))
    target = Target(
        GaussianPrior.diagonal(torch.zeros(5, dtype=DOUBLE), torch.ones(5, dtype=DOUBLE)),
        measurement,
        (5,),
        CPU,
        DOUBLE,
    )

    def log_det(r2):
        return float(torch.logdet(r2 * rows @ rows.mT + 0.05**2 * torch.eye(3, dtype=DOUBLE)))

    for steps in (3, 6, 60):
        rho2, s2 = variances(loguniform(steps, 80, 0.02), 1.0)
        exact = -0.5 * sum(log_det(a) - log_det(b) for a, b in zip(rho2, s2, strict=False))
        found = log_determinants(DDSMC(), target, rho2, s2, torch.Generator().manual_seed(0))
        assert found == pytest.approx(exact, abs=1e-6)
        assert len(rho2) == steps and min(s2) > 0


# --- posteriors --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [DDSMC(steps=120), MCGDiff(steps=120)])
def test_posterior_of_a_gaussian(method):
    """Variances .01 to 10 through one random row: stds within 12 %, means within .15 stds.

    Means over three filters of 4000, the median of their log evidences, because a filter of MCGDiff can
    be led by one ancestor (seed 1 is: log Z off by 2.8); four times their spread (2 %) and the chain's
    own error (stds 2 to 4 % low at 120 levels): false alarm 1e-3. The control must fail.
    """
    values = torch.logspace(-2, 1, 12, dtype=DOUBLE)
    prior = GaussianPrior.diagonal(0 * values, values)
    rows = torch.randn(1, 12, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    measurement = Measurement(Direct(rows), GaussianNoise(0.1), torch.tensor([1.5], dtype=DOUBLE))
    exact = prior.posterior(lambda x: x @ rows.mT, measurement.y, 0.1)
    std = exact.covariance.diagonal().sqrt()
    model = build(method, prior, measurement, (12,))

    def errors(model):
        outs = [run(model, 4000, seed) for seed in range(3)]
        mean = sum(out.weights @ out.particles.x for out in outs) / 3
        second = sum(out.weights @ (out.particles.x - mean) ** 2 for out in outs) / 3
        evidence = sorted(out.log_evidence for out in outs)[1]
        wide, off = second.sqrt() / std - 1, (mean - exact.mean) / std
        return float(wide.abs().max()), float(off.abs().max()), evidence

    wide, off, evidence = errors(model)
    assert wide < 0.12 and off < 0.15, (wide, off)
    assert evidence == pytest.approx(exact.log_evidence, abs=0.3)
    wide, off, _ = errors(Unweighted(model))
    assert wide > 0.12 or off > 0.15, (wide, off)


def mode_weights(known, x, weights):
    return known.prior.responsibilities(x).mT @ weights


@pytest.mark.parametrize(("method", "particles", "limit"), [(DDSMC, 4000, 0.06), (MCGDiff, 16_000, 0.13)])
def test_posterior_of_a_mixture(method, particles, limit):
    """25 modes in 8 dimensions, one observed component: total variation of the mode weights.

    Means of two filters; exact sets of 1000 have .016. Measured: DDSMC up to .03, MCGDiff .02 to .12 with
    heavy tails. The same moves without weights exceed the limit.
    """
    known = mixture(8, 1, 0)
    exact = known.sample(20_000, torch.Generator().manual_seed(1))
    truth = mode_weights(known, exact, torch.full((20_000,), 1 / 20_000, dtype=DOUBLE))
    model = build(method(steps=80, sigma_max=known.sigma_max), known.prior, known.measurement, (8,))

    def distance(model):
        outs = [run(model, particles, seed) for seed in range(2)]
        found = sum(mode_weights(known, out.particles.x, out.weights) for out in outs) / 2
        return float((found - truth).abs().sum() / 2)

    assert distance(model) < limit
    assert distance(Unweighted(model)) > limit


def test_mcgdiff_does_not_count_the_data_twice():
    """chi2 of one measured component is the posterior's, not the .6 of a likelihood weight at the end.

    Six filters of 4000, standard error .02 (measured): band .12.
    """
    known = mixture(8, 1, 0)
    exact = known.measurement.chi2(known.sample(20_000, torch.Generator().manual_seed(1))).mean()
    model = build(MCGDiff(sigma_max=known.sigma_max), known.prior, known.measurement, (8,))
    found = []
    for seed in range(6):
        out = run(model, 4000, seed)
        found.append(float(out.weights @ known.measurement.chi2(out.particles.x)))
    assert sum(found) / 6 == pytest.approx(float(exact), abs=0.12)


def test_coordinates_without_data_and_beyond_the_prior():
    """Zero rows, a zero operator, and tau below the least level of the prior."""
    prior = GaussianPrior.diagonal(torch.zeros(3, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE))
    rows = torch.zeros(3, 3, dtype=DOUBLE)
    for method in (DDSMC(steps=30), MCGDiff(steps=30)):
        empty = Measurement(MatrixOperator(rows), GaussianNoise(0.5), torch.zeros(3, dtype=DOUBLE))
        out = run(build(method, prior, empty, (3,)), 4000, 0)
        assert out.log_evidence == pytest.approx(3 * -math.log(0.5 * math.sqrt(2 * math.pi)), abs=1e-6)
        assert float(out.particles.x.std()) == pytest.approx(1, abs=0.16)  # 30 ancestral steps: 13 % low
        rows[1, 2] = 2.0
        tiny = Measurement(MatrixOperator(rows.clone()), GaussianNoise(1e-8), torch.ones(3).double())
        x = run(build(method, prior, tiny, (3,)), 500, 0).particles.x
        assert float((x[:, 2] - 0.5).abs().max()) < 0.05
        rows[1, 2] = 0.0


# --- laws --------------------------------------------------------------------------------------

QUICK = {"ddsmc": DDSMC(steps=10), "mcgdiff": MCGDiff(steps=8), "mcgdiff, ancestral": MCGDiff(8, order=1)}


def small():
    prior = GaussianPrior.diagonal(torch.zeros(4, dtype=DOUBLE), torch.ones(4, dtype=DOUBLE))
    rows = torch.randn(2, 4, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    y = torch.tensor([0.3, -0.2], dtype=DOUBLE)
    return prior, Measurement(MatrixOperator(rows), GaussianNoise(0.5), y)


@pytest.mark.parametrize("name", QUICK)
def test_a_sample_is_the_same_whatever_else_is_drawn(name):
    prior, measurement = small()
    sampler = ParticleSampler(QUICK[name], particles=12, keep=4)
    y, matrix, state = measurement.y.clone(), measurement.operator.matrix.clone(), torch.get_rng_state()

    def sample(numbers, seed):
        return draw(sampler, prior, measurement, (4,), particles=numbers, seed=seed, dtype=DOUBLE).x

    many = sample(range(16), 5)
    assert torch.equal(sample([11], 5), many[[11]])
    assert torch.equal(sample(range(16), 5), many)
    assert not torch.equal(sample(range(16), 0), many)
    assert torch.equal(measurement.y, y) and torch.equal(measurement.operator.matrix, matrix)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", QUICK)
def test_scaling_the_data_changes_nothing_but_the_evidence(name):
    """(y, A, sigma_y) times c: the same samples, log Z lower by m log c."""
    prior, measurement = small()
    matrix = measurement.operator.matrix
    scaled = Measurement(MatrixOperator(7 * matrix), GaussianNoise(3.5), 7 * measurement.y)
    sampler = ParticleSampler(QUICK[name], particles=16, keep=8)
    a = draw(sampler, prior, measurement, (4,), particles=range(8), dtype=DOUBLE)
    b = draw(sampler, prior, scaled, (4,), particles=range(8), dtype=DOUBLE)
    torch.testing.assert_close(a.x, b.x, rtol=1e-6, atol=1e-6)
    assert a.filters[0].log_evidence - b.filters[0].log_evidence == pytest.approx(2 * math.log(7), abs=1e-5)


@pytest.mark.parametrize("name", QUICK)
def test_nan_is_raised_and_names_the_level(name):
    prior, measurement = small()

    class Holed:
        card = prior.card

        def denoise(self, x, sigma):
            return prior.denoise(x, sigma) * (math.nan if float(sigma) < 1 else 1.0)

    sampler = ParticleSampler(QUICK[name], particles=8, keep=2)
    with pytest.raises(FloatingPointError, match=r"not finite at sigma = \d"):
        draw(sampler, Holed(), measurement, (4,), particles=range(2), dtype=DOUBLE)


@pytest.mark.parametrize("name", QUICK)
def test_images_in_single_precision(name):
    """An event with axes, float32: finite, and the dtype is kept."""
    prior = GaussianPrior.diagonal(torch.zeros(2, 4, 4), torch.ones(2, 4, 4))

    class Rows(MatrixOperator):
        def forward(self, x):
            return 2.0 * x[:, :, :2]

        def adjoint(self, y):
            return torch.cat([2.0 * y, torch.zeros_like(y)], dim=2)

    measurement = Measurement(Rows(torch.eye(1)), GaussianNoise(0.5), torch.ones(2, 2, 4))
    out = draw(ParticleSampler(QUICK[name], 32, 8), prior, measurement, (2, 4, 4), particles=range(8))
    assert out.x.dtype == torch.float32 and out.x.shape == (8, 2, 4, 4)
    assert float(out.x[:, :, :2].mean()) == pytest.approx(0.47, abs=0.15)


def test_adapted_schedule():
    levels = adapted((8.0, 4.0, 2.0, 1.0), [3.0, 3.0 * (1 - 1e-8), 1.001, 0.5, 100.0])
    assert levels == (8.0, 4.0, 3.0, 2.0, 1.001, 0.5)
    assert adapted((8.0, 4.0), []) == (8.0, 4.0)


def test_refusals():
    prior, _ = small()
    nonlinear = Measurement(FunctionOperator(lambda x: x.abs()), GaussianNoise(0.1), torch.ones(4).double())
    for method in (DDSMC(), MCGDiff()):
        with pytest.raises(InputError, match="needs a linear operator"):
            build(method, prior, nonlinear, (4,))
    large = Measurement(MatrixOperator(torch.ones(1, 5000)), GaussianNoise(1.0), torch.zeros(1))
    with pytest.raises(InputError, match="at most 4096 components"):
        build(MCGDiff(), prior, large, (5000,))
    with pytest.raises(InputError, match="kappa"):
        MCGDiff(kappa=0.0)
    with pytest.raises(InputError, match="order is 3"):
        MCGDiff(order=3)
    with pytest.raises(InputError, match="widen > 0"):
        DDSMC(widen=0.0)
