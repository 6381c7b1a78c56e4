"""Choosing phase-encode lines: retrospective, by an instrument in another process, and every refusal."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from invdiff import InputError, compose
from invdiff.measurement.candidates import candidates_of, select
from invdiff.run.solve import begin, execute, plan, resume
from invdiff_mri.active import CandidateLines, line_mask
from invdiff_mri.coils import simulate_coils
from invdiff_mri.operators import CartesianSense, to_kspace

SIDE = 48
ACTIVE = [
    "operator=active_lines",
    "operator.budget=14",
    "operator.design.turns=3",
    "operator.design.particles=3",
    "operator.design.steps=4",
    "sampler.steps=4",
    "sampler.start_steps=4",
    "samples=2",
    "run.baselines=false",
]


def full_scan(coils: int = 1) -> np.ndarray:
    axis = torch.linspace(-1, 1, SIDE)
    disc = ((axis[:, None] / 0.7) ** 2 + (axis[None] / 0.8) ** 2 < 1).float()
    image = disc * (0.7 + 0.2 * torch.sin(5 * axis[:, None]) * torch.cos(6 * axis[None]))
    image = image * torch.exp(1j * (0.5 + axis[:, None]))
    maps = simulate_coils(coils, SIDE, SIDE) if coils > 1 else torch.ones(1, SIDE, SIDE)
    generator = torch.Generator().manual_seed(0)
    noise = torch.view_as_complex(torch.randn((coils, SIDE, SIDE, 2), generator=generator))
    return (to_kspace(maps * image) + 0.01 * noise).to(torch.complex64).numpy()


def scan_file(tmp_path, coils=1, axes="coil,y,x", lines=None):
    kspace = full_scan(coils)
    if lines is not None:
        kspace = kspace * line_mask((SIDE, SIDE), lines, -1).numpy()
    path = tmp_path / ("full.npz" if lines is None else "start.npz")
    np.savez(path, kspace=kspace)
    return path


def run(tmp_path, name, *overrides):
    job = plan(compose([*ACTIVE, 'input.axes="coil,y,x"', f"run.out={tmp_path / name}", *overrides]))
    folder = begin(job)
    return folder, execute(job, folder)


def record(folder):
    return json.loads(next((folder / "items").iterdir()).joinpath("acquisition.json").read_text())


def order(folder):
    return [line for turn in record(folder)["turns"] for line in turn["chosen"]]


@pytest.mark.parametrize("axis", [0, -1])
def test_selected_lines_are_the_undersampled_scan(axis):
    maps = simulate_coils(3, 20, 24)
    operator = CandidateLines(maps, axis)
    x = torch.randn(1, 2, 20, 24, generator=torch.Generator().manual_seed(0))
    y = operator(x)[0]
    part, data = select(operator, [3, 7], y)
    assert isinstance(part, CartesianSense)
    torch.testing.assert_close(part(x)[0], data)
    assert int(candidates_of(operator).max()) == (19 if axis == 0 else 23)
    assert part.data_size(data) == 2 * 3 * 2 * (24 if axis == 0 else 20)


@pytest.mark.parametrize("coils", [1, 4])
def test_a_full_scan_plays_the_scanner(tmp_path, coils):
    folder, results = run(tmp_path, "run", f"input.path={scan_file(tmp_path, coils)}", "operator.budget=20")
    lines = order(folder)
    assert len(lines) == len(set(lines)) == 20
    start = record(folder)["turns"][0]["chosen"]
    assert start == list(range(SIDE // 2 - len(start) // 2, SIDE // 2 - len(start) // 2 + len(start)))
    assert len(start) == (4 if coils == 1 else 12)
    notes = next(iter(results.values()))["notes"]
    assert notes["acceleration"] == round(SIDE / 20, 2) and notes["policy"] == "variance"
    assert "posterior entropy (nats a component)" in next(iter(results.values()))["facts"]
    assert (folder / "figures" / "full_acquisition.png").exists()
    with np.load(next((folder / "items").iterdir()) / "result.npz") as file:
        assert sorted(np.flatnonzero(file["mask"][0])) == sorted(lines)


def test_unmeasured_lines_are_never_seen(tmp_path):
    """The same result when all lines that were not chosen are replaced by something else."""
    path = scan_file(tmp_path)
    one, _ = run(tmp_path, "one", f"input.path={path}", "noise.sigma=0.01")
    kspace = full_scan()
    other = np.setdiff1d(np.arange(SIDE), order(one))
    kspace[:, :, other] = 0.3 + 0.1j
    np.savez(tmp_path / "full.npz", kspace=kspace)
    two, _ = run(tmp_path, "two", f"input.path={path}", "noise.sigma=0.01")
    assert order(one) == order(two)
    results = [np.load(next((folder / "items").iterdir()) / "result.npz")["samples"] for folder in (one, two)]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("policy", ["entropy", "random", "equispaced", "variable_density"])
def test_other_policies(tmp_path, policy):
    folder, _ = run(tmp_path, "run", f"input.path={scan_file(tmp_path)}", f"operator.design.policy={policy}")
    assert record(folder)["policy"] == policy and len(set(order(folder))) == 14


def test_a_killed_run_chooses_the_same_and_goes_on(tmp_path, monkeypatch):
    path = scan_file(tmp_path)
    whole, _ = run(tmp_path, "whole", f"input.path={path}")
    job = plan(
        compose([*ACTIVE, 'input.axes="coil,y,x"', f"input.path={path}", f"run.out={tmp_path / 'cut'}"])
    )
    cut = begin(job)
    seen = []

    def stop(what, done, total):
        seen.append(what)
        if what == "sampling" and done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(job, cut, stop)
    assert any("measuring" in what for what in seen)
    assert json.loads((cut / "status.json").read_text())["status"] == "interrupted"
    assert (next((cut / "items").iterdir()) / "acquisition.json").exists()
    resume(cut)
    files = [next((folder / "items").iterdir()) / "result.npz" for folder in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_scanner_in_a_second_process(tmp_path):
    """The instrument answers through files and the run ends as the retrospective one does."""
    full = scan_file(tmp_path)
    start = scan_file(tmp_path, lines=range(22, 26))
    folder = tmp_path / "exchange"
    folder.mkdir()
    command = [sys.executable, "-m", "invdiff_mri.examples.scanner", str(full), str(folder)]
    scanner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        asked, results = run(
            tmp_path,
            "asked",
            f"input.path={start}",
            f"operator.design.exchange={folder}",
            "operator.design.timeout=60",
            "noise.sigma=0.01",
        )
        out, _ = scanner.communicate(timeout=30)
    finally:
        scanner.kill()
    assert "answered 3 requests" in out
    requests = [json.loads(path.read_text()) for path in sorted(folder.glob("request_*.json"))]
    assert [one for request in requests for one in request["candidates"]] == order(asked)[4:]
    assert requests[0]["shape"] == [len(requests[0]["candidates"]), 1, SIDE]
    assert next(iter(results.values()))["notes"]["acquisition"] == "prospective"
    told, _ = run(tmp_path, "told", f"input.path={full}", "noise.sigma=0.01")
    assert order(told) == order(asked)


def test_an_instrument_that_is_silent_or_wrong(tmp_path):
    start = scan_file(tmp_path, lines=range(22, 26))
    silent = ["noise.sigma=0.01", f"input.path={start}", "operator.design.timeout=0.2"]
    with pytest.raises(InputError, match=r"no answer answer_0001\.npy"):
        run(tmp_path, "silent", *silent, f"operator.design.exchange={tmp_path / 'silence'}")
    assert json.loads((tmp_path / "silent/status.json").read_text())["status"] == "interrupted"
    for number, (content, words) in enumerate(
        ((np.zeros((2, 1, SIDE)), "asked for"), (np.full((4, 1, SIDE), np.nan), "not finite"))
    ):
        folder = tmp_path / f"wrong{number}"
        folder.mkdir()
        np.save(folder / "answer_0001.npy", content)
        with pytest.raises(InputError, match=words):
            run(tmp_path, f"w{number}", *silent, f"operator.design.exchange={folder}", "operator.budget=16")
    used = tmp_path / "used"
    used.mkdir()
    (used / "request_0001.json").write_text("{}")
    with pytest.raises(InputError, match="another run"):
        run(tmp_path, "used-run", *silent, f"operator.design.exchange={used}")


def test_refusals(tmp_path):
    full, start = scan_file(tmp_path), scan_file(tmp_path, lines=range(20, 28))
    for path, overrides, words in (
        (full, ["operator.budget=49"], "there are 48 candidates"),
        (full, ["operator.budget=2", "operator.design.initial=4"], "start alone measures 4"),
        (full, ["operator.budget=0"], "raise the budget"),
        (full, ["operator.design.policy=best"], "policy"),
        (full, ["operator.design.particles=1"], "two or more"),
        (full, ["operator.design.turns=0"], "turns"),
        (start, [], "needs a full scan"),
        (start, ["operator.design.exchange=x", "operator.axis=0"], "whole phase-encode lines"),
    ):
        with pytest.raises(InputError, match=words):
            plan(compose([*ACTIVE, 'input.axes="coil,y,x"', f"input.path={path}", *overrides]))


def test_axes_need_no_quotes(tmp_path):
    """A shell takes the quotes away that the message shows."""
    config = compose(["input.axes=coil,y,x"])
    assert config["input"]["axes"] == "coil,y,x"


def test_without_input_the_bundled_head_is_the_scanner():
    problem = plan(compose([*ACTIVE, "operator.budget=40"])).problems[0]
    assert problem.pending is not None and len(problem.pending.plan.initial) == 12
    assert problem.shape == (2, 192, 192)
