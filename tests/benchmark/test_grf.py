"""Gaussian fields: closed forms against dense algebra, and what the band statistics see."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.benchmark.fields import column_mask, mirrored, slice_mask
from invdiff.benchmark.grf import bands, grf, worst_mean, worst_variance
from invdiff.benchmark.problems import few, field
from invdiff.benchmark.verify import ExactDraws, judge, shipped
from invdiff.errors import InputError
from invdiff.measurement.contract import check_operator
from tests.benchmark.controls import Altered, PriorDraws

KINDS = [
    ("mri", 4),
    ("mri", 2),
    ("ct", 4),
    ("ct", 2),
    ("blur", 1),
    ("superres", 2),
    ("superres", 4),
    ("landmarks", 1),
]


def unmeasured(problem):
    """Rows of the dense matrix that are zero: their share of the dense log p(y)."""
    if problem.measurement.y.numel() == problem.measurement.size:
        return 0.0
    rows = problem.measurement.y.numel() - problem.measurement.size
    return -rows * 0.5 * math.log(2 * math.pi * problem.measurement.noise.variance())


@pytest.mark.parametrize(("kind", "factor"), KINDS)
def test_posterior_is_that_of_dense_algebra(kind, factor):
    problem = grf(kind, 8, factor=factor, seed=3)
    forward = lambda x: problem.operator.forward(x).flatten(1)  # noqa: E731
    exact = problem.prior.posterior(forward, problem.measurement.y, 0.1)
    mean = problem.coordinates.back(problem.law.mean[None])[0].flatten()
    torch.testing.assert_close(mean, exact.mean, rtol=0, atol=1e-10)
    unit = torch.eye(len(mean), dtype=torch.float64).reshape(-1, *problem.shape)
    root = (problem.coordinates.back(problem.law.variance.sqrt() * unit)).flatten(1)
    torch.testing.assert_close(root.mT @ root, exact.covariance, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        problem.coordinates.back(problem.coordinates.to(unit)), unit, rtol=0, atol=1e-12
    )
    assert problem.pixel_variance() == pytest.approx(float(exact.covariance.trace()) / len(mean), abs=1e-10)
    assert problem.law.log_evidence + unmeasured(problem) == pytest.approx(exact.log_evidence, abs=1e-10)
    matrix = forward(unit).mT
    gap = problem.measurement.y.flatten() - matrix @ exact.mean
    square = gap.square().sum() + (matrix @ exact.covariance @ matrix.mT).trace()
    chi2 = float(square) / problem.measurement.noise.variance() / problem.measurement.size
    assert problem.law.chi2 == pytest.approx(chi2, rel=1e-10)


@pytest.mark.parametrize(("kind", "factor"), KINDS)
def test_operator_keeps_the_contract(kind, factor):
    operator = grf(kind, 16, factor=factor).operator
    for result in check_operator(operator, operator.event_shape):
        assert result.passed, result


@pytest.mark.parametrize("factor", [2, 4])
def test_resolvent_of_super_resolution(factor):
    operator = grf("superres", 16, factor=factor).operator
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solved = operator.resolvent(x, 7.0)
    torch.testing.assert_close(solved + 7.0 * operator.normal(solved), x, rtol=0, atol=1e-12)


def test_slices_are_lines_through_the_origin_closed_under_reflection():
    mask = slice_mask(32, 8)
    assert torch.equal(mask, mirrored(mask))
    two = slice_mask(32, 2)  # the two axes
    assert float(two.sum()) == 63 and bool(two[0].all()) and bool(two[:, 0].all())
    assert 0.2 < float(mask.mean()) < 0.3


def test_columns_keep_the_center():
    for acceleration, center in ((4, 20), (8, 10)):
        mask = column_mask(256, acceleration, seed=0)
        assert float(mask[0].sum()) == 256 // acceleration
        near = torch.fft.fftfreq(256, 1 / 256).abs() < center / 2
        assert bool(mask[:, near].all())


def test_grf_refuses_what_it_does_not_know():
    with pytest.raises(InputError, match="superres"):
        grf("radial")
    with pytest.raises(InputError, match="decimated by 3"):
        grf("superres", 32, factor=3)


@pytest.mark.parametrize(("kind", "factor"), KINDS)
def test_exact_draws_are_standard_in_every_band(kind, factor):
    """Mean of z and of z^2 in each of at most 16 bands, 32 draws; 4.5 sd: false alarm 2e-4 a problem."""
    problem = grf(kind, 32, factor=factor)
    z = problem.standardised(problem.sample(32, torch.Generator().manual_seed(0)))
    assert len(problem.bands()) <= 16
    for band in problem.bands():
        part = z[:, :, band]
        assert abs(float(part.mean())) * math.sqrt(part.numel()) < 4.5
        assert abs(float(part.square().mean()) - 1) * math.sqrt(part.numel() / 2) < 4.5


@pytest.mark.parametrize(("side", "least"), [(8, 3), (16, 6), (32, 12)])
def test_bands_partition_the_coordinates(side, least):
    masks = bands(column_mask(side, 4, 0) > 0)
    assert len(masks) >= least
    assert float(torch.stack(masks).sum(0).max()) == 1


@pytest.mark.parametrize("kind", ["mri", "superres"])
def test_distance_and_statistics_see_a_wrong_spread_where_it_is(kind):
    """Measured coordinates with twice the spread, which a pixel std would not show."""
    problem = grf(kind, 32)
    masks = problem.bands()
    x = problem.sample(32, torch.Generator().manual_seed(0))
    assert problem.distance(x) < 0.08
    c, seen = problem.coordinates.to(x), problem.coordinates.gain != 0
    doubled = problem.coordinates.back(torch.where(seen, 2 * c - problem.law.mean, c))
    assert float(doubled.std(dim=0).mean() / x.std(dim=0).mean()) < 1.3
    assert problem.distance(doubled) > 0.5
    assert worst_variance(problem.standardised(x), masks) == worst_mean(problem.standardised(x), masks) == 1
    assert 3.5 < worst_variance(problem.standardised(doubled), masks) < 4.5
    shifted = c + 0.2 * problem.law.variance.sqrt() * masks[3]
    z = problem.standardised(problem.coordinates.back(shifted))
    assert 1.05 < worst_mean(z, masks) < 1.25


@pytest.mark.parametrize(("kind", "side"), [("mri", 32), ("ct", 36), ("superres", 36)])
def test_verdicts(kind, side):
    """Exact draws of eight seeds are exact; the prior, gradient guidance and a narrow spread are not.

    False alarm of a seed about 1e-4: a band has to be off by 5 % more than four of its standard errors.
    """
    known = field(kind, side=side, draws=32)
    for seed in range(8):
        row = judge(ExactDraws(known), known, seed)
        assert row.verdict == "exact", (seed, row.note)
    assert judge(PriorDraws(), known, 0).verdict == "biased"
    row = judge(shipped("likelihood_gradient", known), known, 0)
    assert row.verdict == "biased" and "worst band variance" in row.note
    narrow = Altered(known.sample, lambda x: x.mean(0) + 0.9 * (x - x.mean(0)))
    row = judge(narrow, few(known, 64), 0)
    assert row.verdict == "biased" and "worst band variance" in row.note


@pytest.mark.parametrize("kind", ["ct", "superres"])
def test_moment_matching_is_exact_on_fields(kind):
    known = field(kind, draws=16)
    row = judge(shipped("moment_matching", known), known, 0)
    assert row.verdict == "exact", row.note
    assert row.agrees


def test_exact_expectations_are_those_of_the_reference_sets():
    """chi2 over 20 exact sets against the closed form: 4.5 standard errors, false alarm 7e-6 each."""
    for kind, factor in KINDS:
        problem, known = grf(kind, 32, factor=factor), field(kind, factor=factor, draws=8)
        values = known.reference.statistics["chi2"]
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - problem.law.chi2) < 4.5 * error, kind
        assert known.log_evidence == problem.law.log_evidence
