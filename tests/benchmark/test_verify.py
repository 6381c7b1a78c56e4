"""`invdiff verify`: verdicts, controls, files, exit codes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from invdiff.api import make_sampler
from invdiff.benchmark.gmm25 import gmm25
from invdiff.benchmark.problems import few, lingauss, mixture
from invdiff.benchmark.verify import Row, controls, expected_control, in_two_stages, judge, shipped, verify
from invdiff.cli.main import app
from invdiff.errors import InputError
from invdiff.sampler.loop import Draws


def row_of(sampler, known):
    return expected_control(judge(sampler, known, 0))


def test_controls_come_out_as_they_must():
    known = mixture(8, 1, 0)
    rows = [row_of(sampler, known) for sampler in controls(known)]
    assert [row.verdict for row in rows] == ["exact", "biased"]
    assert all(row.agrees for row in rows)


@pytest.mark.parametrize("name", ["moment_twisted", "twisted"])
def test_weighted_samplers_are_exact_on_a_mixture(name):
    known = mixture(8, 2, 1)
    row = row_of(shipped(name, known), known)
    assert row.verdict == "exact", row.note
    assert abs(row.log_evidence_error) < 0.3
    assert row.distance < 2 * row.floor


def test_moment_matching_is_exact_on_a_gaussian_and_not_on_a_mixture():
    gaussian, other = lingauss(), mixture(8, 2, 0)
    assert row_of(shipped("moment_matching", gaussian), gaussian).verdict == "exact"
    row = row_of(shipped("moment_matching", other), other)
    assert row.verdict == "biased" and row.agrees  # its claim does not cover mixtures
    assert row.calls == 100 and row.derivatives > 100


def test_a_broken_claim_is_found():
    """The same sampler with a spread that is 20 % too small, still claiming to be exact."""
    known = lingauss()

    class Narrow:
        name, claim, steps = "narrow", "exact", 1

        def __call__(self, prior, measurement, shape, noise, progress=None):
            x = known.sample(len(noise.particles), torch.Generator().manual_seed(3))
            return Draws(x.mean(0) + 0.8 * (x - x.mean(0)))

    row = row_of(Narrow(), known)
    assert row.verdict == "fails" and not row.agrees


def test_a_sampler_that_blows_up_fails():
    known = lingauss()
    sampler = make_sampler("ensemble", known.prior.card, temper=0.0, particles=16, keep=4)
    row = row_of(sampler, known)
    assert row.verdict == "not applicable"
    assert "unstable" in row.note


def test_unknown_names():
    with pytest.raises(InputError, match="moment_twisted"):
        verify(samplers=["moment_twist"])
    with pytest.raises(InputError, match="gmm25"):
        verify(problems=["gmm"])


def test_command_writes_table_json_and_figure(tmp_path):
    out = tmp_path / "v"
    arguments = ["verify", "--sampler", "moment_matching", "--problem", "lingauss", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "every verdict agrees with its claim" in result.output
    rows = json.loads((out / "verify.json").read_text())["rows"]
    assert {row["sampler"] for row in rows} == {"(exact draws)", "moment_matching"}
    assert "invdiff verify --sampler moment_matching" in (out / "verify.md").read_text()
    assert (out / "verify.png").stat().st_size > 5000


def test_command_refuses_unknown_names(tmp_path):
    result = CliRunner().invoke(app, ["verify", "--problem", "gmm52", "--out", str(tmp_path / "v")])
    assert result.exit_code == 2
    assert not (tmp_path / "v").exists()


def test_evidence_and_error_in_n(monkeypatch):
    """Few replicates: methods that claim it pass, controls fail, the ensemble claims no evidence."""
    monkeypatch.setattr("invdiff.benchmark.evidence.REPLICATES", 20)
    monkeypatch.setattr("invdiff.benchmark.scaling.SIZES", (50, 800))
    monkeypatch.setattr("invdiff.benchmark.scaling.REFINED", 1)
    monkeypatch.setattr("invdiff.benchmark.scaling.FILTERS", 8)
    rows = verify(["moment_twisted", "ensemble", "dds"], ["evidence", "scaling"])
    assert all(row.agrees for row in rows), [
        (row.sampler, row.problem, row.note) for row in rows if not row.agrees
    ]
    assert {row.sampler for row in rows} == {
        "moment_twisted",
        "(moment_twisted without weights)",
        "ensemble",
        "(ensemble without weights)",
    }
    evidence = [row for row in rows if row.problem.startswith("evidence") and row.sampler == "moment_twisted"]
    assert [row.verdict for row in evidence] == ["exact", "exact"]


def test_kolmogorov_statistic_is_that_of_the_exact_marginals():
    """sqrt(n) D of exact draws follows Kolmogorov's law (mean .87 in one direction, more in the worst of 16);
    draws that are shifted by a third of a std, or half as wide in a mode, are seen."""
    problem = gmm25(8, 2, 0)
    found = [
        problem.kolmogorov(problem.sample(2000, torch.Generator().manual_seed(seed))) for seed in range(40)
    ]
    assert 1.1 < float(np.mean(found)) < 1.6 and max(found) < 2.5
    x = problem.sample(2000, torch.Generator().manual_seed(99))
    assert problem.kolmogorov(x + 0.33) > 4
    assert problem.kolmogorov(problem.mode_means[problem.responsibilities(x).argmax(1)] * 0.5 + 0.5 * x) > 4


def test_a_claim_is_broken_only_where_a_second_try_says_so(monkeypatch):
    known = few(mixture(8, 1, 0), 100)
    first = Row(known.name, "twisted", "consistent", "fails", "4 floors", False)
    for second, verdict in (
        (replace(first, verdict="exact", note="", agrees=True), "exact"),
        (first, "fails"),
    ):
        asked = []

        def judged(sampler, problem, seed, second=second, asked=asked):
            asked.append((problem.draws, seed))
            return first if len(asked) == 1 else second

        monkeypatch.setattr("invdiff.benchmark.verify.judge", judged)
        assert in_two_stages("twisted", known, 3).verdict == verdict
        assert asked == [(100, 3), (400, 4)]
