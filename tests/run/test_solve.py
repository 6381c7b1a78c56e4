"""Runs: the same seed gives the same bytes, killed runs resume to them, bad input is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from invdiff.cli.main import app
from invdiff.config import compose
from invdiff.errors import InputError
from invdiff.run.solve import begin, execute, plan, resume

QUICK = ["domain=array", "domain.shape=[1,24,24]", "sampler.steps=12"]


def run(tmp_path: Path, name: str, *overrides: str) -> Path:
    job = plan(compose([*QUICK, f"run.out={tmp_path / name}", *overrides]))
    folder = begin(job)
    execute(job, folder)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """Every file that holds results (not times, not the place it was written to)."""
    kept = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("log.jsonl", "timing.json", "report.html", "config.yaml"):
            kept[str(path.relative_to(folder))] = path.read_bytes()
    return kept


def test_same_seed_same_bytes(tmp_path):
    first, second = run(tmp_path, "a", "samples=3"), run(tmp_path, "b", "samples=3")
    assert results(first) == results(second)
    other = run(tmp_path, "c", "samples=3", "seed=1")
    assert results(first)["items/array/samples.npy"] != results(other)["items/array/samples.npy"]


def test_seed_zero_is_a_seed(tmp_path):
    zero = run(tmp_path, "a", "samples=2", "seed=0")
    assert results(zero) == results(run(tmp_path, "b", "samples=2"))


def test_first_sample_does_not_depend_on_how_many(tmp_path):
    one = np.load(run(tmp_path, "a", "samples=1") / "items/array/samples.npy")
    many = np.load(run(tmp_path, "b", "samples=16") / "items/array/samples.npy")
    assert one[0].tobytes() == many[0].tobytes()
    together = np.load(run(tmp_path, "c", "samples=16", "run.batch=16") / "items/array/samples.npy")
    np.testing.assert_allclose(together, many, atol=1e-4)


def test_interrupted_run_never_looks_finished_and_resumes_to_the_same_bytes(tmp_path):
    whole = run(tmp_path, "whole", "samples=4")
    job = plan(compose([*QUICK, "samples=4", f"run.out={tmp_path / 'cut'}"]))
    folder = begin(job)

    def stop(what: str, done: int, total: int) -> None:
        if done > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(job, folder, stop)
    assert json.loads((folder / "status.json").read_text())["status"] == "interrupted"
    assert not (folder / "report.html").exists()
    assert not (folder / "metrics.json").exists()
    assert len(list((folder / "items/array").glob("samples_*.safetensors"))) == 2
    resume(folder)
    assert results(whole) == results(folder)
    with pytest.raises(InputError, match="is complete"):
        resume(folder)


@pytest.mark.parametrize("wait", [0.0, 0.4, 0.9])
def test_killed_run_resumes_to_the_same_bytes(tmp_path, wait):
    whole = run(tmp_path, "whole", "samples=60", "sampler.steps=40")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "invdiff.cli.main", "solve", *QUICK, "sampler.steps=40"]
    command.remove("sampler.steps=12")
    process = subprocess.Popen(
        [*command, "samples=60", "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (out / "items").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (out / "status.json").exists() or "complete" not in (out / "status.json").read_text():
        assert not (out / "report.html").exists()
        resume(out)
    assert results(whole) == results(out)


def test_changed_input_is_noticed(tmp_path):
    np.save(tmp_path / "y.npy", np.ones((1, 24, 24), np.float32))
    config = [*QUICK, f"input.path={tmp_path / 'y.npy'}", "noise.sigma=0.1", "samples=2"]
    job = plan(compose([*config, f"run.out={tmp_path / 'r'}"]))
    folder = begin(job)
    np.save(tmp_path / "y.npy", np.zeros((1, 24, 24), np.float32) + 0.5)
    with pytest.raises(InputError, match="has changed"):
        resume(folder)


BAD = {
    "unknown sampler": (["sampler=ddss"], "did you mean 'dds'"),
    "unknown operator": (["operator=undersampel"], "did you mean 'undersample'"),
    "unknown prior": (["prior=gausian"], "did you mean 'gaussian'"),
    "unknown domain": (["domain=mir"], "unknown domain 'mir'"),
    "contradiction": (["domain=mri", "operator=identity"], "belongs to domain 'array'"),
    "unknown key": (["sampler.stepz=3"], "stepz"),
    "no samples": (["domain=array", "samples=0"], "at least one"),
    "no such device": (["domain=array", "run.device=gpu7"], "unknown device"),
    "no such file": (["domain=array", "input.path=nowhere.npy", "noise.sigma=1"], "no file"),
    "not key=value": (["steps"], "expected key=value"),
    "schedule": (["domain=array", "sampler.sigma_min=9"], "sigma_min < sigma_max"),
    "target": (["domain=array", "+sampler._target_=os.system"], "_target_"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_exit_2_and_nothing_written(case, tmp_path):
    overrides, message = BAD[case]
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["solve", *overrides, "--out", str(out)])
    assert result.exit_code == 2, result.output
    assert message in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_flag_and_override_that_contradict():
    result = CliRunner().invoke(app, ["solve", "--sampler", "dds", "sampler=dps"])
    assert result.exit_code == 2
    assert "given twice" in result.stderr


def test_full_disk_is_refused(tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    result = CliRunner().invoke(app, ["solve", *QUICK, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "MB free" in result.stderr


def test_prior_of_another_scale_is_refused(tmp_path):
    np.save(tmp_path / "y.npy", 1e4 * np.ones((1, 24, 24), np.float32))
    overrides = ["domain=array", f"input.path={tmp_path / 'y.npy'}", "noise.sigma=1"]
    result = CliRunner().invoke(app, ["solve", *overrides, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "root mean square" in result.stderr


def test_json_cfg_sweep_and_report(tmp_path):
    runner = CliRunner()
    result = runner.invoke(app, ["solve", *QUICK, "--out", str(tmp_path / "a"), "--json", "samples=2"])
    assert result.exit_code == 0, result.stderr
    metrics = json.loads(result.stdout)["metrics"]["array"]
    assert metrics["network_calls_per_sample"] == 12
    result = runner.invoke(app, ["solve", *QUICK, "--cfg"])
    assert "split_langevin" in result.stdout
    folder = tmp_path / "sweep"
    result = runner.invoke(
        app,
        [
            "solve",
            "-m",
            *QUICK[:2],
            "sampler=dds,proximal",
            "sampler.steps=5",
            "samples=1",
            f"run.folder={folder}",
        ],
    )
    assert result.exit_code == 0, result.stderr
    assert len(list(folder.iterdir())) == 2
    assert runner.invoke(app, ["report", str(tmp_path / "a")]).exit_code == 0
    assert runner.invoke(app, ["report", str(tmp_path)]).exit_code == 2


def test_list_doctor_check_and_sample(tmp_path):
    runner = CliRunner()
    assert "split_langevin" in runner.invoke(app, ["list"]).stdout
    assert "network precision" in runner.invoke(app, ["doctor"]).stdout
    result = runner.invoke(app, ["check", "operator", "undersample", "--shape", "2,32,32"])
    assert result.exit_code == 0, result.stdout
    arguments = ["sample", "--prior", "gaussian", "--shape", "1,32,32", "--steps", "8", "--out"]
    result = runner.invoke(app, [*arguments, str(tmp_path / "draws")])
    assert result.exit_code == 0, result.stderr
    assert np.load(tmp_path / "draws.npy").shape == (4, 1, 32, 32)


def test_import_budget():
    """`--help` without torch; `import invdiff` without the domain libraries."""
    code = (
        "import sys, invdiff, invdiff.cli.main; "
        "heavy = {'torch', 'deepinv', 'monai', 'rdkit', 'torch_geometric', 'hydra'} & set(sys.modules); "
        "assert not heavy, heavy; invdiff.Measurement; "
        "heavy = {'deepinv', 'monai', 'rdkit', 'torch_geometric'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_a_particle_run_reports_its_filters(tmp_path):
    """Evidence and ESS are in the metrics; on an image the report says that weights only select."""
    from invdiff.api import solve

    out = tmp_path / "run"
    solve(
        "domain=array", "sampler=twisted", "sampler.particles=4", "sampler.keep=1", "sampler.steps=10",
        "samples=2", out=str(out),
    )  # fmt: skip
    item = next(iter(json.loads((out / "metrics.json").read_text()).values()))
    assert item["facts"]["filters"] == 2
    assert "smallest ESS / N" in item["facts"]
    assert any("select particles" in sentence for sentence in item["warnings"])
    assert "select particles" in (out / "report.html").read_text()
