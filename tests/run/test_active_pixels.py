"""Choosing pixels in the `array` domain: inpainting, an instrument, an operator of one's own."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest

from invdiff import InputError, compose
from invdiff.measurement.candidates import candidates_of
from invdiff.run.solve import begin, execute, plan
from invdiff_array.domain import Pixels

QUICK = [
    "operator=active_pixels",
    "domain.shape=[1,16,16]",
    "operator.block=4",
    "operator.budget=8",
    "operator.design.turns=3",
    "operator.design.particles=4",
    "operator.design.steps=4",
    "sampler=proximal",
    "sampler.steps=10",
    "samples=2",
]


def run(tmp_path, *overrides):
    job = plan(compose([*QUICK, f"run.out={tmp_path / 'run'}", *overrides]))
    folder = begin(job)
    return folder, execute(job, folder)


def order(folder):
    record = json.loads((folder / "items/array/acquisition.json").read_text())
    return [one for turn in record["turns"] for one in turn["chosen"]]


def test_blocks_are_candidates():
    groups = candidates_of(Pixels((2, 4, 6), 2))
    assert groups.shape == (2, 4, 6) and int(groups.max()) == 5
    assert groups[0].tolist() == groups[1].tolist() and groups[0, 3, 5] == 5 and groups[0, 0, 1] == 0
    with pytest.raises(InputError, match="divide"):
        Pixels((1, 4, 6), 4)


def test_a_draw_of_the_prior_is_measured_block_by_block(tmp_path):
    folder, results = run(tmp_path)
    assert len(set(order(folder))) == 8 and results["array"]["notes"]["turns"] == 3
    assert (folder / "figures/array_acquisition.png").exists()
    assert 0.3 < np.mean(results["array"]["chi2_per_sample"]) < 3


def test_an_instrument_gives_the_pixels(tmp_path):
    """The full data file is not read: every answer comes from the other side."""
    truth = np.random.default_rng(0).standard_normal((1, 16, 16)).astype(np.float32) * 0.2
    np.save(tmp_path / "y.npy", np.zeros_like(truth))
    folder = tmp_path / "exchange"
    groups = candidates_of(Pixels((1, 16, 16), 4)).numpy()

    def instrument():
        folder.mkdir(exist_ok=True)
        turn, deadline = 1, time.monotonic() + 60
        while time.monotonic() < deadline and not (folder / "done.json").exists():
            request = folder / f"request_{turn:04d}.json"
            if request.exists():
                content = json.loads(request.read_text())
                rows = np.stack([truth[groups == one] for one in content["candidates"]])
                np.save(folder / "part.npy", rows.reshape(content["shape"]))
                (folder / "part.npy").rename(folder / content["answer"])
                turn += 1
            time.sleep(0.02)

    thread = threading.Thread(target=instrument)
    thread.start()
    job = plan(
        compose(
            [
                *QUICK,
                f"run.out={tmp_path / 'run'}",
                f"input.path={tmp_path / 'y.npy'}",
                "noise.sigma=0.01",
                f"operator.design.exchange={folder}",
            ]
        )
    )
    out = begin(job)
    execute(job, out)
    thread.join(30)
    mean = np.load(out / "items/array/mean.npy")
    seen = np.isin(groups, order(out))
    assert np.abs(mean - truth)[seen].mean() < 0.05 < np.abs(mean - truth)[~seen].mean()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["operator.budget=17"], "there are 16 candidates"),
        (["operator.budget=1", "operator.design.initial=2"], "start alone"),
        (["noise=poisson", "noise.gain=50"], "Gaussian noise"),
        (["operator=identity", "+operator.budget=4"], "no candidate measurements"),
    ],
)
def test_refusals(overrides, words):
    kept = [one for one in QUICK if not (overrides[0] == "operator=identity" and "operator" in one)]
    with pytest.raises(InputError, match=words):
        plan(compose([*kept, *overrides]))
