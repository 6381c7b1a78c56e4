"""The deformation domain: from two images, or points, to displacement fields with their spread."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import (
    Config,
    Estimates,
    Figure,
    InputError,
    Posterior,
    Prior,
    Problem,
    Summary,
    Tick,
    load_plugin,
)
from invdiff_deformation import flow, formats, metrics, output
from invdiff_deformation.baselines import TITLES, all_baselines, has_simpleitk, warped_labels
from invdiff_deformation.drdm_training import CardiacSlices
from invdiff_deformation.evidence import fit
from invdiff_deformation.grid import Grid, between
from invdiff_deformation.item import SIMILARITIES, Item, begun
from invdiff_deformation.jacobian import folded_strict, jacobian
from invdiff_deformation.operators import Transform
from invdiff_deformation.prior import Modes, Spectrum

EXAMPLES = Path(__file__).resolve().parent / "examples"
EXAMPLE = {
    "moving": EXAMPLES / "moving.nii.gz",
    "labels": EXAMPLES / "fixed_labels.nii.gz",
    "moving_labels": EXAMPLES / "moving_labels.nii.gz",
    "truth": EXAMPLES / "truth.nii.gz",
}
TRANSFORMS = ("exponential", "displacement")
ENOUGH = 3  # points for each that an affine map needs, from which a prior is fitted to them
SCALES = 1.5  # ratio of the images' ranges from which `mse` is refused
TEMPERED = "Similarity of images is no noise model: sigma and beta are choices that temper the posterior."


class DeformationDomain:
    """The `deformation` domain."""

    name = "deformation"
    baseline_names = tuple(TITLES)

    def problems(self, config: Config) -> list[Problem]:
        settings, options = dict(config["domain"]), dict(config["operator"])
        if config["noise"]["name"] != "auto":
            raise InputError("deformations take operator.sigma and operator.beta; leave noise=auto")
        given = config["input"].get("path")
        example = given is None
        if example:
            settings = {**settings, **{k: v for k, v in EXAMPLE.items() if settings.get(k) is None}}
        fixed = formats.read_image(Path(given) if given else EXAMPLES / "fixed.nii.gz")
        item = self._item(config["prior"], settings, options, fixed)
        item, measurement, mode = begun(item)
        notes = {
            "data": "a phantom of our own making (bundled)" if example else fixed.name,
            **item.notes,
        }
        item = replace(item, name="example" if example else formats.stem_of(Path(given)), notes=notes)
        if mode is not None:
            measurement.operator.guess = lambda: mode  # type: ignore[attr-defined]
        shape = item.transform.coordinates.event_shape
        return [Problem(item.name, measurement, shape, (item, mode), notes)]

    def _item(
        self,
        prior_settings: Mapping[str, Any],
        settings: dict[str, Any],
        options: dict[str, Any],
        fixed: formats.Image,
    ) -> Item:
        if options["similarity"] not in SIMILARITIES:
            raise InputError(
                f"operator.similarity is {options['similarity']!r}; expected one of {', '.join(SIMILARITIES)}"
            )
        if options["transform"] not in TRANSFORMS:
            raise InputError(
                f"operator.transform is {options['transform']!r}; expected {' or '.join(TRANSFORMS)}"
            )
        if options["padding"] not in ("border", "zeros"):
            raise InputError(f"operator.padding is {options['padding']!r}; expected border or zeros")
        if not 0 <= float(options["blur"]) <= 10:
            raise InputError(f"operator.blur is {options['blur']}; expected 0 to 10 voxels")
        if settings["frame"] not in ("LPS", "RAS"):
            raise InputError(f"domain.frame is {settings['frame']!r}; expected LPS or RAS")
        contour = float(settings["contour_std"])
        if contour < 0:
            raise InputError(f"domain.contour_std is {contour:g}; expected mm, zero or more")
        options["output_frame"] = settings["frame"]
        notes: dict[str, Any] = {}
        moving = None if settings["moving"] is None else formats.read_image(Path(settings["moving"]))
        if moving is None and options["name"] == "register":
            raise InputError("registration needs the image that is moved; give --moving FILE")
        points_kind = "displacement" if options["name"] == "displacement" else "landmarks"
        if options["name"] != "register" and options["points"] is None:
            raise InputError(f"operator {options['name']!r} needs points; give operator.points=FILE.csv")
        if moving is not None and settings["align"] is not None:
            moving = _aligned(fixed, moving, str(settings["align"]))
            notes["alignment"] = "centres of both images brought together before anything else"
        to_moving = None
        if moving is not None:
            to_moving = _between(fixed, moving)
            if moving.grid.shape != fixed.grid.shape or not np.allclose(
                moving.grid.affine, fixed.grid.affine, atol=1e-4
            ):
                notes["grids"] = (
                    f"{_grid_words(fixed.grid)} and {_grid_words(moving.grid)}, related by their affines"
                )
            self._same_scale(fixed, moving, options)
        prior = load_plugin("priors", str(prior_settings["name"]))(prior_settings)
        make = getattr(prior, "coordinates", None)
        if make is None:
            raise InputError(
                f"prior {prior.card.name!r} is none of velocities; use prior=velocity, or one that describes "
                "velocities on the fixed grid"
            )
        other = moving.grid if moving is not None else fixed.grid
        frame, std = str(options["frame"]), float(options["point_std"])
        points = held = truth = None
        if options["points"] is not None:
            points = formats.read_points(Path(options["points"]), fixed.grid, other, frame, std, points_kind)
            notes["points"] = f"{len(points.std)} {points_kind}, std {np.median(points.std):.3g} mm"
        coordinates = make(fixed.grid)
        if options["evidence"] and points is not None:
            coordinates, points = _fitted(prior.spectrum, fixed.grid, points, notes)
        transform = Transform(coordinates, str(options["transform"]))
        inside, seen = _masks(settings, fixed, moving, notes)
        labels = _labels(settings, fixed, moving, notes)
        if settings["held_out"] is not None:
            held = formats.read_points(Path(settings["held_out"]), fixed.grid, other, frame, std, points_kind)
        if settings["truth"] is not None:
            truth = output.read_displacement(Path(settings["truth"]), fixed.grid, str(settings["frame"]))
        notes["grid"] = _grid_words(fixed.grid) + ("" if fixed.grid.known else f"; {formats.NO_AFFINE}")
        notes["state"] = (
            f"{coordinates.event_shape[0]} coordinates of a velocity, {coordinates.squarings} squarings"
        )
        return Item(
            fixed.name,
            fixed,
            moving,
            transform,
            coordinates.prior,
            inside,
            options,
            to_moving,
            seen,
            labels,
            points,
            held,
            truth,
            contour,
            notes,
        )

    @staticmethod
    def _same_scale(fixed: formats.Image, moving: formats.Image, options: dict[str, Any]) -> None:
        """Refuse `mse` on images of different intensity scales."""
        if options["similarity"] != "mse" or options["normalise"] or options["name"] != "register":
            return
        (low, high), (other_low, other_high) = fixed.range, moving.range
        span, other = high - low, other_high - other_low
        far = abs(other_low - low) > 0.5 * span
        if far or max(span, other) > SCALES * max(min(span, other), 1e-30):
            raise InputError(
                f"the fixed image has values of {low:.4g} to {high:.4g} and the moving one of "
                f"{other_low:.4g} to {other_high:.4g}; use operator.similarity=lncc, or "
                "operator.normalise=true where only the scale differs"
            )

    def training_data(self, settings: Mapping[str, Any]) -> CardiacSlices:
        """Slices for `invdiff train`: `root` and `path`, the rest as in `CardiacSlices`."""
        path = Path(str(settings["root"])) / str(settings["path"])
        size = settings.get("size")
        return CardiacSlices(
            path,
            held_out=int(settings.get("held_out", 10)),
            published=bool(settings.get("published", False)),
            size=None if size is None else int(size),
        )

    def adapt_prior(self, prior: Prior, problem: Problem) -> Prior:
        item: Item = problem.context[0]
        return item.prior

    def baselines(self, problem: Problem, tick: Tick) -> Estimates:
        item, mode = problem.context
        return all_baselines(item, mode, tick)

    def summarise(self, problem: Problem, posterior: Posterior, baselines: Estimates) -> Summary:
        item: Item = problem.context[0]
        u = displacements(item, posterior)
        representative = item.transform.displacement(posterior.mean[None])[0]
        rows = {TITLES[name]: value for name, value in baselines.items()}
        rows |= {"one sample": u[0], "posterior, exp of the mean": representative}
        table = {name: row_of(item, value) for name, value in rows.items()}
        facts = facts_of(item, u, representative)
        warnings = list(item.warnings)
        if item.moving is not None and item.options["name"] == "register":
            warnings.append(TEMPERED)
            if not has_simpleitk():
                warnings.append("SimpleITK is not installed; its demons are missing from the table.")
        folded = metrics.field_figures(representative, item.grid.spacing)["folded_strict_%"]
        if folded > 0:
            warnings.append(f"The representative deformation folds at {folded:.3g} % of the voxels.")
        return Summary(table, facts, metrics.CONVENTION, tuple(warnings))

    def write(self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> None:
        item: Item = problem.context[0]
        write_item(item, posterior, folder, str(item.options["output_frame"]))

    def figures(
        self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path
    ) -> list[Figure]:
        from invdiff_deformation.figures import draw_figures

        return draw_figures(problem, posterior, baselines, folder)


def displacements(item: Item, posterior: Posterior) -> Float[Tensor, "samples d *grid"]:
    """u of every sample, in voxels."""
    return torch.cat([item.transform.displacement(z[None]) for z in posterior.samples])


def row_of(item: Item, u: Float[Tensor, "d *grid"]) -> dict[str, float]:
    """The metrics of one displacement."""
    row: dict[str, float] = {}
    if item.moving is not None:
        fixed, _ = item.scaled
        warped = item.images(0.0).warped(u[None])[0].numpy()
        row["residual"] = float(np.sqrt(((warped - fixed)[item.inside] ** 2).mean()))
        row["ncc"] = metrics.ncc(fixed, warped, item.inside)
    if item.labels is not None:
        row["dice"] = float(
            np.mean(list(metrics.dice(item.labels[0], warped_labels(item, u)).values()) or [math.nan])
        )
    judged = item.held_out or item.points
    if judged is not None:
        error = item.predicted(u[None], judged)[0] - judged.vectors @ item.frame()
        row["tre_mm"] = float(np.linalg.norm(error, axis=1).mean())
    if item.truth is not None:
        h = np.asarray(item.grid.spacing).reshape(-1, *([1] * item.grid.dimensions))
        error = (u.numpy() - item.truth) * h
        row["error_mm"] = float(np.linalg.norm(error, axis=0)[item.inside].mean())
    row.update(metrics.field_figures(u, item.grid.spacing))
    return row


def std_map(item: Item, u: Float[Tensor, "samples d *grid"]) -> Float[np.ndarray, "*grid"]:
    """Root of the trace of the covariance of u, in mm; zero for one sample."""
    if len(u) < 2:
        return np.zeros(item.grid.shape)
    h = u.new_tensor(item.grid.spacing).reshape(1, -1, *([1] * item.grid.dimensions))
    spread: np.ndarray = (u * h).var(dim=0).sum(dim=0).sqrt().numpy()
    return spread


def facts_of(item: Item, u: Float[Tensor, "samples d *grid"], representative: Tensor) -> dict[str, Any]:
    """Spread, coverage where something is known, volumes of labels."""
    facts: dict[str, Any] = {}
    spread = std_map(item, u)
    facts["std of u in mm, mean and largest"] = (
        f"{spread[item.inside].mean():.3g}, {spread[item.inside].max():.3g}"
    )
    if len(u) < 2:
        return facts
    fold = [100 * float((jacobian(one[None]) <= 0).double().mean()) for one in u]
    facts["folded % of the samples, largest"] = round(max(fold), 4)
    h = np.asarray(item.grid.spacing).reshape(-1, *([1] * item.grid.dimensions))
    if item.truth is not None:
        truth, draws = item.truth * h, u.numpy() * h
        inside = np.broadcast_to(item.inside, truth.shape)
        cover = metrics.coverage_of_draws(truth[inside], draws[:, inside])
        facts.update({f"truth {name}": round(value, 4) for name, value in cover.items()})
        error = np.linalg.norm(draws.mean(axis=0) - truth, axis=0)
        facts["correlation of std and error"] = float(
            np.corrcoef(error[item.inside], spread[item.inside])[0, 1]
        )
    judged = item.held_out or item.points
    if judged is not None:
        seen = judged.vectors @ item.frame()
        drawn = item.predicted(u, judged)
        extra = float(np.median(judged.std))
        cover = metrics.coverage_of_draws(seen.ravel(), drawn.reshape(len(u), -1), extra=extra)
        what = "held-out points" if item.held_out is not None else "points, the posterior's own data"
        facts.update({f"{what} {name}": round(value, 4) for name, value in cover.items()})
    if item.labels is not None:
        facts.update(label_facts(item, u))
    return facts


def label_facts(item: Item, u: Float[Tensor, "samples d *grid"]) -> dict[str, Any]:
    """How far the fixed boundaries lie from the warped ones, with its spread; volumes of labels over the
    draws.

    At voxels of a fixed label's surface the signed distance to the moving surface, at phi(x), would be 0.
    """
    assert item.labels is not None and item.moving is not None
    fixed, moving = item.labels
    facts: dict[str, Any] = {}
    means, draws = [], []
    h = float(np.mean(item.grid.spacing))
    for label in [int(one) for one in np.intersect1d(fixed, moving) if one > 0][:40]:
        edge = metrics.surface(fixed == label) & item.inside
        if not edge.any():
            continue
        distance = metrics.signed_distance(moving == label, item.moving.grid.spacing)
        where = torch.from_numpy(np.argwhere(edge).T.copy()).float()[None] + u[:, :, torch.from_numpy(edge)]
        at = flow.carried(where, item.carried)
        values = flow.sample_at(
            torch.from_numpy(distance).float()[None, None].expand(len(u), -1, *distance.shape), at
        )
        draws.append(values[:, 0].numpy())
        means.append(values[:, 0].mean(dim=0).numpy())
        volumes = [float((warped_labels(item, one) == label).sum()) * item.grid.voxel for one in u]
        if len(facts) < 5:
            true = float((fixed == label).sum()) * item.grid.voxel
            low, high = np.quantile(volumes, (0.05, 0.95))
            facts[f"size of label {label}"] = f"{true:.4g} (90 % of the draws {low:.4g} to {high:.4g})"
    if draws:
        both = np.concatenate(draws, axis=1)
        # A surface voxel's centre lies up to a voxel inside the boundary: half of one, give or take.
        extra = math.hypot(h / math.sqrt(12), item.contour_std)
        cover = metrics.coverage_of_draws(np.full(both.shape[1], -h / 2), both, extra=extra)
        facts.update({f"boundaries {name}": round(value, 4) for name, value in cover.items()})
        error = np.abs(both.mean(axis=0) + h / 2)
        facts["boundary error in mm, mean"] = round(float(error.mean()), 4)
        facts["correlation of boundary error and std"] = float(np.corrcoef(error, both.std(axis=0))[0, 1])
    return facts


def write_item(item: Item, posterior: Posterior, folder: Path, frame: str) -> None:
    """Fields, maps, labels, points and velocities of an item."""
    grid, u = item.grid, displacements(item, posterior)
    mean_z = posterior.mean[None]
    representative = item.transform.displacement(mean_z)[0]
    output.write_displacement(folder / "displacement.nii.gz", representative, grid, frame)
    output.write_displacement(folder / "displacement_mean.nii.gz", u.mean(dim=0), grid, frame)
    if not item.transform.linear:
        inverse = item.transform.inverse(mean_z)[0]
        output.write_displacement(folder / "displacement_inverse.nii.gz", inverse, grid, frame)
    about = {
        "displacement": "exp of the posterior mean velocity: a diffeomorphism",
        "displacement_mean": "mean of the samples' displacements: for display, it need not be one",
        "displacement_inverse": "inverse of `displacement`, on the fixed grid",
        "kind": "displacement, pull-back, fixed to moving",
        "frame": frame,
        "units": "mm" if grid.known else "voxels, the file has no affine",
    }
    (folder / "displacement.json").write_text(json.dumps(about, indent=1))
    (folder / "samples").mkdir(exist_ok=True)
    for number, one in enumerate(u):
        output.write_displacement(folder / "samples" / f"displacement_{number:02d}.nii.gz", one, grid, frame)
    output.write_volume(folder / "std_mm.nii.gz", std_map(item, u).astype(np.float32), grid)
    strict = folded_strict(representative[None])[0].float()
    maps = torch.stack([jacobian(representative[None])[0], strict], dim=-1).numpy()
    output.write_volume(folder / "jacobian.nii.gz", maps, grid)
    if item.moving is not None:
        low, high = item.fixed.range
        show = item.images(0.0)
        warped = low + (high - low) * show.warped(representative[None])[0].numpy()
        output.write_volume(folder / "warped.nii.gz", warped.astype(np.float32), grid)
        mean = low + (high - low) * torch.cat([show.warped(one[None]) for one in u]).mean(dim=0).numpy()
        output.write_volume(folder / "warped_mean.nii.gz", mean.astype(np.float32), grid)
    if item.labels is not None:
        output.write_volume(folder / "labels.nii.gz", warped_labels(item, representative), grid)
        drawn = np.stack([warped_labels(item, one) for one in u])
        values = [int(one) for one in np.unique(drawn) if one > 0]
        chances = np.stack([(drawn == one).mean(axis=0) for one in values], axis=-1)
        output.write_volume(folder / "label_probability.nii.gz", chances.astype(np.float32), grid)
        (folder / "label_probability.json").write_text(json.dumps({"labels": values}))
    judged = item.held_out or item.points
    if judged is not None:
        drawn_points = item.predicted(u, judged)
        seen = judged.vectors @ item.frame()
        rows: list[dict[str, object]] = []
        for number in range(len(seen)):
            row: dict[str, object] = {"point": number}
            for axis, name in enumerate("xyz"[: seen.shape[1]]):
                row[f"seen_{name}"] = f"{seen[number, axis]:.4f}"
                row[f"mean_{name}"] = f"{drawn_points[:, number, axis].mean():.4f}"
                row[f"std_{name}"] = f"{drawn_points[:, number, axis].std(ddof=1) if len(u) > 1 else 0:.4f}"
            rows.append(row)
        output.write_table(folder / "points.csv", rows)
    velocity = item.transform.coordinates.velocity(mean_z)[0]
    output.write_velocity(
        folder / "velocity.safetensors", posterior.samples, velocity, item.transform.coordinates.squarings
    )


def _aligned(fixed: formats.Image, moving: formats.Image, how: str) -> formats.Image:
    """The moving image with its centre at the fixed one's."""
    if how != "centres":
        raise InputError(f"domain.align is {how!r}; expected centres, or nothing")
    centres = [image.grid.world(image.grid.centre[None])[0] for image in (fixed, moving)]
    affine = moving.grid.affine.copy()
    affine[:3, 3] += centres[0] - centres[1]
    return replace(moving, grid=replace(moving.grid, affine=affine))


def _between(fixed: formats.Image, moving: formats.Image) -> Float[np.ndarray, "d dplus1"]:
    """Fixed to moving voxels, refused where the files do not say."""
    if fixed.grid.dimensions == moving.grid.dimensions and not (fixed.grid.known and moving.grid.known):
        if fixed.grid.known != moving.grid.known:
            without = moving.name if fixed.grid.known else fixed.name
            raise InputError(
                f"{without} has no affine and the other image has one; give both with their affines"
            )
        if fixed.grid.shape != moving.grid.shape:
            raise InputError(
                f"{fixed.name} has shape {fixed.grid.shape} and {moving.name} {moving.grid.shape}, and no "
                "affine says how they lie; resample one of them, or give files with affines"
            )
    return between(fixed.grid, moving.grid)


def _grid_words(grid: Grid) -> str:
    spacing = " x ".join(f"{h:.4g}" for h in grid.spacing)
    return f"{' x '.join(str(n) for n in grid.shape)} voxels" + (f" of {spacing} mm" if grid.known else "")


def _fitted(
    spectrum: Spectrum, grid: Grid, points: formats.Points, notes: dict[str, Any]
) -> tuple[Modes, formats.Points]:
    """The prior and the noise of points by their evidence, where there are points enough."""
    if len(points.std) < ENOUGH * (grid.dimensions + 1):
        notes["prior"] = f"as set: {len(points.std)} points are too few to fit it to"
        return Modes(spectrum, grid), points
    found = fit(points, grid, spectrum)
    chosen = found.spectrum
    scales = " and ".join(
        f"{a:g} mm at {length:g} mm"
        for a, length in zip(chosen.amplitudes or (), chosen.lengths, strict=True)
    )
    notes["prior"] = f"by evidence: {scales}, affine part; noise of a point {found.noise:g} mm"
    return Modes(chosen, grid), replace(points, std=np.full(len(points.std), found.noise))


def _masks(
    settings: Mapping[str, Any], fixed: formats.Image, moving: formats.Image | None, notes: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Fixed voxels that count, and the moving mask."""
    inside, seen = np.ones(fixed.grid.shape, dtype=bool), None
    if settings["mask"] is not None:
        mask, said = formats.on_grid(formats.read_labels(Path(settings["mask"])), fixed)
        inside = mask > 0
        notes.update({"mask": said} if said else {})
    if settings["moving_mask"] is not None and moving is not None:
        mask, said = formats.on_grid(formats.read_labels(Path(settings["moving_mask"])), moving)
        seen = (mask > 0).astype(np.float32)
        notes.update({"moving mask": said} if said else {})
    if not inside.any() or (seen is not None and not seen.any()):
        raise InputError("a mask is empty: no voxel counts; give one with ones where the images count")
    return inside, seen


def _labels(
    settings: Mapping[str, Any], fixed: formats.Image, moving: formats.Image | None, notes: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Both label maps on their images' grids."""
    if settings["labels"] is None and settings["moving_labels"] is None:
        return None
    if settings["labels"] is None or settings["moving_labels"] is None or moving is None:
        raise InputError(
            "labels come in pairs: give domain.labels of the fixed and domain.moving_labels of the moving"
        )
    found = []
    for key, image in (("labels", fixed), ("moving_labels", moving)):
        values, said = formats.on_grid(formats.read_labels(Path(settings[key])), image)
        notes.update({key: said} if said else {})
        found.append(values)
    both = np.intersect1d(found[0][found[0] > 0], found[1][found[1] > 0])
    if not len(both):
        raise InputError("the two label maps have no label above 0 in common; give maps of one anatomy")
    return found[0], found[1]
