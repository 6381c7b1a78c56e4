"""Evidence against its exact value, and models compared by it."""

from __future__ import annotations

import math

import torch

from invdiff.benchmark.gmm25 import gmm25
from invdiff.benchmark.toys import first_factor, observed, three_modes
from invdiff.sampler import feynman_kac
from invdiff.sampler.weighting.moment_twisted import MomentTwisted
from invdiff.sampler.weighting.target import Target

DOUBLE = torch.float64


def ratios(prior, measurement, shape, exact, particles, replicates):
    """Z of independent filters over the exact evidence."""
    target = Target(prior, measurement, shape, torch.device("cpu"), DOUBLE)
    model = MomentTwisted(steps=40, pilot=128).model(target, torch.Generator().manual_seed(1))
    logs = [
        feynman_kac.run(
            model, feynman_kac.Settings(particles), torch.Generator().manual_seed(seed)
        ).log_evidence
        for seed in range(replicates)
    ]
    return (torch.tensor(logs, dtype=DOUBLE) - exact).exp()


def standard_error(values):
    return float(values.std()) / math.sqrt(len(values))


def test_mixture_evidence():
    """gmm25 8/1: mean of Z / p(y) within 3.3 standard errors of 1 and .03 for the steps; false alarm 1e-3.

    `invdiff verify --problem evidence` takes 200 replicates of every particle method.
    """
    known = gmm25(8, 1, 5)
    found = ratios(known.prior, known.measurement, (8,), known.log_evidence, 64, 40)
    error = standard_error(found)
    assert error < 0.05
    assert abs(float(found.mean()) - 1) < 3.3 * error + 0.03, (float(found.mean()), error)


def test_two_priors_are_compared_with_the_right_odds():
    """P1 against Q1 at y = 2.4, sigma_y = .3: exact odds, and the right prior chosen by every filter."""
    found = {}
    for name, prior in (("P1", three_modes()), ("Q1", first_factor())):
        toy = observed(prior, [1.0], 2.4, 0.3)
        assert toy.log_evidence is not None
        values = ratios(toy.prior, toy.measurement, toy.shape, 0.0, 128, 30)
        found[name] = (toy.log_evidence, values)
    exact = found["P1"][0] - found["Q1"][0]
    odds = math.log(float(found["P1"][1].mean()) / float(found["Q1"][1].mean()))
    error = sum(standard_error(v) / float(v.mean()) for _, v in found.values())
    assert abs(odds - exact) < 3 * error + 0.03, (odds, exact, error)
    assert abs(exact) > 0.3
    assert bool(((found["P1"][1] > found["Q1"][1]) == (exact > 0)).all())
