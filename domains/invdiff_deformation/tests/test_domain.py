"""From files to files: the bundled example, what others read of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from invdiff import InputError, compose
from invdiff.cli.main import app
from invdiff_deformation import flow, formats, metrics, output
from invdiff_deformation.domain import DeformationDomain
from invdiff_deformation.example import make, phantom
from invdiff_deformation.grid import Grid
from invdiff_deformation.prepare import EXAMPLES

QUICK = (
    "prior.lengths=[8,16]",
    "prior.omitted=0.05",
    "sampler.particles=4",
    "sampler.keep=4",
    "sampler.pilot=4",
    "sampler.sweeps=1",
    "sampler.leapfrogs=2",
    "samples=4",
)
FIXED, MOVING = EXAMPLES / "fixed.nii.gz", EXAMPLES / "moving.nii.gz"


def run(*arguments: str) -> tuple[int, str]:
    keys = {one.split("=")[0] for one in arguments}
    quick = [one for one in QUICK if one.split("=")[0] not in keys]
    result = CliRunner().invoke(app, ["solve", "--domain", "deformation", *quick, *arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deformation") / "run"
    code, text = run("--out", str(out), "--json")
    assert code == 0, text
    return out


def test_the_example_is_solved_and_everything_is_written(solved: Path) -> None:
    assert json.loads((solved / "status.json").read_text())["status"] == "complete"
    item = json.loads((solved / "metrics.json").read_text())["example"]
    table = item["table"]
    best = table["posterior, exp of the mean"]
    assert best["error_mm"] < 0.5 * table["no registration"]["error_mm"]
    assert best["dice"] > table["no registration"]["dice"] + 0.1
    assert best["folded_strict_%"] == 0
    assert item["claim"] == "consistent"
    assert any("temper" in warning for warning in item["warnings"])
    folder = solved / "items" / "example"
    for name in ("displacement", "displacement_inverse", "std_mm", "warped", "jacobian", "labels"):
        assert (folder / f"{name}.nii.gz").is_file()
    assert len(list((folder / "samples").iterdir())) == 4
    assert not [path for path in folder.rglob(".*")]
    assert len(list((solved / "figures").glob("*.png"))) == 3


def test_the_same_seed_gives_the_same_numbers(solved: Path, tmp_path: Path) -> None:
    code, text = run("--out", str(tmp_path / "again"), "--json")
    assert code == 0, text
    first, again = (
        nibabel.load(folder / "items/example/std_mm.nii.gz").get_fdata()
        for folder in (solved, tmp_path / "again")
    )
    assert np.array_equal(first, again)


def test_simpleitk_reads_the_field_and_warps_to_the_same_image(solved: Path) -> None:
    """Oblique or flipped axes, LPS vectors: the moving image resampled by SimpleITK is ours within 1e-3."""
    sitk = pytest.importorskip("SimpleITK")
    folder = solved / "items" / "example"
    field = sitk.ReadImage(str(folder / "displacement.nii.gz"))
    assert field.GetNumberOfComponentsPerPixel() == field.GetDimension() == 2
    moving = sitk.ReadImage(str(MOVING), sitk.sitkFloat64)
    transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, transform, sitk.sitkLinear, -1.0)).T
    ours = nibabel.load(folder / "warped.nii.gz").get_fdata().reshape(theirs.shape)
    seen = theirs >= 0
    seen[:2], seen[-2:], seen[:, :2], seen[:, -2:] = False, False, False, False
    assert seen.mean() > 0.7
    assert float(np.abs(theirs - ours)[seen].max()) < 1e-3 * 1300


def test_a_volume_with_an_oblique_affine_goes_through_simpleitk(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    generator = np.random.default_rng(0)
    turn, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.5, 2.0, 2.5])
    affine[:3, 3] = (10, -20, 30)
    grid = Grid((14, 12, 16), affine)
    image = torch.from_numpy(generator.random(grid.shape)).float()
    u = 0.8 * torch.from_numpy(generator.normal(size=(3, *grid.shape))).float()
    output.write_volume(tmp_path / "moving.nii.gz", image.numpy(), grid)
    output.write_displacement(tmp_path / "field.nii.gz", u, grid)
    field = sitk.ReadImage(str(tmp_path / "field.nii.gz"))
    moving = sitk.ReadImage(str(tmp_path / "moving.nii.gz"), sitk.sitkFloat64)
    transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, transform, sitk.sitkLinear, -1.0)).T
    ours = flow.warp(image[None, None], u[None])[0, 0].numpy()
    seen = theirs >= 0
    assert seen.mean() > 0.5 and float(np.abs(theirs - ours)[seen].max()) < 1e-3
    again = output.read_displacement(tmp_path / "field.nii.gz", grid)
    assert np.allclose(again, u.numpy(), atol=1e-5)


def test_the_bundled_phantom_is_what_its_maker_makes(tmp_path: Path) -> None:
    make(tmp_path)
    for path in EXAMPLES.glob("*.nii.gz"):
        ours, again = (nibabel.load(folder / path.name).get_fdata() for folder in (EXAMPLES, tmp_path))
        assert np.allclose(ours, again, atol=1.0 if path.name in ("fixed.nii.gz", "moving.nii.gz") else 1e-3)
    grid = formats.read_image(FIXED).grid
    truth = torch.from_numpy(output.read_displacement(EXAMPLES / "truth.nii.gz", grid))
    where = (flow.identity(grid.shape, torch.float64) + truth).flatten(1).mT.numpy()
    _, label = phantom(grid.world(where)[:, :2])
    fixed = formats.read_labels(EXAMPLES / "fixed_labels.nii.gz").values
    assert float((label.reshape(grid.shape) != fixed).mean()) < 0.01


def test_pictures_without_affine(tmp_path: Path) -> None:
    from PIL import Image

    for name, source in (("a", FIXED), ("b", MOVING)):
        values = formats.read_image(source).values
        Image.fromarray(np.clip(values / 5, 0, 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    code, text = run(
        "--input", str(tmp_path / "a.png"), "--moving", str(tmp_path / "b.png"), "--out", str(tmp_path / "r")
    )
    assert code == 0, text
    notes = json.loads((tmp_path / "r/metrics.json").read_text())["a"]["notes"]
    assert "mm are voxels" in notes["grid"]


@pytest.mark.parametrize(
    "sampler, rank, claim", [("tempered_volume", 8, "consistent"), ("laplace_volume", 60, "heuristic")]
)
def test_volumes_on_other_grids_with_landmarks_beside_the_images(
    tmp_path: Path, sampler: str, rank: int, claim: str
) -> None:
    """Three axes, two affines, points: solved, drawn in three planes, read back by SimpleITK."""
    sitk = pytest.importorskip("SimpleITK")
    axes = [np.arange(n) * h for n, h in ((20, 3.0), (18, 3.5), (16, 4.0))]
    where = np.stack(np.meshgrid(*axes, indexing="ij"))
    affine = np.diag([-3.0, 3.5, 4.0, 1.0])
    affine[:3, 3] = (30, -20, 5)

    def ball(shift: float) -> np.ndarray:
        centre, half = (np.reshape(v, (3, 1, 1, 1)) for v in ((30 + shift, 30, 30), (14, 18, 15)))
        far = np.linalg.norm((where - centre) / half, axis=0)
        return 1 / (1 + np.exp(6 * (far - 1))) + 0.3 * np.sin((where[0] - shift) / 6) * np.cos(where[1] / 7)

    moved = affine.copy()
    moved[:3, 3] += 3.0 * affine[:3, 0]
    fixed = written(tmp_path / "f.nii.gz", ball(0.0), affine)
    moving = written(tmp_path / "m.nii.gz", ball(4.0)[3:], moved)
    points = affine[:3, :3] @ np.array([[10.0, 9, 8], [7, 9, 8], [10, 12, 8]]).T + affine[:3, 3:]
    rows = [",".join(f"{v:.3f}" for v in (*p, *(p + np.array([-4.0, 0, 0])))) for p in points.T]
    (tmp_path / "p.csv").write_text("\n".join(["fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z", *rows]))
    code, text = run(
        "--sampler",
        sampler,
        "--input",
        fixed,
        "--moving",
        moving,
        f"operator.points={tmp_path / 'p.csv'}",
        f"sampler.rank={rank}",
        *(["sampler.sweeps=0"] if claim == "heuristic" else []),
        "--out",
        str(tmp_path / "run"),
    )
    assert code == 0, text
    item = json.loads((tmp_path / "run/metrics.json").read_text())["f"]
    assert "related by their affines" in item["notes"]["grids"]
    assert item["claim"] == claim
    best, before = (item["table"][name] for name in ("posterior, exp of the mean", "no registration"))
    assert best["residual"] < 0.7 * before["residual"]
    assert best["tre_mm"] < before["tre_mm"]
    field = sitk.ReadImage(str(tmp_path / "run/items/f/displacement.nii.gz"))
    assert field.GetSize() == (20, 18, 16) and field.GetNumberOfComponentsPerPixel() == 3
    assert len(list((tmp_path / "run/figures").glob("*.png"))) == 3


def test_landmarks_alone_have_the_exact_posterior(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grid = formats.read_image(FIXED).grid
    points = rng.uniform(5, 55, (12, 2))
    world = grid.world(points)
    rows = ["fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z"]
    rows += [",".join(f"{v:.4f}" for v in (*p, *(p + np.array([3.0, -2.0, 0])))) for p in world]
    (tmp_path / "p.csv").write_text("\n".join(rows))
    config = compose(
        [
            "domain=deformation",
            "operator=landmarks",
            f"operator.points={tmp_path / 'p.csv'}",
            f"input.path={FIXED}",
        ]
    )
    (problem,) = DeformationDomain().problems(config)
    item, measurement = problem.context.item, problem.measurement
    assert measurement.operator.linear
    exact = item.prior.posterior(measurement.operator, measurement.y, 1.0)
    u = item.transform.displacement(exact.mean[None])
    error = item.predicted(u, item.points)[0] - np.array(
        [-3.0, -2.0]
    )  # the first axis of the file runs to the left
    assert float(np.abs(error).max()) < 1.5


def refused(*arguments: str) -> str:
    """The sentence with which a run is refused; empty where it is not."""
    code, said = run(*arguments)
    return " ".join(said.split()) if code == 2 and len(said.strip().splitlines()) <= 3 else ""


def written(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> str:
    nibabel.save(
        nibabel.Nifti1Image(values.astype(np.float32), np.eye(4) if affine is None else affine), path
    )
    return str(path)


def singular(path: Path, values: np.ndarray) -> str:
    image = nibabel.Nifti1Image(values.astype(np.float32), None)
    image.header["sform_code"] = 1
    image.header["srow_x"] = (1, 0, 0, 0)
    nibabel.save(image, path)
    return str(path)


def test_bad_input_is_refused_in_one_sentence(tmp_path: Path) -> None:
    good = formats.read_image(FIXED).values[..., None]
    affine = nibabel.load(FIXED).affine
    fixed, moving = str(FIXED), str(MOVING)
    nan = good.copy()
    nan[3, 3] = np.nan
    volume = np.random.default_rng(0).random((12, 12, 12))
    moved = affine.copy()
    moved[0, 3] += 1000
    cases = [
        ("give --moving", ["--input", fixed]),
        ("no file", ["--input", fixed, "--moving", str(tmp_path / "none.nii.gz")]),
        ("NaN", ["--input", written(tmp_path / "nan.nii.gz", nan, affine), "--moving", moving]),
        ("constant", ["--input", written(tmp_path / "c.nii.gz", 0 * good + 7, affine), "--moving", moving]),
        ("axes", ["--input", fixed, "--moving", written(tmp_path / "v.nii.gz", volume)]),
        (
            "series",
            ["--input", fixed, "--moving", written(tmp_path / "t.nii.gz", np.stack([volume] * 3, -1))],
        ),
        ("overlap", ["--input", fixed, "--moving", written(tmp_path / "far.nii.gz", good, moved)]),
        (
            "singular",
            ["--input", fixed, "--moving", singular(tmp_path / "s.nii.gz", good)],
        ),
        ("lncc", ["--input", fixed, "--moving", written(tmp_path / "x9.nii.gz", 9 * good, affine)]),
        ("similarity", ["operator.similarity=ssd"]),
        ("padding", ["operator.padding=wrap"]),
        ("sigma", ["operator.sigma=-1"]),
        ("beta", ["operator.beta=3"]),
        ("blur", ["operator.blur=-1"]),
        ("operator.sigma is 0", ["operator.sigma=0"]),
        ("an odd number", ["operator.similarity=lncc", "operator.window=8"]),
        ("bins", ["operator.similarity=mi", "operator.bins=4"]),
        ("operator.beta is 3", ["operator.similarity=mi", "operator.beta=3"]),
        (
            "come in pairs",
            ["--input", fixed, "--moving", moving, f"domain.labels={EXAMPLES / 'fixed_labels.nii.gz'}"],
        ),
        ("need label maps", ["--input", fixed, "--moving", moving, "operator.surfaces=true"]),
        ("operator.surface_std is 0", ["operator.surface_std=0"]),
        ("operator.volume_std is -1", ["operator.volume_std=-1"]),
        ("domain.spread is 0.5", ["domain.spread=0.5"]),
        ("leave noise=auto", ["noise=gaussian", "noise.sigma=1"]),
        ("centres", ["--input", fixed, "--moving", moving, "domain.align=edges"]),
        ("needs points", ["operator=landmarks"]),
    ]
    for text, arguments in cases:
        assert text in (said := refused(*arguments)), (text, said)


def test_labels_that_do_not_meet_and_masks_without_a_voxel(tmp_path: Path) -> None:
    labels = nibabel.load(EXAMPLES / "fixed_labels.nii.gz")
    other = written(tmp_path / "l.nii.gz", 10 * (labels.get_fdata() > 0), labels.affine)
    half = written(tmp_path / "h.nii.gz", labels.get_fdata() + 0.5, labels.affine)
    empty = written(tmp_path / "m.nii.gz", 0 * labels.get_fdata(), labels.affine)
    assert "no label above 0 in common" in refused(f"domain.moving_labels={other}")
    assert "no whole numbers" in refused(f"domain.moving_labels={half}")
    assert "mask is empty" in refused(f"domain.mask={empty}")


@pytest.mark.parametrize(
    "lines, text",
    [
        ([], "holds no points"),
        (["fixed_x,fixed_y"], "holds no points"),
        (["fixed_x,fixed_y,fixed_z,moving_x,moving_y", "1,2,3,4,5"], "no column moving_z"),
        (["fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z", "0,0,12,1,1,x"], "expected a number"),
        (["fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z", "0,0,12,1,1"], "expected a number"),
        (
            ["fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z", "900,0,12,1,1,12"],
            "outside the fixed image",
        ),
        (["fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z,std", "0,0,12,1,1,12,0"], "not above zero"),
        (
            ["fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z", "0,0,12,1,1,12", "0,0,12,5,1,12"],
            "two places",
        ),
    ],
)
def test_bad_points_are_refused(tmp_path: Path, lines: list[str], text: str) -> None:
    (tmp_path / "p.csv").write_text("\n".join(lines))
    grid = formats.read_image(FIXED).grid
    with pytest.raises(InputError, match=text):
        formats.read_points(tmp_path / "p.csv", grid, grid, "RAS", 1.0)


def test_points_in_lps_ras_and_voxels_are_one(tmp_path: Path) -> None:
    grid = formats.read_image(FIXED).grid
    voxels = np.array([[10.0, 20.0], [30.0, 44.0]])
    here, there = grid.world(voxels), grid.world(voxels + np.array([1.0, -2.0]))
    head = "fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z\n"
    found = []
    for frame, sign in (("RAS", (1, 1, 1)), ("LPS", (-1, -1, 1))):
        rows = [
            ",".join(str(v) for v in (*(a * sign), *(b * sign))) for a, b in zip(here, there, strict=True)
        ]
        (tmp_path / "p.csv").write_text(head + "\n".join(rows))
        found.append(formats.read_points(tmp_path / "p.csv", grid, grid, frame, 1.0))
    rows = [",".join(str(v) for v in (*a, *(a + np.array([1.0, -2.0])))) for a in voxels]
    (tmp_path / "p.csv").write_text("fixed_x,fixed_y,moving_x,moving_y\n" + "\n".join(rows))
    found.append(formats.read_points(tmp_path / "p.csv", grid, grid, "voxels", 1.0))
    for one in found:
        assert np.allclose(one.fixed, voxels) and np.allclose(one.vectors, there - here)


def test_labels_on_another_grid_are_resampled_with_a_notice() -> None:
    image = formats.read_image(FIXED)
    labels = formats.read_labels(EXAMPLES / "fixed_labels.nii.gz")
    affine = labels.grid.affine.copy()
    affine[:, 0] *= 2
    coarse = formats.Image("coarse", labels.values[::2], Grid((32, 72), affine))
    values, said = formats.on_grid(coarse, image)
    assert said is not None and "resampled" in said
    assert float((values == labels.values).mean()) > 0.95
    bare = formats.Image("bare", labels.values[::2], Grid((32, 72), np.eye(4), known=False))
    with pytest.raises(InputError, match="no affine"):
        formats.on_grid(bare, image)


def test_metrics_of_known_shapes() -> None:
    first, second = np.zeros((20, 20), dtype=int), np.zeros((20, 20), dtype=int)
    first[5:15, 5:15], second[7:17, 5:15] = 1, 1
    assert metrics.dice(first, second)[1] == pytest.approx(0.8)
    distance = metrics.signed_distance(first == 1, (1.0, 1.0))
    assert distance[5, 10] == -0.5 and distance[4, 10] == 0.5
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(50, 4000))
    cover = metrics.coverage_of_draws(rng.normal(size=4000), draws)
    assert cover["within 90 %"] == pytest.approx(0.9, abs=0.02)
