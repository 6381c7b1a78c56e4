"""Noise models and nonlinear operators by name, from the command line's configuration."""

from __future__ import annotations

import numpy as np
import pytest

from invdiff.config import compose
from invdiff.errors import InputError
from invdiff.measurement.likelihoods import PoissonNoise
from invdiff.registry import plugins
from invdiff.run.solve import begin, execute, plan

GIVEN = {
    "gaussian": ["noise.sigma=0.1"],
    "poisson": ["noise.gain=50", "noise.background=2"],
    "poisson_gaussian": ["noise.gain=50", "noise.sigma=1", "noise.background=2"],
    "rician": ["noise.sigma=0.1"],
    "laplace": ["noise.scale=0.1"],
    "quantised": ["noise.sigma=0.1", "noise.step=0.05"],
}
SMALL = ["domain=array", "domain.shape=[1,8,8]", "samples=2"]


def test_every_registered_noise_is_tried_here():
    assert set(GIVEN) == set(plugins("noises"))


@pytest.mark.parametrize("name", GIVEN)
def test_noise_by_name(name, tmp_path):
    """A run under each: finite samples, and the noise in the notes of the report."""
    overrides = [*SMALL, f"noise={name}", *GIVEN[name], "sampler=daps", "sampler.steps=5"]
    job = plan(compose([*overrides, f"run.out={tmp_path / 'run'}"]))
    results = execute(job, begin(job))
    assert np.isfinite(np.load(tmp_path / "run/items/array/samples.npy")).all()
    assert type(job.problems[0].measurement.noise).__name__ in results["array"]["notes"]["noise"]


@pytest.mark.parametrize(
    ("operator", "shape"),
    [("magnitude", "[2,8,8]"), ("phase_retrieval", "[1,8,8]"), ("saturation", "[1,8,8]")],
)
def test_nonlinear_operator_by_name(operator, shape, tmp_path):
    extra = ["operator.level=0.3"] if operator == "saturation" else []
    overrides = [f"operator={operator}", *extra, f"domain.shape={shape}", "samples=2"]
    job = plan(compose([*overrides, "sampler=daps", "sampler.steps=5", f"run.out={tmp_path / 'run'}"]))
    execute(job, begin(job))
    assert np.load(tmp_path / "run/items/array/mean.npy").shape == tuple(map(int, shape[1:-1].split(",")))


def test_counts_from_a_file(tmp_path):
    counts = tmp_path / "counts.npy"
    np.save(counts, np.full((1, 8, 8), 30.0, np.float32))
    chosen = ["domain=array", f"input.path={counts}", "noise=poisson", "noise.gain=50", "sampler=daps"]
    assert plan(compose(chosen)).problems[0].measurement.noise == PoissonNoise(50)
    np.save(counts, np.full((1, 8, 8), 30.5, np.float32))
    with pytest.raises(InputError, match="whole numbers"):
        plan(compose(chosen))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["noise=poisson", "noise.gain=50"], "needs Gaussian noise"),
        (["noise=poisson", "sampler=daps"], r"noise\.gain must be given"),
        (["noise=poison", "noise.gain=50"], "poisson"),
        (["noise=poisson", "noise.gain=-1", "sampler=daps"], "gain"),
        (["noise=poisson", "noise.gain=5", "sampler=dds"], "needs Gaussian noise"),
        (["operator=saturation", "operator.level=1"], "linear"),
    ],
)
def test_refusals_before_any_work(overrides, words):
    with pytest.raises(InputError, match=words):
        plan(compose(["domain=array", *overrides]))


def test_mri_noise_is_gaussian():
    with pytest.raises(InputError, match="k-space noise is Gaussian"):
        plan(compose(["domain=mri", "noise=poisson", "noise.gain=5"]))
