"""Calibration tests pass for exact posteriors and fail for wrong ones: a check must be able to fail."""

from __future__ import annotations

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from invdiff.benchmark.grf import grf
from invdiff.cli.main import app
from invdiff.diagnostics.calibration import check_scalar, ranks_of, tarp
from invdiff.diagnostics.functionals import functionals

ALPHA = 1e-3


def gaussian_posteriors(problems, draws, shift=0.0, width=1.0, seed=0):
    """x* | y ~ N(m, 1); samples N(m + shift, width^2)."""
    g = torch.Generator().manual_seed(seed)
    center = torch.randn(problems, generator=g, dtype=torch.float64)
    truth = center + torch.randn(problems, generator=g, dtype=torch.float64)
    white = torch.randn(problems, draws, generator=g, dtype=torch.float64)
    return truth, center[:, None] + shift + width * white


def test_exact_posteriors_are_calibrated():
    """100 seeds at alpha = .001 for each of two tests: more than 2 failures have probability .001."""
    failures = 0
    for seed in range(100):
        truth, draws = gaussian_posteriors(200, 99, seed=seed)
        failures += check_scalar("x", truth, draws, seed).verdict(ALPHA) != "calibrated"
    assert failures <= 2


@pytest.mark.parametrize(
    ("shift", "width", "word"),
    [(0.5, 1.0, "below"), (-0.5, 1.0, "above"), (0.0, 0.6, "over"), (0.0, 1.7, "under")],
)
def test_wrong_posteriors_are_found(shift, width, word):
    truth, draws = gaussian_posteriors(200, 99, shift, width)
    assert word in check_scalar("x", truth, draws).verdict(ALPHA)


def test_z2_sees_a_narrow_posterior():
    truth, draws = gaussian_posteriors(200, 99, width=0.8)
    found = check_scalar("x", truth, draws)
    assert found.z2 == pytest.approx(1 / 0.64, rel=0.3)
    assert found.z2 > found.z2_limits[1]
    low, high = found.z2_limits
    assert 0.66 < low < 0.78 and 1.26 < high < 1.45  # published null .71 to 1.35


def test_ties_are_broken_at_random():
    truth, draws = torch.zeros(4000), torch.zeros(4000, 9)
    ranks = ranks_of(truth, draws, torch.Generator().manual_seed(0))
    counts = torch.bincount(ranks, minlength=10).double()
    assert len(counts) == 10 and float(((counts - 400) ** 2 / 400).sum()) < 28  # chi-square, 9 df, 1e-3


def joint(problems, draws, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    center = torch.randn(problems, 3, generator=g, dtype=torch.float64)
    truth = center + torch.randn(problems, 3, generator=g, dtype=torch.float64)
    white = torch.randn(problems, draws, 3, generator=g, dtype=torch.float64)
    return truth, center[:, None] + width * white


def test_tarp():
    for seed in range(20):
        exact = tarp(*joint(200, 99, 1.0, seed), seed=seed)
        assert abs(exact.area) < exact.limit and exact.pvalue > 1e-4
    narrow, wide = tarp(*joint(200, 99, 0.5)), tarp(*joint(200, 99, 2.0))
    assert narrow.area < -narrow.limit
    assert wide.area > wide.limit
    truth, draws = joint(200, 99, 1.0)
    scaled = tarp(1e3 * truth, 1e3 * draws)
    assert scaled.area == pytest.approx(tarp(truth, draws).area, abs=1e-9)


def test_functionals_of_a_field():
    problem = grf("mri", 16)
    x = problem.sample(5, torch.Generator().manual_seed(0))
    found = functionals(x, problem.measurement)
    assert found["norm"][2] == pytest.approx(float(x[2].norm()))
    hidden = problem.operator.modes(x)[:, :, problem.operator.gain == 0]
    torch.testing.assert_close(
        found["unmeasured energy"], hidden.flatten(1).square().sum(1), rtol=1e-4, atol=1e-6
    )
    alone = functionals(x[2:3], problem.measurement)
    for name, values in found.items():
        assert float(values[2]) == pytest.approx(float(alone[name][0]), rel=1e-9), name


def run(tmp_path, *arguments):
    out = tmp_path / "c"
    result = CliRunner().invoke(app, ["calibrate", *arguments, "--out", str(out)])
    content = json.loads((out / "calibrate.json").read_text()) if out.exists() else None
    return result, content


def test_command_on_closed_forms(tmp_path):
    result, content = run(tmp_path / "a", "--problem", "lingauss", "--problems", "20", "--draws", "19")
    assert result.exit_code == 0, result.output
    assert content["calibrated"] and "moment_matching" in result.output
    result, content = run(tmp_path / "b", "--problem", "lingauss", "--sampler", "dds", "--problems", "60")
    assert result.exit_code == 1
    assert not content["calibrated"]
    assert not math.isnan(content["tarp"]["area"])


def test_command_on_any_prior_and_operator(tmp_path):
    """The array pack's own example: its prior, its operator, a sampler of the loop."""
    result, content = run(
        tmp_path, "--domain", "array", "--sampler", "proximal", "--problems", "10", "--draws", "9",
        "sampler.steps=10",
    )  # fmt: skip
    assert result.exit_code in (0, 1), result.output
    assert content["sampler"] == "proximal" and len(content["scalars"]) >= 8


def test_command_refuses(tmp_path):
    for arguments in (["--problem", "lingaus"], ["--problem", "lingauss", "--draws", "3"]):
        result, content = run(tmp_path, *arguments)
        assert result.exit_code == 2 and content is None
