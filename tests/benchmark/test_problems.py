"""The benchmark problems themselves: published fixtures, and their posteriors by other means."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.benchmark.gmm25 import gmm25
from invdiff.benchmark.problems import FULL, QUICK, field, lingauss, mixture, toy
from invdiff.benchmark.toys import composed, first_factor, fk1d, fk1d_clean, fk2d, second_factor, three_modes
from invdiff.diagnostics.distances import sliced_wasserstein
from invdiff.errors import InputError

# log p(y) and E chi2 of seeds 0-4, from an independent implementation.
FIXTURES = {
    (8, 1): ((-0.2664, -1.5509, -3.7682, -5.3145, -2.8018), (0.838, 1.153, 1.246, 1.262, 0.998)),
    (8, 4): ((-7.1654, -8.9846, -7.8324, -4.3747, -5.2909), (3.419, 5.079, 4.648, 3.739, 4.001)),
    (80, 2): ((-6.1206, -4.9931, -2.8757, -3.6383, -3.0226), (1.087, 2.604, 2.447, 1.998, 1.339)),
}


@pytest.mark.parametrize(("dim", "data"), FIXTURES)
def test_gmm25_is_the_published_problem(dim, data):
    evidences, chi2 = FIXTURES[dim, data]
    for seed in range(5):
        problem = gmm25(dim, data, seed)
        assert problem.log_evidence == pytest.approx(evidences[seed], abs=6e-5)
        assert problem.chi2 == pytest.approx(chi2[seed], abs=6e-4)


def test_gmm25_posterior_is_that_of_dense_algebra():
    problem = gmm25(8, 2, 3)
    exact = problem.prior.posterior(
        problem.measurement.operator.forward, problem.measurement.y, problem.measurement.noise.sigma
    )
    assert problem.log_evidence == pytest.approx(exact.log_evidence, abs=1e-10)
    torch.testing.assert_close(problem.mode_weights, exact.weights, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(problem.mode_means, exact.means, rtol=1e-8, atol=1e-8)
    x = problem.sample(20_000, torch.Generator().manual_seed(1))
    covariance = torch.cov((x - problem.mode_means[problem.responsibilities(x).argmax(1)]).T)
    assert float((covariance - exact.covariances[0]).abs().max()) < 0.05
    assert problem.mode_error(x) < 0.02


def test_gmm25_refuses_an_odd_dimension():
    with pytest.raises(InputError, match="even"):
        gmm25(7, 1, 0)


def test_toys_have_the_published_moments():
    expected = {
        "fk1d": (fk1d(), 0.7622, 0.5423, -2.1691),
        "clean": (fk1d_clean(), 0.1315, 3.0477, None),
        "fk2d": (fk2d(), 0.9680, 0.2804, -1.5720),
        "annealed": (composed((three_modes(), 2.0)), -0.7527, 3.2686, None),
        "product": (composed((first_factor(), 1.0), (second_factor(), 1.0)), 0.5650, 1.7030, None),
    }
    for name, (problem, mean, variance, evidence) in expected.items():
        assert float(problem.mean[0]) == pytest.approx(mean, abs=6e-5), name
        assert float(problem.variance[0]) == pytest.approx(variance, abs=6e-5), name
        if evidence is not None:
            assert problem.log_evidence == pytest.approx(evidence, abs=6e-5), name


@pytest.mark.parametrize("problem", [lambda: toy("fk1d", fk1d()), lambda: toy("fk2d", fk2d())])
def test_grid_draws_have_the_exact_moments(problem):
    known = problem()
    exact = fk1d() if known.name == "fk1d" else fk2d()
    x = known.sample(200_000, torch.Generator().manual_seed(0))
    assert float((x.mean(0) - exact.mean).abs().max()) < 0.015
    assert float((x.var(0) / exact.variance - 1).abs().max()) < 0.02


@pytest.mark.parametrize(
    "make", [lingauss, lambda: field("mri"), lambda: mixture(8, 2, 0), lambda: toy("fk1d", fk1d())]
)
def test_distance_of_exact_sets_is_the_floor(make):
    known = make()
    a, b, c, d = known.exact_sets(4, seed=1)
    assert 0.4 < known.distance(a, b) / known.distance(c, d) < 2.5
    assert known.distance(a + 2.0, b) > 2 * known.distance(a, b)
    assert known.information > 0


def test_sliced_wasserstein_of_a_shift():
    """Mean over directions of |theta . s| = |s| E|theta_1|; in two dimensions 2 / pi."""
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([3.0, 0.0])
    assert sliced_wasserstein(x, x + shift, directions=4000) == pytest.approx(6 / math.pi, rel=0.03)
    assert sliced_wasserstein(x, x[torch.randperm(500)]) == 0.0


def test_full_covers_quick():
    assert set(QUICK) == set(FULL)
