"""The pack end to end: files in, problems, priors that fit, files out, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff import GaussianPrior, InputError, PriorCard, compose, keyed_stream
from invdiff.run.solve import begin, execute, plan
from invdiff_superres import formats, volume
from invdiff_superres.domain import EXAMPLE, Superres

FAST = ["sampler.steps=3", "samples=2"]


def config(*overrides: str) -> dict:
    return compose(["domain=superres", *FAST, *overrides])


def picture(path: Path, shape: tuple[int, ...] = (16, 12, 3), bits: int = 8, seed: int = 0) -> Path:
    values = np.random.default_rng(seed).uniform(0.1, 0.9, shape)
    values = values[..., None] if values.ndim == 2 else values
    return formats.write(path, np.moveaxis(values, 2, 0), bits)


def run(tmp_path: Path, *overrides: str) -> Path:
    job = plan(config(*overrides, f"run.out={tmp_path / 'run'}"))
    folder = begin(job)
    execute(job, folder)
    return folder


def test_example_is_solved_and_written(tmp_path):
    folder = run(tmp_path, "operator=bicubic_x4")
    item = folder / "items" / "example"
    mean = formats.read(item / "mean.png")
    assert mean.values.shape == (3, 192, 192)
    assert np.load(item / "std.npy").shape == (3, 192, 192)
    assert len(list((item / "samples").iterdir())) == 2
    report = (folder / "report.html").read_text()
    for word in ("bicubic x4", "PSNR-Y", "Lanczos-3, made consistent", "photo_rgb"):
        assert word in report


@pytest.mark.parametrize(("shape", "bits"), [((10, 9), 8), ((10, 9, 3), 16), ((10, 9, 4), 8)])
def test_pictures_of_every_kind_come_out_as_they_are(tmp_path, shape, bits):
    """Grey is solved under colours and comes out grey; 16 bits stay 16; alpha goes its own way."""
    if shape[-1] == 4:
        from PIL import Image

        path = tmp_path / "low.png"
        values = np.random.default_rng(0).integers(30, 220, shape).astype(np.uint8)
        Image.fromarray(values).save(path)
    else:
        path = picture(tmp_path / "low", shape, bits)
    item = run(tmp_path, f"input.path={path}", "operator=bicubic_x2") / "items" / "low"
    mean = formats.read(item / ("mean.png" if bits == 8 else "mean.tif"))
    assert mean.bits == bits
    assert mean.values.shape == (1 if len(shape) == 2 else 3, 20, 18)
    assert (item / "alpha.png").exists() == (shape[-1] == 4)


def test_grey_data_constrain_the_luminance_alone(tmp_path):
    path = picture(tmp_path / "low", (8, 8))
    (problem,) = Superres().problems(config(f"input.path={path}", "operator=bicubic_x4"))
    assert problem.shape == (3, 32, 32)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    operator = problem.measurement.operator
    assert operator(x).shape == (1, 1, 8, 8)
    turned = (
        x + torch.tensor([0.1, -0.299 / 0.587 * 0.1, 0.0])[:, None, None]
    )  # another colour, same luminance
    torch.testing.assert_close(operator(turned), operator(x))


def test_simulated_data_are_rounded_as_files_are():
    (problem,) = Superres().problems(config())
    y = problem.context.data * 255
    torch.testing.assert_close(y, y.round(), rtol=0, atol=1e-4)
    operator = problem.measurement.operator
    assert operator.norm(problem.shape) == pytest.approx(1)
    assert problem.measurement.noise.sigma == pytest.approx(operator.scale / (255 * 12**0.5))
    truth = torch.from_numpy(formats.read(EXAMPLE).values)
    chi2 = float(problem.measurement.chi2(truth[None])[0])
    assert 0.9 < chi2 < 1.1  # rounding is uniform, of just that variance


def test_folder_in_and_folder_out(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        picture(folder / f"p{number}", (8 + number, 8, 3), seed=number)
    done = run(tmp_path, f"input.path={folder}", "operator=bicubic_x2")
    assert sorted(path.name for path in (done / "items").iterdir()) == ["p0", "p1", "p2"]
    assert formats.read(done / "items/p2/mean.png").values.shape == (3, 20, 16)


def test_reference_gives_metrics(tmp_path):
    low, high = picture(tmp_path / "low", (40, 40, 3)), picture(tmp_path / "high", (80, 80, 3))
    (problem,) = Superres().problems(
        config(f"input.path={low}", "operator=bicubic_x2", f"domain.reference={high}")
    )
    assert problem.context.reference.shape == (3, 80, 80)
    with pytest.raises(InputError, match="needs one of 160 x 160"):
        Superres().problems(config(f"input.path={low}", "operator=bicubic_x4", f"domain.reference={high}"))


def test_pairs_and_references(tmp_path):
    for name in ("lr", "hr"):
        (tmp_path / name).mkdir()
    for number in range(2):
        picture(tmp_path / "lr" / f"p{number}", (8, 8, 3), seed=number)
        picture(tmp_path / "hr" / f"p{number}", (16, 16, 3), seed=number)
    found = Superres().references(config("operator=bicubic_x2"), tmp_path)
    assert [problem.context.reference.shape for problem in found] == [(3, 16, 16)] * 2
    alone = Superres().references(config("operator=bicubic_x2"), tmp_path / "hr")
    assert [problem.measurement.y.shape for problem in alone] == [(3, 8, 8)] * 2
    (tmp_path / "hr" / "p1.png").unlink()
    with pytest.raises(InputError, match=r"p1 of .* has no reference"):
        Superres().references(config("operator=bicubic_x2"), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["operator.scale=1.5"], "whole number"),
        (["operator.kernel=sinc"], r"operator\.kernel is 'sinc'"),
        (["input.path=nowhere.png"], "there is no file"),
        (["noise.sigma=-1"], "zero or more"),
        (["sampler=conditional"], "unconditional"),
        (["start=boundary", "start.file=none.safetensors"], "no boundary condition"),
        (["start=zero", "sampler=split_langevin"], "reverse loop"),
        (["start=search", "start.kind=best"], "random, zero_order, paths"),
    ],
)
def test_bad_settings_are_refused_before_any_work(overrides, message):
    with pytest.raises(InputError, match=message):
        plan(config(*overrides))


def test_one_channel_priors_refuse_colours():
    with pytest.raises(InputError, match="3 channels and the prior 1"):
        Superres().problems(config("prior=brain_mr"))


def test_fixed_starts_give_one_image_and_say_so(tmp_path):
    job = plan(config("start=zero", "sampler.steps=4"))
    assert job.config["samples"] == 1
    assert job.sampler.claim == "point"
    assert "One image" in job.warnings[0]
    assert job.sampler.integrator.eta == 0


@pytest.mark.parametrize("kind", ["random", "zero_order", "paths"])
def test_a_search_for_each_image_raises_its_likelihood(kind):
    """The best of several starts fits the data at least as well as the first of the same starts alone.

    Paths judge what they keep half way, so that more of them need not end better: two searches are compared
    with the same sampler without one.
    """
    from invdiff.run.solve import make_prior
    from invdiff.sampler.keys import ParticleNoise
    from invdiff.sampler.noise_search import NoiseSearch

    settings = config("sampler.steps=4", "start=search", f"start.kind={kind}", "start.candidates=4")
    job = plan(settings)
    assert job.sampler.claim == "heuristic"
    problem = Superres().problems(settings)[0]
    prior = Superres().adapt_prior(make_prior(settings["prior"]), problem)
    plain, found = job.sampler.wrapped, []
    numbers = [0, 1] if kind == "paths" else [0]
    for sampler in (job.sampler, plain if kind == "paths" else NoiseSearch(plain, kind, 2, 1)):
        draws = [
            sampler(prior, problem.measurement, problem.shape, ParticleNoise(0, [number])).x
            for number in numbers
        ]
        found.append(float(problem.measurement.log_likelihood(torch.cat(draws)).mean()))
    assert found[0] >= found[1]


def test_tiles_change_little(tmp_path):
    """The trained network by tiles of 96 with 48 shared, against the whole: it sees farther by little."""
    from invdiff import TiledPrior
    from invdiff.run.solve import make_prior

    prior = make_prior(config()["prior"] | {"precision": "float32"})
    clean = torch.from_numpy(formats.read(EXAMPLE).values)[None, :, :144, :160]
    for sigma in (0.02, 0.2):
        noise = torch.randn(clean.shape, generator=keyed_stream(0, 1))
        with torch.no_grad():
            whole = prior.denoise(clean + sigma * noise, sigma)
            tiled = TiledPrior(prior, 96, 48).denoise(clean + sigma * noise, sigma)
        error = float((whole - clean).square().mean().sqrt())
        assert float((tiled - whole).square().mean().sqrt()) < 0.1 * error


def nifti(path: Path, shape: tuple[int, ...], zooms: tuple[float, ...]) -> Path:
    import nibabel

    g = np.random.default_rng(0)
    turn = np.array([[0, -1, 0, 3], [1, 0, 0, -5], [0, 0, 1, 9], [0, 0, 0, 1.0]]) @ np.diag([*zooms, 1])
    nibabel.save(nibabel.Nifti1Image(g.uniform(0, 100, shape).astype(np.float32), turn), path)
    return path


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_affine_of_thin_slices_keeps_places(axis):
    """The centre of mass of a ball, in mm, from thick and from thin slices, along every axis."""
    scale, shape = 3, np.array([24, 24, 24])
    turn = np.array([[0, -1.5, 0, 3], [1.5, 0, 0, -5], [0, 0, 1.5, 9], [0, 0, 0, 1.0]])
    place = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    thin = (np.linalg.norm(place - [10, 10, 13], axis=-1) < 6).astype(float)
    coarse = np.add.reduceat(thin, np.arange(0, 24, scale), axis=axis) / scale
    thick_affine = turn.copy()
    thick_affine[:, axis] *= scale
    thick_affine[:3, 3] += turn[:3, axis] * (scale - 1) / 2

    def middle(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
        index = np.stack(np.meshgrid(*(np.arange(n) for n in values.shape), indexing="ij"), -1)
        weighted = (index * values[..., None]).sum(axis=(0, 1, 2)) / values.sum()
        return (affine @ [*weighted, 1])[:3]

    finer = volume.finer_affine(thick_affine, axis, scale)
    np.testing.assert_allclose(finer, turn, atol=1e-9)
    np.testing.assert_allclose(middle(thin, finer), middle(coarse, thick_affine), atol=1e-3)


def test_volume_is_solved_in_its_own_axes(tmp_path):
    path = nifti(tmp_path / "head.nii.gz", (12, 6, 10), (1.0, 4.0, 1.0))
    folder = run(
        tmp_path, f"input.path={path}", "operator=thick_slices", "operator.scale=4", "prior=brain_mr"
    )
    import nibabel

    found = nibabel.load(folder / "items/head/mean.nii.gz")
    assert found.shape == (12, 24, 10)
    np.testing.assert_allclose(np.linalg.norm(found.affine[:3, :3], axis=0), [1, 1, 1], atol=1e-6)


def test_volumes_that_are_not_clear_are_refused(tmp_path):
    same = nifti(tmp_path / "same.nii.gz", (8, 8, 8), (2.0, 2.0, 1.0))
    settings = ["operator=thick_slices", "prior=brain_mr"]
    with pytest.raises(InputError, match=r"operator\.axis=0, 1 or 2"):
        Superres().problems(config(f"input.path={same}", *settings))
    assert Superres().problems(config(f"input.path={same}", *settings, "operator.axis=1"))
    with pytest.raises(InputError, match="operator=thick_slices"):
        Superres().problems(config(f"input.path={same}", "prior=brain_mr"))
    with pytest.raises(InputError, match="choose a prior of one"):
        Superres().problems(config(f"input.path={same}", "operator=thick_slices", "operator.axis=0"))
    (tmp_path / "bad.nii").write_bytes(b"1234")
    with pytest.raises(InputError, match="cannot be read as NIfTI"):
        Superres().problems(config(f"input.path={tmp_path / 'bad.nii'}", *settings))


def test_conditional_prior_refuses_other_data(tmp_path):
    settings = ["prior=photo_x4", "sampler=conditional"]
    assert plan(config(*settings))
    with pytest.raises(InputError, match="conditional on data of 'bicubic x4'"):
        plan(config(*settings, "operator=bicubic_x2"))


def test_conditional_sampler_draws_from_the_law_it_is_given():
    """The exact denoiser of a Gaussian posterior as a conditional prior: mean and covariance of 4000 draws.

    Largest deviation of the whitened mean below 4.5 / sqrt(4000) for 24 numbers (false alarm 2e-4).
    """
    from invdiff import GaussianNoise, MatrixOperator, Measurement, sample
    from invdiff.run.solve import make_sampler

    g = torch.Generator().manual_seed(0)
    root = torch.randn(24, 24, generator=g, dtype=torch.float64) / 24**0.5
    mean = torch.randn(24, generator=g, dtype=torch.float64)
    prior = GaussianPrior.dense(mean, root @ root.T + 0.01 * torch.eye(24, dtype=torch.float64))

    class Given:
        card = PriorCard("exact", std=1.0, condition="y")
        denoise = staticmethod(prior.denoise)

    settings = compose(["domain=array", "sampler=conditional", "sampler.sigma_max=40", "sampler.steps=100"])
    sampler = make_sampler(settings["sampler"], Given.card)
    measurement = Measurement(
        MatrixOperator(torch.eye(24)[:2].double()), GaussianNoise(1.0), torch.zeros(2).double()
    )
    draws = sample(
        Given(), measurement, (24,), sampler=sampler, samples=4000, seed=1, dtype=torch.float64
    ).samples
    values, basis = torch.linalg.eigh(root @ root.T + 0.01 * torch.eye(24, dtype=torch.float64))
    white = (draws - mean) @ basis / values.sqrt()
    assert float(white.mean(0).abs().max()) < 4.5 / 4000**0.5
    assert float((white.T @ white / 4000 - torch.eye(24)).abs().max()) < 0.12


def test_boundary_is_found_judged_and_used(tmp_path):
    """The whole command: search on some pictures, controls on others, a file that a solve accepts."""
    from typer.testing import CliRunner

    from invdiff.cli.main import app

    folder = tmp_path / "references"
    folder.mkdir()
    scene = formats.read(EXAMPLE).values
    for number in range(6):
        formats.write(folder / f"p{number}", scene[:, 96:144, 16 * number : 16 * number + 48], 8)
    found = tmp_path / "found"
    common = ["operator=bicubic_x4", "sampler.steps=3"]
    given = ["boundary", "find", "--domain", "superres", "--reference", str(folder), "--out", str(found)]
    result = CliRunner().invoke(app, [*given, *common, "candidates=6", "scale=0.5,1"])
    assert result.exit_code == 0, result.output
    assert "By haarpsi, on images it has not seen" in result.output
    table = (found / "boundary.md").read_text()
    for row in ("random, mean of 20", "mean of the prior (zero)", "fixed noise x 0.25", "(oracle)"):
        assert row in table
    assert (found / "boundary.png").is_file()
    path = found / "boundary.safetensors"
    used = run(tmp_path, *common, "start=boundary", f"start.file={path}")
    report = (used / "report.html").read_text()
    assert "One image from a fixed start" in report
    with pytest.raises(InputError, match=r"set sampler\.steps=3"):
        plan(config("sampler.steps=4", "start=boundary", f"start.file={path}"))
    other = plan(config("sampler.steps=3", "start=boundary", f"start.file={path}", "operator=bicubic_x2"))
    assert any("another forward model" in sentence for sentence in other.warnings)
    for bad, message in (
        (["candidates=1"], "at least two"),
        (["criterion=fid"], "unknown criterion"),
        (["candidates=many"], "expected a number"),
        (["scale=9"], "from 0 to 2"),
    ):
        refused = CliRunner().invoke(app, [*given, *common, *bad])
        assert refused.exit_code == 2
        assert message in refused.output
    same = CliRunner().invoke(app, [*given, *common, "--test", str(folder), "candidates=4"])
    assert same.exit_code == 2
    assert "among the references" in same.output
    nowhere = CliRunner().invoke(app, ["boundary", "find", "--domain", "ct", "--reference", str(folder)])
    assert nowhere.exit_code == 2
