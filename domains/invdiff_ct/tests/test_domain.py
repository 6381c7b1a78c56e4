"""The CT domain through the command path: results, units, noise, and every refusal."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from invdiff import GaussianNoise, InputError, PoissonNoise, compose
from invdiff.cli.main import app
from invdiff.run.solve import begin, execute, plan
from invdiff_ct import metrics
from invdiff_ct.domain import CT
from invdiff_ct.hu import Window
from invdiff_ct.noise import logarithm, sinogram_noise
from invdiff_ct.problems import slice_affine
from tests.data import shared

QUICK = ["domain=ct", "sampler.steps=4", "sampler.start_steps=4", "samples=2"]
SIDE = 48


def phantom(side: int = SIDE) -> np.ndarray:
    axis = np.linspace(-1, 1, side)
    u, v = axis[None], -axis[:, None]
    hu = np.where((u / 0.8) ** 2 + (v / 0.6) ** 2 < 1, 40.0, -1000.0)
    for x in (-0.35, 0.35):
        hu[((u - x) / 0.25) ** 2 + (v / 0.35) ** 2 < 1] = -850
    return hu


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "chest.npz"
    np.savez(path, hu=phantom(), pixel_mm=2.0)
    return path


def solved(tmp_path, *overrides):
    job = plan(compose([*QUICK, f"run.out={tmp_path / 'run'}", *overrides]))
    folder = begin(job)
    return folder, execute(job, folder)


def planned(*overrides):
    return plan(compose(["domain=ct", *overrides])).problems[0]


def test_a_run_writes_hu_and_a_report(tmp_path, image):
    nibabel = pytest.importorskip("nibabel")
    folder, results = solved(tmp_path, f"input.path={image}", "operator.views=24")
    assert set(results["chest"]["table"]) == {"FBP", "SIRT", "TV", "one sample", "posterior mean"}
    assert {p.name for p in (folder / "items/chest").iterdir()} == {
        "mean.nii.gz",
        "std.nii.gz",
        "samples.nii.gz",
        "result.npz",
    }
    mean = np.asarray(nibabel.load(folder / "items/chest/mean.nii.gz").dataobj)[..., 0]
    inside = phantom() == 40
    assert np.median(mean[inside]) == pytest.approx(40, abs=60)
    assert np.median(mean[phantom() == -850]) == pytest.approx(-850, abs=60)
    page = (folder / "report.html").read_text()
    assert "simulated from an image" in page and page.count("<img") == 3


def test_measured_counts_become_hu_without_a_reference(tmp_path, image):
    problem = planned(f"input.path={image}", "operator.views=30", "operator.flux=1e5")
    item = problem.context[0]
    geometry = item.prepared.projector.geometry
    lines = item.prepared.lines.numpy() * item.prepared.unit
    np.savez(
        tmp_path / "scan.npz",
        sinogram=np.round(1e5 * np.exp(-lines)),
        angles_deg=np.rad2deg(geometry.angles),
        pitch_mm=geometry.pitch_mm,
        kind="counts",
        flux=1e5,
    )
    again = planned(f"input.path={tmp_path / 'scan.npz'}", "operator.views=null", "operator.centre=23.5")
    measured = again.context[0]
    assert measured.reference is None
    assert measured.prepared.unit == pytest.approx(0.04)
    np.testing.assert_allclose(measured.prepared.lines, item.prepared.lines, atol=0.05)
    few = planned(f"input.path={tmp_path / 'scan.npz'}", "operator.views=10", "operator.centre=23.5")
    np.testing.assert_allclose(few.context[0].prepared.projector.geometry.angles, geometry.angles[::3])
    part = planned(f"input.path={tmp_path / 'scan.npz'}", "operator=limited_angle", "operator.centre=23.5")
    assert len(part.context[0].prepared.projector.geometry.angles) == 15


def test_whitened_noise_has_the_level_it_claims(image):
    problem = planned(f"input.path={image}", "operator.views=60", "operator.flux=2e4", "seed=3")
    item = problem.context[0]
    truth = torch.from_numpy(item.reference)[None, None]
    assert isinstance(problem.measurement.noise, GaussianNoise)
    assert float(problem.measurement.chi2(truth)) == pytest.approx(1, abs=0.1)


def test_counts_keep_their_likelihood(image):
    problem = planned(f"input.path={image}", "noise=poisson", "noise.gain=500", "sampler=daps")
    item = problem.context[0]
    assert isinstance(problem.measurement.noise, PoissonNoise)
    truth = torch.from_numpy(item.reference)[None, None]
    assert float(problem.measurement.chi2(truth)) == pytest.approx(1, abs=0.1)
    from scipy.stats import poisson

    clean = problem.measurement.operator(truth).double().numpy()
    expected = poisson.logpmf(problem.measurement.y.numpy(), 500 * clean[0]).sum()
    assert float(problem.measurement.log_likelihood(truth)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="split_langevin"):
        planned(f"input.path={image}", "noise=poisson", "noise.gain=2e4")


def test_variance_of_the_logarithm():
    counts = np.random.default_rng(0).poisson(300.0, (1, 100_000)).astype(np.float64)
    lines, std, few = logarithm(counts, 1e4)
    assert lines.std() == pytest.approx(float(np.sqrt((std**2).mean())), rel=0.02)
    assert few == 0


def test_noise_of_a_sinogram_is_found():
    s = np.linspace(-1, 1, 200)
    rows = np.sqrt(np.clip(0.8 - s**2, 0, None)) + 0.01 * np.random.default_rng(0).standard_normal((40, 200))
    assert sinogram_noise(rows) == pytest.approx(0.01, rel=0.1)


def test_finer_images_are_projected_as_they_are(tmp_path):
    np.savez(tmp_path / "fine.npz", hu=phantom(96), pixel_mm=1.0, size=48)
    problem = planned(f"input.path={tmp_path / 'fine.npz'}", "operator.views=20")
    assert problem.shape == (1, 48, 48)
    assert problem.context[0].prepared.projector.pixel_mm == 2.0


def test_affine_of_padded_coarser_pixels():
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    coarse = slice_affine(affine, 3, (4, 0), 2.0, 2.0)
    # Coarse voxel 2 covers padded pixels 4 and 5, which are the image's 0 and 1 along y.
    np.testing.assert_allclose(coarse @ [2, 0, 0, 1], [1.0, 1.0, 15, 1])


def test_window_and_metrics():
    window = Window()
    np.testing.assert_allclose(window.to_unit(np.array([-1024, -1000, 0, 1000, 3000])), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(window.to_hu(window.to_unit(np.array([-300.0]))), [-300], atol=1e-3)
    assert window.attenuation() == pytest.approx(0.04)
    skimage = pytest.importorskip("skimage.metrics")
    a, b = np.random.default_rng(0).random((2, 40, 40))
    row = metrics.compare(a, b, np.ones((40, 40), bool), 2000.0)
    assert row["psnr"] == pytest.approx(skimage.peak_signal_noise_ratio(a, b, data_range=1))
    assert row["ssim"] == pytest.approx(skimage.structural_similarity(a, b, data_range=1), rel=1e-6)
    assert row["rmse_hu"] == pytest.approx(2000 * np.sqrt(((a - b) ** 2).mean()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["operator.views=0"], "at least one view"),
        (["operator.flux=0"], "photons"),
        (["operator.size=17"], "divisor"),
        (["operator.beam=cone"], "expected one of parallel"),
        (["operator=limited_angle", "operator.stop=-3"], "range"),
        (["operator.hu_range=[-500,500]"], "-1000"),
        (["operator.region_mm=0.1"], "enlarge"),
        (["operator=fan_beam", "operator.source_axis_mm=20"], "source"),
        (["noise=laplace", "noise.scale=1"], "noise=laplace"),
        (["noise.sigma=0"], "above zero"),
        (["noise=poisson", "noise.gain=1e4", "operator.flux=1e5"], "give one"),
        (["input.slices=9"], "none of"),
        (["input.slices=a"], "start:stop:step"),
        (["operator.pixel_mm=-1"], "above zero"),
    ],
)
def test_refusals_are_one_sentence_and_exit_2(image, overrides, message):
    given = [f"input.path={image}", *overrides]
    with pytest.raises(InputError, match=message):
        planned(*given)
    result = CliRunner().invoke(app, ["solve", *QUICK, *given])
    assert result.exit_code == 2


def test_more_views_than_there_are(tmp_path):
    np.savez(tmp_path / "s.npz", sinogram=np.ones((9, 32)), angles_deg=np.arange(9) * 20.0)
    with pytest.raises(InputError, match="9 views"):
        planned(f"input.path={tmp_path / 's.npz'}", "operator.views=10")


def test_training_data_keeps_patients_apart():
    data = shared("ct_train/lung256_siim_train.npz")
    held = ["TCGA-17-Z011"]
    settings = {"root": data.parent.parent, "sources": [{"path": f"ct_train/{data.name}", "held_out": held}]}
    slices = CT().training_data(settings)
    assert slices.validation().shape == (2, 1, 256, 256)
    batch = slices.batch(4, 64, torch.Generator().manual_seed(0))
    assert batch.shape == (4, 1, 64, 64) and 0 <= float(batch.min()) <= float(batch.max()) <= 1
    torch.testing.assert_close(batch, slices.batch(4, 64, torch.Generator().manual_seed(0)))


def test_real_tooth_from_a_sixth_of_its_views():
    path = shared("ct_test/tooth_sinogram_real.npz")
    problem = planned(f"input.path={path}", "operator.views=30", "operator.size=128", "input.slices=0")
    assert problem.context[0].prepared.projector.geometry.centre == pytest.approx(295.5, abs=0.5)
    assert json.dumps(dict(problem.notes))
    assert problem.context[0].prepared.window is None
