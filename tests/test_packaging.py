"""The wheel installs and solves; a plug-in in a distribution of its own works and is tested alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def build(source: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def unpack(wheel: Path, target: Path) -> dict[str, str]:
    """Install a wheel into a folder without network or dependencies; the environment to use it."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(command, check=True)
    return {**os.environ, "PYTHONPATH": str(target), "PYTHONSAFEPATH": "1"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build(ROOT, folder)
    return wheel, unpack(wheel, folder / "site")


def invdiff(env: dict[str, str], cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from invdiff.cli.main import main; sys.argv[0] = 'invdiff'; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd)


def test_wheel_has_packs_configs_weights_and_no_tests(installed):
    wheel = zipfile.ZipFile(installed[0])
    names = wheel.namelist()
    assert "invdiff/configs/config.yaml" in names
    assert "invdiff_mri/weights/brain_mr.safetensors" in names
    assert "invdiff_mri/examples/head.npz" in names
    assert {"invdiff_ct/weights/lung_ct.safetensors", "invdiff_ct/examples/chest.npz"} <= set(names)
    assert not [name for name in names if "/tests/" in name]
    names_of = ("photo_rgb", "photo_x4", "photo_rgb.boundary", "photo_x4.boundary")
    weights = {f"invdiff_superres/weights/{name}.safetensors" for name in names_of}
    weights.add("invdiff_molecule/weights/qm9_masked.safetensors")
    assert weights <= set(names)
    sizes = {one.filename: one.compress_size for one in wheel.infolist()}
    assert max(sizes.values()) < 10_000_000
    assert sum(size for name, size in sizes.items() if not name.endswith(".safetensors")) < 2_000_000


def test_wheel_lists_and_solves(installed, tmp_path):
    env = installed[1]
    listed = invdiff(env, tmp_path, "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "undersample" in {row["name"] for row in json.loads(listed.stdout)}
    where = subprocess.run(
        [sys.executable, "-c", "import invdiff; print(invdiff.__file__)"],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert str(env["PYTHONPATH"]) in where.stdout
    solved = invdiff(
        env,
        tmp_path,
        "solve",
        "--domain",
        "mri",
        "--samples",
        "1",
        "sampler.steps=2",
        "--no-baselines",
        "--json",
    )
    assert solved.returncode == 0, solved.stderr
    run = Path(json.loads(solved.stdout)["run"])
    assert (tmp_path / run / "report.html").exists()


def test_plugin_runs_and_passes_the_contract(tmp_path):
    wheel = build(ROOT / "tests" / "plugin_example", tmp_path)
    env = unpack(wheel, tmp_path / "site")
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(ROOT), str(ROOT / "domains")])
    solved = invdiff(
        env,
        tmp_path,
        "solve",
        "--operator",
        "row_average",
        "--prior",
        "white",
        "domain.shape=[1,24,24]",
        "samples=2",
        "sampler.steps=8",
        "--json",
    )
    assert solved.returncode == 0, solved.stderr
    assert json.loads(solved.stdout)["metrics"]["array"]["notes"]["data"].startswith("simulated")
    refused = invdiff(env, tmp_path, "solve", "--operator", "row_average", "domain.shape=[1,25,24]")
    assert refused.returncode == 2
    assert "multiple of 2 rows" in refused.stderr
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--pyargs",
        "invdiff.testing",
        "-rA",
        "-p",
        "no:cacheprovider",
        "-k",
        "row_average or white or composes",
    ]
    tested = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout
    assert (
        "row_average"
        in subprocess.run([*command, "-v"], capture_output=True, text=True, env=env, cwd=tmp_path).stdout
    )
