"""From files and settings to an item: everything that is read, and everything that is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from invdiff import Config, InputError, load_plugin
from invdiff_deformation import formats, output
from invdiff_deformation.evidence import fit
from invdiff_deformation.formats import Image, Points
from invdiff_deformation.grid import Grid, between
from invdiff_deformation.item import SIMILARITIES, Item
from invdiff_deformation.operators import TRANSFORMS, Transform
from invdiff_deformation.prior import Modes, Spectrum, VelocityPrior

EXAMPLES = Path(__file__).resolve().parent / "examples"
EXAMPLE = {
    "moving": EXAMPLES / "moving.nii.gz",
    "labels": EXAMPLES / "fixed_labels.nii.gz",
    "moving_labels": EXAMPLES / "moving_labels.nii.gz",
    "truth": EXAMPLES / "truth.nii.gz",
}
PADDINGS = ("border", "zeros")
ENOUGH = 3  # points for each that an affine map needs, from which a prior is fitted to them
SCALES = 1.5  # ratio of the images' ranges from which `mse` is refused


def prepared(config: Config) -> Item:
    """The item of a configuration, everything read; its noise and its mode are still to be found.

    Raises:
        InputError: for whatever is wrong with files or settings.
    """
    settings, options = dict(config["domain"]), dict(config["operator"])
    if config["noise"]["name"] != "auto":
        raise InputError("deformations take operator.sigma and operator.beta; leave noise=auto")
    _check(settings, options)
    given = config["input"].get("path")
    if given is None:
        settings |= {key: path for key, path in EXAMPLE.items() if settings[key] is None}
    fixed = formats.read_image(Path(given) if given else EXAMPLES / "fixed.nii.gz")
    notes: dict[str, Any] = {"data": fixed.name if given else "a phantom of our own making (bundled)"}
    moving = None if settings["moving"] is None else formats.read_image(Path(settings["moving"]))
    if float(settings["spread"]) != 1:
        notes["spread"] = (
            f"samples lie {float(settings['spread']):g} times as far from their mean as they were drawn, no "
            "coordinate beyond the prior (domain.spread)"
        )
    if moving is None and options["name"] == "register":
        raise InputError("registration needs the image that is moved; give --moving FILE")
    if options["name"] != "register" and options["points"] is None:
        raise InputError(f"operator {options['name']!r} needs points; give operator.points=FILE.csv")
    to_moving = None
    if moving is not None:
        if settings["align"] is not None:
            moving = _aligned(fixed, moving, str(settings["align"]))
            notes["alignment"] = "centres of both images brought together before anything else"
        to_moving = _between(fixed, moving)
        if moving.grid.shape != fixed.grid.shape or not np.allclose(
            moving.grid.affine, fixed.grid.affine, atol=1e-4
        ):
            both = f"{_grid_words(fixed.grid)} and {_grid_words(moving.grid)}"
            notes["grids"] = f"{both}, related by their affines"
        _same_scale(fixed, moving, options)
    prior = load_plugin("priors", str(config["prior"]["name"]))(config["prior"])
    if not hasattr(prior, "coordinates"):
        raise InputError(
            f"prior {prior.card.name!r} is none of velocities; use prior=velocity, or one that describes "
            "velocities on the fixed grid"
        )
    points = _points(options["points"], options, fixed, moving)
    held_out = _points(settings["held_out"], options, fixed, moving)
    coordinates = prior.coordinates(fixed.grid)
    if points is not None:
        kind = "displacements" if options["name"] == "displacement" else "landmarks"
        notes["points"] = f"{len(points.std)} {kind}, std {np.median(points.std):.3g} mm"
        if options["evidence"]:
            if not isinstance(prior, VelocityPrior):
                raise InputError("operator.evidence fits the Gaussian prior to points; use prior=velocity")
            coordinates, points = _fitted(prior.spectrum, fixed.grid, points, notes)
    inside, seen = _masks(settings, fixed, moving, notes)
    labels = _labels(settings, fixed, moving, notes)
    if labels is None and any(options[key] for key in ("labels", "surfaces", "volumes")):
        raise InputError(
            "operator.labels, surfaces and volumes need label maps; give domain.labels and moving_labels"
        )
    frame, truth = str(settings["frame"]), None
    if settings["truth"] is not None:
        truth = output.read_displacement(Path(settings["truth"]), fixed.grid, frame)
    notes["grid"] = _grid_words(fixed.grid) + ("" if fixed.grid.known else f"; {formats.NO_AFFINE}")
    notes["state"] = (
        f"{math.prod(coordinates.event_shape)} coordinates of a velocity, {coordinates.squarings} squarings"
    )
    return Item(
        name=formats.stem_of(Path(given)) if given else "example",
        fixed=fixed,
        moving=moving,
        transform=Transform(coordinates, str(options["transform"])),
        prior=coordinates.prior,
        inside=inside,
        options=options,
        to_moving=to_moving,
        seen=seen,
        labels=labels,
        points=points,
        held_out=held_out,
        truth=truth,
        spread=float(settings["spread"]),
        contour_std=float(settings["contour_std"]),
        output_frame=frame,
        notes=notes,
    )


def _check(settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse settings that cannot be."""
    allowed = {
        "operator.similarity": (options["similarity"], SIMILARITIES),
        "operator.transform": (options["transform"], TRANSFORMS),
        "operator.padding": (options["padding"], PADDINGS),
        "domain.frame": (settings["frame"], ("LPS", "RAS")),
    }
    for key, (value, known) in allowed.items():
        if value not in known:
            raise InputError(f"{key} is {value!r}; expected {' or '.join(known)}")
    sigma, beta, window = options["sigma"], options["beta"], options["window"]
    ranges = {
        "operator.sigma": (sigma, sigma is None or float(sigma) > 0, "a residual std above zero"),
        "operator.beta": (beta, beta is None or 0 < float(beta) <= 1, "a number above 0, at most 1"),
        "operator.blur": (options["blur"], 0 <= float(options["blur"]) <= 10, "0 to 10 voxels"),
        "operator.window": (window, int(window) >= 3 and int(window) % 2 == 1, "an odd number from 3 on"),
        "operator.bins": (options["bins"], int(options["bins"]) >= 8, "8 bins or more"),
        "operator.label_error": (
            options["label_error"],
            0 < float(options["label_error"]) < 1,
            "a share between 0 and 1",
        ),
        "operator.label_beta": (
            options["label_beta"],
            0 < float(options["label_beta"]) <= 1,
            "a number above 0, at most 1",
        ),
        "operator.surface_std": (options["surface_std"], float(options["surface_std"]) > 0, "mm above zero"),
        "operator.volume_std": (
            options["volume_std"],
            float(options["volume_std"]) > 0,
            "a std above zero",
        ),
        "domain.spread": (settings["spread"], 1 <= float(settings["spread"]) <= 10, "a factor of 1 to 10"),
        "domain.contour_std": (
            settings["contour_std"],
            float(settings["contour_std"]) >= 0,
            "mm, not below 0",
        ),
    }
    for key, (value, fine, wanted) in ranges.items():
        if not fine:
            raise InputError(f"{key} is {value}; expected {wanted}")


def _points(path: object, options: Mapping[str, Any], fixed: Image, moving: Image | None) -> Points | None:
    """Landmarks or displacements of a file, where one is given."""
    if path is None:
        return None
    kind = "displacement" if options["name"] == "displacement" else "landmarks"
    other = fixed.grid if moving is None else moving.grid
    std = float(options["point_std"])
    return formats.read_points(Path(str(path)), fixed.grid, other, str(options["frame"]), std, kind)


def _same_scale(fixed: Image, moving: Image, options: dict[str, Any]) -> None:
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


def _aligned(fixed: Image, moving: Image, how: str) -> Image:
    """The moving image with its centre at the fixed one's."""
    if how != "centres":
        raise InputError(f"domain.align is {how!r}; expected centres, or nothing")
    centres = [image.grid.world(image.grid.centre[None])[0] for image in (fixed, moving)]
    affine = moving.grid.affine.copy()
    affine[:3, 3] += centres[0] - centres[1]
    return replace(moving, grid=replace(moving.grid, affine=affine))


def _between(fixed: Image, moving: Image) -> Float[np.ndarray, "d dplus1"]:
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


def _fitted(spectrum: Spectrum, grid: Grid, points: Points, notes: dict[str, Any]) -> tuple[Modes, Points]:
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
    settings: Mapping[str, Any], fixed: Image, moving: Image | None, notes: dict[str, Any]
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
    settings: Mapping[str, Any], fixed: Image, moving: Image | None, notes: dict[str, Any]
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
