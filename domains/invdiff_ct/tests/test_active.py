"""Choosing views, and volumes: through the command path."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch

from invdiff import InputError, compose
from invdiff.measurement.candidates import select
from invdiff.run.solve import begin, execute, plan
from invdiff_ct.active import CandidateViews
from invdiff_ct.baselines import default_weight, total_variation
from invdiff_ct.geometry import Geometry, uniform_angles
from invdiff_ct.projector import Projector
from invdiff_mri.examples.scanner import serve

SIDE = 32
QUICK = ["domain=ct", "sampler.steps=4", "samples=2"]
ACTIVE = [
    *QUICK,
    "sampler.start_steps=4",
    "operator=active_views",
    "operator.views=24",
    "operator.budget=9",
    "operator.design.turns=2",
    "operator.design.particles=3",
    "operator.design.steps=3",
]


def phantom(slices: int | None = None) -> np.ndarray:
    axis = np.linspace(-1, 1, SIDE)
    u, v = axis[None], -axis[:, None]
    parts = []
    for z in range(slices or 1):
        hu = np.where((u / 0.8) ** 2 + (v / 0.6) ** 2 < 1, 40.0, -1000.0)
        hu[((u - 0.3) / 0.25) ** 2 + (v / (0.3 + 0.02 * z)) ** 2 < 1] = -850
        parts.append(hu)
    return np.stack(parts) if slices else parts[0]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "chest.npz"
    np.savez(path, hu=phantom(), pixel_mm=2.0)
    return path


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "volume.npz"
    np.savez(path, hu=phantom(6).transpose(2, 1, 0), spacing=np.array([2.0, 2.0, 3.0]))
    return path


def solved(tmp_path, *overrides):
    job = plan(compose([*overrides, f"run.out={tmp_path / 'run'}"]))
    folder = begin(job)
    return folder, execute(job, folder)


def test_chosen_views_are_the_rows_of_the_whole_scan():
    projector = Projector(Geometry(uniform_angles(12, "parallel"), SIDE, 1.0), SIDE, 1.0).scaled()
    operator = CandidateViews(projector)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, SIDE, SIDE, generator=generator)
    y = operator(x)[0]
    part, rows = select(operator, [7, 2, 4], y)
    torch.testing.assert_close(part(x)[0], rows)
    torch.testing.assert_close(rows, y[[2, 4, 7]])
    w = torch.rand(1, 3, SIDE, generator=generator)
    torch.testing.assert_close((part(x) * w).sum(), (x * part.adjoint(w)).sum())
    weights = torch.rand(12, SIDE, generator=generator)
    weighted = projector.unweighted().scaled(weights).subset([1, 5])
    torch.testing.assert_close(weighted.weights, weights[[1, 5]])


def test_an_image_plays_the_scanner(tmp_path, image):
    folder, results = solved(tmp_path, *ACTIVE, f"input.path={image}")
    record = json.loads((folder / "items/chest/acquisition.json").read_text())
    order = [view for turn in record["turns"] for view in turn["chosen"]]
    assert record["turns"][0]["chosen"] == [0, 6, 12, 18] and len(set(order)) == 9
    with np.load(folder / "items/chest/result.npz") as file:
        np.testing.assert_allclose(file["angles_deg"], 7.5 * np.sort(order), atol=1e-6)
        assert file["sinogram"].shape == (9, SIDE)
    assert results["chest"]["table"]["posterior mean"]["psnr"] > 15
    assert (folder / "figures/chest_acquisition.png").exists()


def test_an_instrument_measures_the_views(tmp_path, image):
    """Counts, asked of another thread through files; a start of four views."""
    projector = Projector(Geometry(uniform_angles(24, "parallel"), SIDE, 2.0), SIDE, 2.0)
    x = torch.from_numpy((phantom() + 1000) / 2000).float()[None, None].clamp(0, 1)
    lines = 0.04 * projector(x)[0].double().numpy()
    start = np.where(np.isin(np.arange(24), [0, 6, 12, 18])[:, None], lines, 0)
    angles = np.rad2deg(projector.geometry.angles)
    path = tmp_path / "start.npz"
    geometry = {"angles_deg": angles, "detector_pitch_mm": 2.0}
    np.savez(path, sinogram=start, **geometry)
    folder = tmp_path / "exchange"
    folder.mkdir()
    answered = []
    scanner = threading.Thread(
        target=lambda: answered.append(serve(lambda views: lines[list(views)], folder, 60))
    )
    scanner.start()
    run, _ = solved(
        tmp_path,
        *[one for one in ACTIVE if "views=" not in one],
        f"input.path={path}",
        f"operator.design.exchange={folder}",
        "operator.centre=15.5",
    )
    scanner.join(30)
    assert answered == [2]
    record = json.loads((next((run / "items").iterdir()) / "acquisition.json").read_text())
    assert record["turns"][0]["chosen"] == [0, 6, 12, 18] and record["count"] == 24


def test_unmeasured_views_are_never_seen(tmp_path):
    """The same choice and the same samples when all views that were not chosen are three times as large.

    Without lengths in mm the data scale is found from the data: from those of the start alone.
    """
    projector = Projector(Geometry(uniform_angles(24, "parallel"), SIDE, 1.0), SIDE, 1.0)
    x = torch.from_numpy((phantom() + 1000) / 2000).float()[None, None].clamp(0, 1)
    lines = projector(x)[0].double().numpy()
    settings = [*(one for one in ACTIVE if "views=" not in one), "operator.centre=15.5", "noise.sigma=0.02"]
    found = []
    for number in range(2):
        path = tmp_path / f"scan{number}.npz"
        np.savez(path, sinogram=lines, angles_deg=np.rad2deg(projector.geometry.angles))
        run, _ = solved(tmp_path / str(number), *settings, f"input.path={path}")
        record = json.loads((next((run / "items").iterdir()) / "acquisition.json").read_text())
        order = [view for turn in record["turns"] for view in turn["chosen"]]
        found.append((order, np.load(next((run / "items").iterdir()) / "result.npz")["samples"]))
        lines = np.where(np.isin(np.arange(24), order)[:, None], lines, 3 * lines)
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_refusals_of_views(image):
    for overrides, words in (
        (["operator.budget=25"], "there are 24 candidates"),
        (["operator.budget=3", "operator.design.initial=5"], "start alone measures 5"),
        (["operator.volume=true"], "two or more neighbouring"),
        (["noise=poisson", "noise.gain=1e4"], "needs Gaussian noise"),
    ):
        with pytest.raises(InputError, match=words):
            plan(compose([*ACTIVE, f"input.path={image}", *overrides]))


VOLUME = [*QUICK, "operator.volume=true", "operator.views=12", "input.axes=x,y,z"]


def test_a_volume_is_one_item(tmp_path, volume):
    nibabel = pytest.importorskip("nibabel")
    folder, results = solved(tmp_path, *VOLUME, "sampler=volume", f"input.path={volume}")
    table = results["volume"]["table"]
    assert set(table) == {"FBP", "SIRT", "TV", "3-D TV", "one sample", "posterior mean"}
    assert {"psnr", "psnr_axial", "psnr_coronal", "psnr_sagittal"} < set(table["TV"])
    mean = nibabel.load(folder / "items/volume/mean.nii.gz")
    assert mean.shape == (SIDE, SIDE, 6)
    files = {path.name for path in (folder / "items/volume").iterdir()}
    assert {"sample_00.nii.gz", "sample_01.nii.gz", "result.npz"} < files
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "volume_planes.png",
        "volume_errors.png",
        "volume_std.png",
    }
    assert "6 of 6" in results["volume"]["notes"]["slices"]


@pytest.mark.parametrize("sampler", ["ct_langevin", "diffusion_mbir"])
def test_other_samplers_take_volumes(tmp_path, volume, sampler):
    _, results = solved(tmp_path, *VOLUME, f"sampler={sampler}", f"input.path={volume}", "input.slices=1:4")
    assert results["volume"]["table"]["posterior mean"]["psnr"] > 15


def test_slices_of_an_uncoupled_volume_are_those_of_the_slices(tmp_path, volume):
    """Plug-and-play without coupling: the stack is nothing but its slices, photon noise and all."""
    settings = ["sampler=plug_and_play", "operator.flux=1e4", f"input.path={volume}", "run.baselines=false"]
    one, _ = solved(tmp_path / "a", *VOLUME, *settings)
    two, _ = solved(tmp_path / "b", *VOLUME, *settings, "operator.volume=false", "input.slices=2")
    stack = np.load(one / "items/volume/result.npz")
    alone = np.load(two / "items/volume-002/result.npz")
    np.testing.assert_allclose(stack["sinogram"][2], alone["sinogram"], rtol=1e-6)
    # The whitening constants are of the whole stack, so agreement is to the solver's tolerance.
    assert np.abs(stack["mean"][2] - alone["mean"]).mean() < 20


def test_three_dimensional_tv_couples_slices():
    """Of equal slices with other noise the 3-D reconstruction is nearer the truth than slice by slice."""
    projector = Projector(Geometry(uniform_angles(10, "parallel"), SIDE, 1.0), SIDE, 1.0)
    x = torch.from_numpy((phantom() + 1000) / 2000).float()[None, None]
    generator = torch.Generator().manual_seed(0)
    lines = projector(x).expand(5, -1, -1)
    lines = lines + 0.3 * torch.randn(lines.shape, generator=generator)
    whole = total_variation(projector.stacked(5), lines, 1e-3)
    single = torch.stack([total_variation(projector, part, 1e-3) for part in lines])
    assert float((whole - x).square().mean()) < 0.9 * float((single - x).square().mean())
    assert default_weight(projector, noisy=True) >= 2e-4


def test_refusals_of_volumes(tmp_path, volume, image):
    for overrides, words in (
        ([f"input.path={volume}", "input.slices=0:6:2"], "neighbouring slices"),
        ([f"input.path={volume}", "input.slices=3"], "neighbouring slices"),
        ([f"input.path={volume}", "input.axes=x,y,t"], "letters x, y and z"),
        ([f"input.path={volume}", "operator.slice_batch=0"], "holds no slice"),
        ([f"input.path={image}", "input.axes=x,y,z"], "letters x, y and z"),
    ):
        with pytest.raises(InputError, match=words):
            plan(compose([*VOLUME, "sampler=volume", *overrides]))
    stretched = tmp_path / "stretched.npz"
    np.savez(stretched, hu=phantom(6).transpose(2, 1, 0), spacing=np.array([2.0, 1.0, 3.0]))
    with pytest.raises(InputError, match="square"):
        plan(compose([*VOLUME, "sampler=volume", f"input.path={stretched}"]))
    with pytest.raises(InputError, match="couples the slices"):
        plan(compose([*QUICK, "sampler=volume", f"input.path={image}"]))
