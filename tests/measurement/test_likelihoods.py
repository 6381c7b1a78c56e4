"""Noise models against scipy and mpmath, against their own samples, and the laws of scale."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from invdiff.errors import InputError
from invdiff.measurement.likelihoods import (
    LaplaceNoise,
    PoissonGaussianNoise,
    PoissonNoise,
    QuantisedNoise,
    RicianNoise,
)
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise, Noise
from invdiff.measurement.operator import FunctionOperator, MatrixOperator

DOUBLE = torch.float64
MODELS = {
    "gaussian": GaussianNoise(0.3),
    "poisson": PoissonNoise(2.5, background=0.4),
    "poisson-gaussian": PoissonGaussianNoise(2.5, 0.7, background=0.4),
    "rician": RicianNoise(0.5),
    "laplace": LaplaceNoise(0.4),
    "quantised": QuantisedNoise(0.3, 0.5),
}
CLEAN = torch.tensor([0.0, 0.3, 1.0, 2.7, 6.0], dtype=DOUBLE)


def tensor(*values):
    return torch.tensor(values, dtype=DOUBLE)


def each(noise, clean, y):
    """log p(y_i | clean_i), one component at a time, through the public face."""
    pairs = zip(clean, y, strict=True)
    return torch.stack([noise.log_likelihood(c.reshape(1, 1), v.reshape(1), 1)[0] for c, v in pairs])


def density(noise, c, y):
    """p(y | c) for many y; components are independent, so their number is that of one long datum."""
    if isinstance(noise, GaussianNoise):
        return torch.distributions.Normal(c, noise.sigma).log_prob(y).exp()
    return noise.log_density(c.expand(y.shape), y).exp()


def support(noise):
    """All y that carry mass for clean up to 6, and the weight of each in sums over y."""
    if isinstance(noise, QuantisedNoise):
        return noise.step * torch.arange(-40, 60, dtype=DOUBLE), 1.0
    if type(noise) is PoissonNoise:
        return torch.arange(0, 120, dtype=DOUBLE), 1.0
    low, high = (0, 15) if isinstance(noise, RicianNoise) else (-30, 80)
    y = torch.linspace(low, high, 110_001, dtype=DOUBLE)[1:]
    return y, float(y[1] - y[0])


# --- densities ---------------------------------------------------------------------------------


def test_poisson_is_scipys():
    noise, y = PoissonNoise(2.5, background=0.4), tensor(0, 3, 1, 12, 40)
    expected = scipy.stats.poisson.logpmf(y.numpy(), 2.5 * CLEAN.numpy() + 0.4)
    np.testing.assert_allclose(each(noise, CLEAN, y).numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 5.0])
def test_poisson_gaussian_is_the_whole_sum(sigma):
    """Against the sum over all counts up to 3000, also where y and the rate disagree by far."""
    noise = PoissonGaussianNoise(2.5, sigma, background=0.4)
    clean, y = tensor(0, 0.3, 1, 6, 40, 300, 20, 0.1), tensor(-3, 0.2, 4.6, 15, 100, 700, 5, 60)
    k = np.arange(3000)
    rate = 2.5 * clean.numpy()[:, None] + 0.4
    terms = scipy.stats.poisson.logpmf(k, rate) + scipy.stats.norm.logpdf(y.numpy()[:, None], k, sigma)
    expected = scipy.special.logsumexp(terms, axis=1)
    np.testing.assert_allclose(each(noise, clean, y).numpy(), expected, rtol=1e-10, atol=1e-10)


def test_rician_is_scipys_and_stable():
    y = tensor(0.1, 0.7, 1.3, 2.2, 6.5)
    expected = scipy.stats.rice.logpdf(y.numpy(), CLEAN.numpy() / 0.5, scale=0.5)
    np.testing.assert_allclose(each(RicianNoise(0.5), CLEAN, y).numpy(), expected, rtol=1e-10, atol=1e-10)
    mpmath.mp.dps = 40
    for c, v in ((1e4, 1e4 + 0.3), (50.0, 1e-6), (1e-9, 3.0)):
        exact = mpmath.log(v / 0.25) - (mpmath.mpf(v) ** 2 + mpmath.mpf(c) ** 2) / 0.5
        exact += mpmath.log(mpmath.besseli(0, mpmath.mpf(v) * c / 0.25))
        assert float(each(RicianNoise(0.5), tensor(c), tensor(v))) == pytest.approx(float(exact), rel=1e-10)


def test_laplace_is_scipys():
    y = tensor(0.1, -0.7, 1.3, 2.7, 60)
    expected = scipy.stats.laplace.logpdf(y.numpy(), CLEAN.numpy(), 0.4)
    np.testing.assert_allclose(each(LaplaceNoise(0.4), CLEAN, y).numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("step", [1e-6, 0.01, 0.5, 3.0, 100.0])
def test_quantised_is_a_difference_of_normal_cdfs(step):
    """Against 60 digits, from the middle to 200 standard deviations out, for fine and coarse steps."""
    noise = QuantisedNoise(0.3, step)
    mpmath.mp.dps = 60
    root = mpmath.sqrt(2) * mpmath.mpf(0.3)
    for target in (0.0, 0.2, 0.45, 1.5, 9.0, -60.0):
        y = step * round(target / step)
        for clean in (0.0, 0.11):
            # Tail probabilities as erfc on the near side: no cancellation of two ones.
            near = abs(mpmath.mpf(y) - mpmath.mpf(clean)) - mpmath.mpf(step) / 2
            exact = mpmath.log((mpmath.erfc(near / root) - mpmath.erfc((near + step) / root)) / 2)
            found = float(each(noise, tensor(clean), tensor(y)))
            assert found == pytest.approx(float(exact), rel=1e-10, abs=1e-10), (y, clean)


@pytest.mark.parametrize("name", MODELS)
def test_densities_sum_to_one_and_moments_are_right(name):
    """Also E[y | c] and Var[y | c]; Sheppard's moments of the quantiser to .01 step^2 (sigma = .6 step).

    The sums over y have errors of their own at a kink (Laplace) and at an end (Rician).
    """
    noise = MODELS[name]
    y, cell = support(noise)
    total = {"laplace": 1e-5, "rician": 1e-7}.get(name, 1e-9)
    slack = 0.01 * 0.25 if name == "quantised" else total
    for c in CLEAN:
        p = density(noise, c, y) * cell
        mean = (p * y).sum()
        assert float(p.sum()) == pytest.approx(1, abs=total)
        assert float(noise.mean_at(c[None])) == pytest.approx(float(mean), abs=slack)
        variance = float((p * (y - mean) ** 2).sum())
        assert float(noise.variance_at(c[None])) == pytest.approx(variance, abs=slack)


# --- laws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_that_of_finite_differences(name):
    noise = MODELS[name]
    assert isinstance(noise, Noise)
    clean = tensor([0.2, 0.3, 1.0], [2.7, 6.0, 0.9])
    y = noise.sample(tensor(0.4, 1.1, 1.5), torch.Generator().manual_seed(0))
    leaf = clean.clone().requires_grad_()
    value = noise.log_likelihood(leaf, y, 3)
    assert value.shape == (2,) and value.dtype == DOUBLE
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    for i in range(2):
        for j in range(3):
            h = torch.zeros_like(clean)
            h[i, j] = 1e-5
            difference = (noise.log_likelihood(clean + h, y, 3) - noise.log_likelihood(clean - h, y, 3)).sum()
            assert float(gradient[i, j]) == pytest.approx(float(difference) / 2e-5, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_samples_have_the_moments(name):
    """200 000 draws at five values; mean and variance within 4.5 standard errors.

    False alarm below 5e-4 for 60 comparisons.
    """
    noise, count = MODELS[name], 200_000
    clean = CLEAN.expand(count, 5)
    before = torch.get_rng_state()
    y = noise.sample(clean, torch.Generator().manual_seed(1))
    assert torch.equal(y, noise.sample(clean, torch.Generator().manual_seed(1)))
    assert torch.equal(before, torch.get_rng_state())
    noise.check(y)
    grid, cell = support(noise)
    for i, c in enumerate(CLEAN):
        p = density(noise, c, grid) * cell
        mean = float((p * grid).sum())
        square = (grid - mean) ** 2
        variance, fourth = float((p * square).sum()), float((p * square**2).sum())
        assert abs(float(y[:, i].mean()) - mean) < 4.5 * math.sqrt(variance / count)
        spread = math.sqrt((fourth - variance**2) / count)
        assert abs(float(y[:, i].var()) - variance) < 4.5 * spread + 1e-5


@pytest.mark.parametrize("name", ["poisson", "poisson-gaussian", "rician", "laplace"])
def test_variance_is_at_least_the_inverse_information_about_the_mean(name):
    """Cramer-Rao; with equality for the Poisson."""
    noise = MODELS[name]
    y, cell = support(noise)
    for value in (0.3, 1.0, 2.7):
        c = tensor(value).requires_grad_()
        (slope,) = torch.autograd.grad(noise.mean_at(c).sum(), c)
        leaf = c.detach().expand(len(y)).clone().requires_grad_()
        log_p = noise.log_density(leaf, y)
        (score,) = torch.autograd.grad(log_p.sum(), leaf)
        information = float((log_p.detach().exp() * score**2).sum() * cell / slope**2)
        excess = float(noise.variance_at(c.detach())) * information
        assert excess == pytest.approx(1, abs=1e-8) if name == "poisson" else excess > 1 - 1e-6


@pytest.mark.parametrize("kappa", [1e-3, 7.0])
def test_scale_laws(kappa):
    """Units of y shift a density by -log kappa and leave a probability alone."""
    c, y = tensor(0.3, 1.0, 2.7), tensor(0.5, 1.5, 2.5)
    shifts = {RicianNoise: -math.log(kappa), LaplaceNoise: -math.log(kappa)}
    for kind, shift in shifts.items():
        before, after = each(kind(0.4), c, y), each(kind(0.4 * kappa), kappa * c, kappa * y)
        torch.testing.assert_close(after, before + shift, rtol=1e-12, atol=1e-12)
    before = each(QuantisedNoise(0.4, 0.5), c, y)
    after = each(QuantisedNoise(0.4 * kappa, 0.5 * kappa), kappa * c, kappa * y)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    counts = tensor(1, 0, 5)
    before = each(PoissonNoise(2.0, background=0.1), c, counts)
    after = each(PoissonNoise(2.0 / kappa, background=0.1), kappa * c, counts)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_limits_are_gaussian():
    """Fine steps, strong magnitudes, bright counts, broad read noise."""
    c, y = tensor(0.3, 1.0), tensor(0.5, 0.8)
    gaussian = each(GaussianNoise(0.3), c, y)
    fine = each(QuantisedNoise(0.3, 1e-4), c, y) - math.log(1e-4)
    torch.testing.assert_close(fine, gaussian, rtol=0, atol=1e-7)
    strong = each(RicianNoise(0.3), c + 1e6, y + 1e6)
    torch.testing.assert_close(strong, gaussian, rtol=0, atol=1e-6)
    counts, rate = tensor(1_000_200), tensor(1_000_000)
    bright = each(PoissonNoise(1.0), rate, counts)
    torch.testing.assert_close(bright, each(GaussianNoise(1000.0), rate, counts), rtol=0, atol=1e-3)
    dark = PoissonGaussianNoise(1.0, 5.0)
    assert float(each(dark, tensor(-2.0), tensor(3.0))) == pytest.approx(
        float(each(GaussianNoise(5.0), tensor(0.0), tensor(3.0))), abs=1e-12
    )


def test_an_impossible_count_is_finite_and_has_a_gradient():
    """A rate of zero (clean below zero, no background) refutes a count without a NaN."""
    clean = tensor([-1.0, 2.0]).requires_grad_()
    for noise in (PoissonNoise(1.0), PoissonGaussianNoise(1.0, 0.5)):
        value = noise.log_likelihood(clean, tensor(4, 1), 2)
        (gradient,) = torch.autograd.grad(value.sum(), clean)
        assert bool(torch.isfinite(value).all() and torch.isfinite(gradient).all())
    assert float(PoissonNoise(1.0).log_likelihood(clean.detach(), tensor(4, 1), 2)) < -2000
    assert float(PoissonNoise(1.0).log_likelihood(clean.detach(), tensor(0, 1), 2)) > -3


@pytest.mark.parametrize("name", [name for name in MODELS if name != "rician"])
def test_masked_components_count_for_nothing(name):
    """Components that are zero in c and y and not in `size`; Rician data have no such zeros."""
    noise = MODELS[name]
    y = noise.sample(tensor(0.4, 1.1), torch.Generator().manual_seed(0))
    clean, zero = tensor([0.5, 0.9], [1.0, 1.2]), torch.zeros(2, 3, dtype=DOUBLE)
    whole = noise.log_likelihood(torch.cat([clean, zero], 1), torch.cat([y, zero[0]]), 2)
    torch.testing.assert_close(whole, noise.log_likelihood(clean, y, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_chi2_of_a_measurement_is_one(name):
    """Pearson's statistic of 20 000 components at the truth: 4.5 standard errors, false alarm 5e-5."""
    noise, g = MODELS[name], torch.Generator().manual_seed(2)
    x = 0.5 + 5 * torch.rand(20_000, generator=g, dtype=DOUBLE)
    measurement = Measurement(FunctionOperator(lambda x: x), noise, noise.sample(x, g))
    square = (measurement.y - noise.mean_at(x)) ** 2 / noise.variance_at(x)
    error = 4.5 * float(square.std()) / math.sqrt(20_000) + (0.04 if name == "quantised" else 0)
    assert float(measurement.chi2(x[None])) == pytest.approx(1, abs=error)
    single = Measurement(FunctionOperator(lambda x: x), noise, measurement.y.float())
    assert float(single.chi2(x[None].float())) == pytest.approx(float(measurement.chi2(x[None])), rel=1e-4)


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "y", "words"),
    [
        (PoissonNoise(1.0), (3.0, -1.0), "1 of the data are impossible under Poisson noise, the first -1"),
        (PoissonNoise(1.0), (2.5, 0.1), "2 of the data .* whole numbers"),
        (RicianNoise(1.0), (0.0, 2.0), "magnitudes above zero"),
        (QuantisedNoise(0.1, 0.25), (0.5, 0.6), "the first 0.6; give multiples of step = 0.25"),
    ],
)
def test_impossible_data_are_refused(noise, y, words):
    with pytest.raises(InputError, match=words):
        Measurement(MatrixOperator(torch.eye(2, dtype=DOUBLE)), noise, tensor(*y))


def test_data_on_a_coarse_decimal_grid_are_accepted():
    """Multiples of .1 are no binary fractions, in float32 least of all."""
    QuantisedNoise(0.1, 0.1).check(0.1 * torch.arange(-3000, 3000, dtype=DOUBLE))
    QuantisedNoise(0.1, 0.1).check(0.1 * torch.arange(-3000.0, 3000.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: PoissonNoise(0.0),
        lambda: PoissonNoise(1.0, background=-1.0),
        lambda: PoissonGaussianNoise(1.0, 0.0),
        lambda: RicianNoise(-1.0),
        lambda: LaplaceNoise(math.nan),
        lambda: QuantisedNoise(0.1, math.inf),
    ],
)
def test_parameters_are_refused(make):
    with pytest.raises(InputError, match=r"noise parameter .* give a finite number"):
        make()
