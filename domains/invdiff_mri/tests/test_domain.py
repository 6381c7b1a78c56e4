"""The MR domain through the command line: results, units, and every refusal."""

from __future__ import annotations

import json
import math

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from invdiff import compose
from invdiff.cli.main import app
from invdiff.imaging import coverage
from invdiff.run.solve import begin, execute, plan
from invdiff_mri import metrics
from invdiff_mri.baselines import BaselineSettings, all_baselines
from invdiff_mri.coils import simulate_coils
from invdiff_mri.domain import EXAMPLE
from invdiff_mri.masks import MaskSettings, calibration_region, make_mask
from invdiff_mri.noise import from_periphery, from_samples, whitening
from invdiff_mri.operators import to_image, to_kspace
from invdiff_mri.prepare import PrepareSettings, prepare
from tests.data import shared

QUICK = ["sampler.steps=6", "samples=2"]


def object_kspace(coils: int = 4, side: int = 64, noise: float = 0.01, seed: int = 0) -> torch.Tensor:
    axis = torch.linspace(-1, 1, side)
    disc = ((axis[:, None] / 0.7) ** 2 + (axis[None] / 0.8) ** 2 < 1).float()
    image = disc * (0.7 + 0.2 * torch.sin(5 * axis[:, None]) * torch.cos(6 * axis[None]))
    image = image * torch.exp(1j * (0.5 + axis[:, None]))
    g = torch.Generator().manual_seed(seed)
    clean = to_kspace(simulate_coils(coils, side, side) * image)
    return clean + noise * torch.view_as_complex(torch.randn((*clean.shape, 2), generator=g))


def solved(tmp_path, name, *overrides):
    job = plan(compose([*QUICK, f"run.out={tmp_path / name}", *overrides]))
    folder = begin(job)
    return folder, execute(job, folder)


def test_example_beats_the_classical_methods(tmp_path):
    folder, results = solved(tmp_path, "run", "sampler.steps=32", "samples=2")
    table = results["example"]["table"]
    classical = max(row["psnr"] for name, row in table.items() if name in ("CG-SENSE", "L1-wavelet", "TV"))
    assert table["posterior mean"]["psnr"] > classical + 2
    assert 0.8 < np.mean(results["example"]["chi2_per_sample"]) < 1.2
    files = {path.name for path in (folder / "items/example").iterdir()}
    assert {
        "rss.nii.gz",
        "mean.nii.gz",
        "std.nii.gz",
        "phase.nii.gz",
        "samples.nii.gz",
        "result.npz",
    } == files
    page = (folder / "report.html").read_text()
    assert "Not for clinical use" in page and page.count("<img") == 3
    import nibabel

    mean = np.moveaxis(np.asarray(nibabel.load(folder / "items/example/mean.nii.gz").dataobj), 2, 0)
    with np.load(folder / "items/example/result.npz") as file:
        np.testing.assert_allclose(mean[0], np.abs(file["mean"]), rtol=1e-5)
    with np.load(EXAMPLE) as file:  # outputs are in the scan's units
        level = np.median(mean[0][file["reference"] > 0.3] / file["reference"][file["reference"] > 0.3])
    assert level == pytest.approx(1, abs=0.03)


def test_a_global_factor_of_the_data_changes_nothing_but_units(tmp_path):
    k = object_kspace()
    images = []
    for factor in (1.0, 1e13):
        np.savez(tmp_path / "scan.npz", kspace=(k * factor).numpy())
        folder, _ = solved(tmp_path, f"r{factor}", f"input.path={tmp_path / 'scan.npz'}")
        with np.load(folder / "items/scan/result.npz") as file:
            images.append(np.abs(file["mean"]) / factor)
    np.testing.assert_allclose(images[0], images[1], rtol=1e-2, atol=1e-3)


def test_prospective_mask_is_read_from_the_zeros(tmp_path):
    mask = make_mask((64, 64), MaskSettings("equispaced", 3.0, seed=3))
    np.savez(tmp_path / "scan.npz", kspace=(object_kspace() * mask).numpy())
    job = plan(compose([*QUICK, f"input.path={tmp_path / 'scan.npz'}"]))
    assert torch.equal(job.problems[0].measurement.operator.mask, mask)
    assert job.problems[0].notes["acquisition"] == "prospective"


def test_whitening_makes_white_noise():
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=g, dtype=torch.complex128) + 2 * torch.eye(4)
    white = torch.view_as_complex(torch.randn(4, 20_000, 2, generator=g, dtype=torch.float64))
    colored = mixing @ white
    covariance = from_samples(colored, "test")
    torch.testing.assert_close(
        covariance.matrix, mixing @ mixing.mH, rtol=0.05, atol=0.05 * float(covariance.matrix.abs().max())
    )
    again = from_samples(whitening(covariance) @ colored, "white").matrix
    torch.testing.assert_close(again, torch.eye(4, dtype=torch.complex128), atol=1e-8, rtol=0)


def test_periphery_estimate():
    k = object_kspace(side=128, noise=0.05)
    level = from_periphery(k, torch.ones(128, 128, dtype=torch.bool)).level()
    assert level == pytest.approx(0.05, rel=0.15)


def test_periphery_estimate_on_the_real_head():
    with np.load(shared("mri_kspace/head8ch_full.npz")) as file:
        k = torch.from_numpy(file["kspace"])
    level = from_periphery(k, torch.ones(256, 256, dtype=torch.bool)).level()
    assert level == pytest.approx(0.0053, rel=0.25)


def test_prepared_image_is_the_root_sum_of_squares():
    # Fully sampled: back in scan units the least-squares image is the RSS image.
    k = object_kspace(noise=0.002)
    mask = torch.ones(64, 64, dtype=torch.bool)
    prepared = prepare(k, mask, PrepareSettings())
    x = prepared.measurement.operator.adjoint(prepared.measurement.y[None])
    rss = to_image(k).abs().square().sum(0).sqrt()
    inside = prepared.coils.support
    error = (prepared.image(x)[0].abs() - rss)[inside].abs().max()
    assert float(error) < 0.02


def test_zero_filled_of_the_real_head_is_the_published_figure():
    # fastMRI Bernoulli mask, seed 0, effective 4.06x: 30.98 dB.
    with np.load(shared("mri_kspace/head8ch_full.npz")) as file:
        k = torch.from_numpy(file["kspace"])
    mask = make_mask((256, 256), MaskSettings("random", 4.0))
    rss = to_image(k).abs().square().sum(0).sqrt().numpy()
    zero = to_image(k * mask).abs().square().sum(0).sqrt().numpy()
    assert metrics.compare(rss, zero)["psnr"] == pytest.approx(30.98, abs=0.01)


def test_metrics_equal_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    rng = np.random.default_rng(0)
    a, b = rng.random((40, 50)), rng.random((40, 50))
    found = metrics.compare(a, b)
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=a.max()))
    assert found["ssim"] == pytest.approx(structural_similarity(a, b, data_range=a.max()), abs=1e-9)


def test_baselines_improve_on_zero_filling():
    k = object_kspace(noise=0.005)
    mask = make_mask((64, 64), MaskSettings("random", 3.0, exact_count=True))
    prepared = prepare(k * mask, mask, PrepareSettings())
    rss = to_image(k).abs().square().sum(0).sqrt().numpy()
    found = {
        name: metrics.compare(rss, prepared.image(x[None])[0].abs().numpy())["psnr"]
        for name, x in all_baselines(prepared.measurement, BaselineSettings()).items()
    }
    assert found["cg_sense"] > found["zero_filled"] + 3
    assert found["tv"] > found["zero_filled"] + 3
    assert found["l1_wavelet"] > found["zero_filled"] + 3


def test_coverage_of_a_calibrated_map_is_nominal():
    # 10^4 pixels: standard error .5 %; limits at more than five of them.
    rng = np.random.default_rng(0)
    std = rng.random((100, 100)) + 0.1
    reference = std * rng.standard_normal((100, 100))
    found = coverage(reference, np.zeros_like(std), std, np.ones_like(std, bool))
    assert found["within_1_std"] == pytest.approx(0.683, abs=0.025)
    assert found["within_2_std"] == pytest.approx(0.954, abs=0.012)


def test_calibration_region_is_a_rectangle():
    mask = make_mask((64, 64), MaskSettings("equispaced", 4.0, center_fraction=0.2))
    rows, columns = calibration_region(mask)
    assert rows == 64 and columns >= 13


def test_half_of_a_mask_of_the_file(tmp_path):
    np.save(tmp_path / "mask.npy", make_mask((64, 64), MaskSettings("random", 3.0)).numpy())
    np.savez(tmp_path / "scan.npz", kspace=object_kspace().numpy())
    arguments = [f"input.path={tmp_path / 'scan.npz'}", "operator.mask=file"]
    job = plan(compose([*QUICK, *arguments, f"operator.mask_file={tmp_path / 'mask.npy'}"]))
    assert int(job.problems[0].measurement.operator.mask.sum()) < 64 * 40


def test_image_input_is_labelled_simulated(tmp_path):
    from PIL import Image

    image = (to_image(object_kspace()).abs().square().sum(0).sqrt() * 200).clamp(0, 255).byte()
    Image.fromarray(image.numpy()).save(tmp_path / "slice.png")
    folder, results = solved(tmp_path, "run", f"input.path={tmp_path / 'slice.png'}")
    item = results["slice"]
    assert "simulated from magnitude" in item["warnings"][0]
    assert "simulated from magnitude" in (folder / "report.html").read_text()


def test_single_coil(tmp_path):
    np.savez(tmp_path / "scan.npz", kspace=object_kspace().numpy())
    _, results = solved(tmp_path, "run", f"input.path={tmp_path / 'scan.npz'}", "operator.single_coil=true")
    assert results["scan"]["notes"]["coils"] == 1


def test_volume_slices(tmp_path):
    volume = torch.stack([object_kspace(seed=i) for i in range(3)])
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = volume.numpy()
    arguments = [f"input.path={tmp_path / 'scan.h5'}", 'input.slices="1:"']
    job = plan(compose([*QUICK, *arguments]))
    assert [problem.id for problem in job.problems] == ["scan-001", "scan-002"]


def write_good(tmp_path):
    np.savez(tmp_path / "scan.npz", kspace=object_kspace().numpy())
    return f"input.path={tmp_path / 'scan.npz'}"


def save_mask(tmp_path, array):
    np.save(tmp_path / "mask.npy", array)
    return ["operator.mask=file", f"operator.mask_file={tmp_path / 'mask.npy'}"]


BAD = {
    "acceleration below one": (lambda t: ["operator.acceleration=0.5"], "acceleration"),
    "acceleration too large": (lambda t: ["operator.acceleration=65"], "acceleration"),
    "mask of zeros": (lambda t: save_mask(t, np.zeros((64, 64))), "all zeros"),
    "mask of another shape": (lambda t: save_mask(t, np.ones((32, 64))), r"shape \(32, 64\)"),
    "mask of nothing": (lambda t: ["operator.mask=file"], "mask_file"),
    "unknown mask": (lambda t: ["operator.mask=equispacd"], "did you mean 'equispaced'"),
    "from_data of a full scan": (lambda t: ["operator.mask=from_data"], "every sample"),
    "no such maps": (lambda t: ["operator.coil_maps=nowhere.npy"], "coil_maps"),
    "ones for many coils": (lambda t: ["operator.coil_maps=ones"], "for one coil"),
    "noise of zero": (lambda t: ["noise.sigma=0"], "above zero"),
    "phase": (lambda t: ["operator.phase=nonsense"], "phase"),
    "slices": (lambda t: ["input.slices=a"], "start:stop:step"),
    "no slices": (lambda t: ['input.slices="5:"'], "selects none"),
    "prior of no file": (lambda t: ["prior=safetensors", "prior.path=no.safetensors"], "no checkpoint"),
    "scale": (lambda t: ["operator.scale=1e-4"], "rescale the data"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path):
    make, message = BAD[case]
    overrides = [write_good(tmp_path), *make(tmp_path)]
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["solve", *QUICK, *overrides, "--out", str(out)])
    assert result.exit_code == 2, (result.output, result.exception)
    import re

    assert re.search(message, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_prior_for_another_channel_count(tmp_path):
    from invdiff import PriorCard, save_prior
    from invdiff.prior.checkpoint import make_network

    settings = {"name": "unshuffle_unet", "channels": 3, "widths": [8, 8], "blocks": 1}
    save_prior(
        tmp_path / "rgb.safetensors",
        make_network(settings),
        network_settings=settings,
        sigma_data=0.5,
        card=PriorCard("rgb", channels=3),
    )
    arguments = ["--prior", "safetensors", f"prior.path={tmp_path / 'rgb.safetensors'}"]
    result = CliRunner().invoke(app, ["solve", "--domain", "mri", *arguments, "--out", str(tmp_path / "r")])
    assert result.exit_code == 2
    assert "3 channels" in result.stderr


def test_a_checkpoint_that_holds_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    arguments = ["--prior", "monai", f"prior.path={tmp_path / 'evil.pt'}"]
    network = (
        "prior.network={spatial_dims:2,in_channels:1,out_channels:1,channels:[8,8],"
        "attention_levels:[false,false],num_res_blocks:1,norm_num_groups:4}"
    )
    result = CliRunner().invoke(app, ["solve", *arguments, network, "--out", str(tmp_path / "r")])
    assert result.exit_code == 2, result.output
    assert "holds more than tensors" in result.stderr
    assert "executed" not in result.output


def test_metrics_file_says_its_convention(tmp_path):
    folder, _ = solved(tmp_path, "run", write_good(tmp_path))
    written = json.loads((folder / "metrics.json").read_text())["scan"]
    assert written["convention"].startswith("fastMRI")
    assert not math.isnan(written["table"]["TV"]["psnr"])


def test_unknown_noise_level_needs_its_sampler_and_is_reported(tmp_path):
    good = write_good(tmp_path)
    result = CliRunner().invoke(
        app, ["solve", *QUICK, good, "noise.infer=true", "sampler=dds", "--out", str(tmp_path / "a")]
    )
    assert result.exit_code == 2
    assert "noise.infer=true needs sampler=split_langevin" in result.stderr
    _, results = solved(tmp_path, "b", good, "noise.infer=true", "sampler.steps=16", "noise.sigma=0.02")
    assert "started at" in results["scan"]["notes"]["inferred sigma_y in prior units"]


def test_phase_is_taken_out_where_the_calibration_suffices():
    """Ten calibration lines do, five do not; a constant phase of the object then changes nothing."""
    kspace = object_kspace(coils=1, side=128)
    turned = kspace * complex(math.cos(2), math.sin(2))
    images = {}
    for acceleration, said in ((4, "low-resolution phase taken out"), (8, "as it is")):
        mask = make_mask((128, 128), MaskSettings(acceleration=acceleration))
        both = [prepare(one, mask, PrepareSettings(sigma=0.01, phase="auto")) for one in (kspace, turned)]
        assert {one.notes["phase"] for one in both} == {said}
        images[acceleration] = [one.measurement.operator.adjoint(one.measurement.y[None]) for one in both]
    torch.testing.assert_close(*images[4], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(*images[8], atol=1e-2)


def test_a_composition_of_priors_is_adapted_part_by_part():
    """To the first power it is the prior; a sampler that does not weigh it says so."""
    config = compose(
        ["domain=mri", "prior=composition", "prior.parts=[{name: brain_mr, power: 1}]", "sampler=proximal"]
    )
    job = plan(config)
    (whole,), (plain,) = job.priors, plan(compose(["domain=mri"])).priors
    x = torch.randn(1, *job.problems[0].shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(whole.denoise(x, 0.3), plain.denoise(x, 0.3), atol=1e-4, rtol=1e-4)
    assert any("is a composition" in text for text in job.warnings)
