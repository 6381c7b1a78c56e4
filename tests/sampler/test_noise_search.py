"""Searches find what their verifier likes, and say that they are no samplers."""

from __future__ import annotations

import pytest
import torch

from invdiff.api import make_sampler
from invdiff.errors import InputError
from invdiff.measurement.measurement import simulate
from invdiff.measurement.operator import MatrixOperator
from invdiff.prior.gaussian import GaussianPrior
from invdiff.sampler.loop import draw
from invdiff.sampler.noise_search import NoiseSearch, ensemble_of, likelihood

DOUBLE = torch.float64


def problem():
    prior = GaussianPrior.diagonal(torch.zeros(4, dtype=DOUBLE), torch.ones(4, dtype=DOUBLE))
    truth = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=DOUBLE)
    rows = torch.eye(4, dtype=DOUBLE)[:2]
    return prior, simulate(MatrixOperator(rows), truth, 0.3, torch.Generator().manual_seed(1))


def base(prior):
    return make_sampler("proximal", prior.card, integrator="ddim", steps=16)


def third(x, measurement):
    """Likes a large third component, which the data do not see."""
    return x[:, 2]


@pytest.mark.parametrize("kind", ["random", "zero_order", "paths"])
def test_a_search_beats_a_draw(kind):
    prior, measurement = problem()
    search = NoiseSearch(base(prior), kind, candidates=8, verifier=third)
    found = draw(search, prior, measurement, (4,), particles=range(12), dtype=DOUBLE).x
    plain = draw(base(prior), prior, measurement, (4,), particles=range(12), dtype=DOUBLE).x
    assert float(found[:, 2].mean()) > float(plain[:, 2].mean()) + 0.7
    again = draw(search, prior, measurement, (4,), particles=[5], dtype=DOUBLE).x
    torch.testing.assert_close(found[5:6], again)
    assert search.claim == "heuristic"


def test_zero_order_goes_on_from_the_best():
    prior, measurement = problem()
    few = NoiseSearch(base(prior), "random", candidates=4, verifier=third)
    more = NoiseSearch(base(prior), "zero_order", candidates=4, rounds=6, radius=0.5, verifier=third)
    a = draw(few, prior, measurement, (4,), particles=range(10), dtype=DOUBLE).x[:, 2]
    b = draw(more, prior, measurement, (4,), particles=range(10), dtype=DOUBLE).x[:, 2]
    assert bool((b >= a - 1e-9).all()) and float(b.mean()) > float(a.mean()) + 0.5


def test_the_likelihood_as_verifier_narrows_the_residual():
    prior, measurement = problem()
    search = NoiseSearch(base(prior), candidates=16)
    found = measurement.chi2(draw(search, prior, measurement, (4,), particles=range(20), dtype=DOUBLE).x)
    plain = measurement.chi2(draw(base(prior), prior, measurement, (4,), particles=range(20), dtype=DOUBLE).x)
    assert float(found.mean()) < 0.5 * float(plain.mean())


def test_an_ensemble_of_verifiers_is_a_mean_of_ranks():
    measurement = problem()[1]
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    one = ensemble_of(third)(x, measurement)
    assert one.argmax() == third(x, measurement).argmax()
    both = ensemble_of(third, likelihood)(x, measurement)
    scaled = ensemble_of(lambda x, m: 1e6 * third(x, m), likelihood)(x, measurement)
    torch.testing.assert_close(both, scaled)


def test_an_ensemble_compares_the_pivot_with_its_neighbours():
    """Ranks mean something among candidates that are scored together only: one verifier, or its ranks."""
    prior, measurement = problem()
    plain, ranks = (
        NoiseSearch(base(prior), "zero_order", candidates=4, rounds=5, verifier=verifier)
        for verifier in (third, ensemble_of(third))
    )
    a, b = (draw(s, prior, measurement, (4,), particles=range(6), dtype=DOUBLE).x for s in (plain, ranks))
    torch.testing.assert_close(a, b)


def test_a_verifier_that_returns_nan_is_an_error():
    prior, measurement = problem()
    search = NoiseSearch(base(prior), verifier=lambda x, m: x[:, 2] * float("nan"))
    with pytest.raises(FloatingPointError, match="verifier"):
        draw(search, prior, measurement, (4,), particles=[0], dtype=DOUBLE)


def test_refusals():
    prior, _ = problem()
    with pytest.raises(InputError, match="eta=0"):
        NoiseSearch(make_sampler("proximal", prior.card))
    with pytest.raises(InputError, match="candidates"):
        NoiseSearch(base(prior), candidates=1)
