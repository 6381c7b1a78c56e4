"""From what was read to the slices to solve: simulated scans of images, and measured scans."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from invdiff import Config, InputError
from invdiff_ct.fbp import field_of_view, filtered_back_projection
from invdiff_ct.geometry import Geometry
from invdiff_ct.hu import Window
from invdiff_ct.item import Complete, Item
from invdiff_ct.noise import FINER_DETAIL, SPLIT_PIXELS, logarithm
from invdiff_ct.prepare import COUNTING, counting_noise, flux_of, prepare
from invdiff_ct.projector import Projector
from invdiff_ct.scan import Projections, Volume
from invdiff_ct.simulate import simulated_counts, simulated_lines, squared, truth_and_fine
from invdiff_ct.views import (
    chosen_views,
    region_of_interest,
    rotation_centre,
    simulated_geometry,
    truncated,
)

EDGE = 0.02  # mean of the outer detectors over the maximum, above which data are called truncated


def chosen_slices(text: object, count: int) -> list[int]:
    """Indices of `start:stop:step` or one number; the middle one for None.

    Raises:
        InputError: for text that is neither, or that selects nothing.
    """
    if text is None:
        return [count // 2]
    parts = str(text).split(":")
    try:
        numbers = [int(part) if part else None for part in parts]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 3 or (len(numbers) == 1 and numbers[0] is None):
        raise InputError(f"input.slices is {text!r}; expected start:stop:step or a number")
    first = numbers[0]
    found = (
        [first % count] * (-count <= first < count)
        if len(numbers) == 1 and first is not None
        else list(range(count)[slice(*numbers)])
    )
    if not found:
        raise InputError(f"input.slices={text} selects none of the {count} slices")
    return found


def slice_affine(
    affine: Float[np.ndarray, "4 4"] | None, index: int, shift: tuple[int, int], pixel: float, factor: float
) -> Float[np.ndarray, "4 4"]:
    """The affine of a slice of `factor` times larger pixels, padded by `shift` pixels before each axis."""
    base = np.diag([pixel, pixel, 1.0, 1.0]) if affine is None else affine
    move = np.diag([factor, factor, 1.0, 1.0])
    move[:3, 3] = (0.5 * (factor - 1) - shift[0], 0.5 * (factor - 1) - shift[1], index)
    return np.asarray(base @ move)


def _described(geometry: Geometry, pixel: float, calibrated: bool) -> dict[str, Any]:
    unit = "mm" if calibrated else "detector spacings"
    degrees = np.rad2deg(geometry.angles)
    return {
        "beam": geometry.beam,
        "views": f"{len(degrees)}, {degrees.min():.4g} to {degrees.max():.4g} degrees",
        "detectors": f"{geometry.detectors} of {geometry.pitch_mm:.4g} {unit}",
        "pixel": f"{pixel:.4g} {unit}",
    }


def from_volume(volume: Volume, config: Config, name: str, std_scale: float) -> list[Item] | list[Complete]:
    """Simulated scans of the chosen slices; complete ones where views are to be chosen.

    Raises:
        InputError: for settings that do not fit the image.
    """
    operator, noise = config["operator"], config["noise"]
    window = Window(*(float(value) for value in operator["hu_range"]))
    unit = window.attenuation(float(operator["mu_water"]))
    flux = flux_of(noise, None if operator["flux"] is None else float(operator["flux"]))
    if flux is not None and not flux > 0:
        raise InputError(f"operator.flux is {flux:g} photons; give a number above zero, or leave it out")
    side = len(squared(volume.hu[0]))
    size = int(operator["size"] or volume.size or side)
    fine_pixel = float(operator["pixel_mm"] or volume.pixel_mm or 1.0)
    if not fine_pixel > 0:
        raise InputError(f"operator.pixel_mm is {fine_pixel:g}; give a length above zero")
    pixel = fine_pixel * side / size
    geometry = simulated_geometry(operator, size, pixel)
    if operator["region_mm"] is not None:
        geometry, _ = region_of_interest(geometry, float(operator["region_mm"]))
    given = config["input"].get("slices")
    chosen = chosen_slices(":" if given is None and operator.get("volume") else given, len(volume.hu))
    truth_and_fine(np.zeros((side, side), dtype=np.float32), size)
    projector = Projector(geometry, size, pixel, str(operator["kernel"]))
    circle, seen = field_of_view(None, size, pixel), field_of_view(geometry, size, pixel)
    seed = int(config["seed"])
    shift = (side - volume.hu.shape[1]) // 2, (side - volume.hu.shape[2]) // 2
    warnings = ("The data are simulated from an image: geometry and noise are ours.",)

    def simulated(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
        """HU, truth, data of a slice and the kind of the data."""
        hu = squared(volume.hu[index])
        x = window.to_unit(hu) * field_of_view(None, side, fine_pixel)
        truth, fine = truth_and_fine(x, size)
        data = simulated_lines(fine, side * fine_pixel, geometry)
        if flux is not None:
            model = counting_noise(noise) if noise["name"] in COUNTING else None
            counts = simulated_counts(data, unit, flux, model, seed, index)
            return hu, (truth * circle).astype(np.float32), counts, "counts"
        data = unit * data
        if noise.get("sigma") is not None:
            random = np.random.default_rng([seed, index])
            data = data + max(float(noise["sigma"]), 0.0) * random.standard_normal(data.shape)
        return hu, (truth * circle).astype(np.float32), data, "line_integral"

    def item(
        label: str,
        index: int,
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, str]],
        kept: list[int] | None = None,
    ) -> Item:
        hu, truth, data = (np.stack([part[k] for part in parts]) for k in range(3))  # type: ignore[misc]
        alone = len(parts) == 1 and not operator.get("volume")
        if kept is not None:
            data = data[:, kept]
        used = projector if kept is None else projector.subset(kept)
        prepared = prepare(
            data[0] if alone else data,
            parts[0][3],
            used,
            noise=noise,
            flux=flux,
            unit=unit,
            window=window,
            field_of_view=circle,
            exact=True,
            grid_error=SPLIT_PIXELS if size == side else FINER_DETAIL,
        )
        notes = {
            "data": "simulated from an image on a grid twice as fine or finer; geometry and noise are ours",
            **_described(used.geometry, pixel, True),
            **prepared.notes,
            **volume.notes,
            "clipped": f"{100 * window.clipped_share(hu):.2g} % of the pixels above {window.high:g} HU",
            "mu of water": f"{float(operator['mu_water']):g} / mm",
        }
        if volume.pixel_mm is None and operator["pixel_mm"] is None:
            notes["pixel size"] = "not in the file: 1 mm assumed"
        if not alone:
            notes["slices"] = f"{len(parts)} of {len(volume.hu)}"
        affine = slice_affine(volume.affine, index, shift, fine_pixel, side / size)
        batch = operator.get("slice_batch")
        return Item(
            label,
            prepared,
            seen,
            affine,
            truth[0] if alone else truth,
            std_scale,
            warnings,
            notes,
            None if batch is None else int(batch),
        )

    if operator.get("volume"):
        if len(chosen) < 2 or any(b - a != 1 for a, b in itertools.pairwise(chosen)):
            raise InputError(
                f"operator.volume=true needs two or more neighbouring slices and {len(chosen)} are chosen; "
                "give input.slices=start:stop of a volume"
            )
        return [item(name, chosen[0], [simulated(index) for index in chosen])]

    labels = {index: f"{name}-{index:03d}" if len(volume.hu) > 1 else name for index in chosen}
    if operator.get("budget") is None:
        return [item(labels[index], index, [simulated(index)]) for index in chosen]

    def complete(index: int) -> Complete:
        hu, truth, data, kind = simulated(index)

        def part(fresh: np.ndarray, kept: list[int]) -> Item:
            return item(labels[index], index, [(hu, truth, fresh, kind)], kept)

        return Complete(data, projector, to_lines(kind, flux), part)

    return [complete(index) for index in chosen]


def to_lines(kind: str, flux: float | None) -> Callable[[np.ndarray], np.ndarray]:
    """From data of that kind to line integrals."""
    if kind == "counts":
        return lambda data: logarithm(data, flux or 0.0)[0]
    return lambda data: data


def _centred(scan: Projections, operator: Any) -> tuple[Geometry, str]:
    """The geometry with its centre: the user's, the file's, or found."""
    wanted = operator["centre"]
    if wanted not in (None, "auto"):
        return replace(scan.geometry, centre=float(wanted)), "given"
    if scan.geometry.centre is not None:
        return scan.geometry, "from the file"
    middle = scan.sinogram[len(scan.sinogram) // 2]
    lines = (
        np.log(np.maximum(middle, 1.0)).max() - np.log(np.maximum(middle, 1.0))
        if scan.kind == "counts"
        else middle
    )
    centre, how = rotation_centre(lines, scan.geometry)
    return replace(scan.geometry, centre=centre), how


def from_projections(
    scan: Projections, config: Config, name: str, std_scale: float
) -> list[Item] | list[Complete]:
    """Measured rows, with the views that the operator keeps; complete ones where views are to be chosen.

    Raises:
        InputError: for settings that do not fit the data.
    """
    operator, noise = config["operator"], config["noise"]
    window = Window(*(float(value) for value in operator["hu_range"])) if scan.calibrated else None
    flux = flux_of(noise, scan.flux)
    whole, how = _centred(scan, operator)
    kept = chosen_views(operator, whole)
    geometry, columns = whole.views(kept), np.arange(whole.detectors)
    if operator["region_mm"] is not None:
        geometry, columns = region_of_interest(geometry, float(operator["region_mm"]))
    side = max(16, int(2 * whole.field_radius_mm / (whole.pitch_mm / whole.magnification)) // 2 * 2)
    size = int(operator["size"] or side)
    natural = 2 * whole.field_radius_mm / size
    pixel = float(operator["pixel_mm"] or natural)
    if size < 16 or not pixel > 0:
        raise InputError(
            f"operator.size is {size} and operator.pixel_mm {pixel:g}; expected 16 or more, above zero"
        )
    projector = Projector(geometry, size, pixel, str(operator["kernel"]))
    circle, seen = field_of_view(None, size, pixel), field_of_view(geometry, size, pixel)
    many = len(scan.sinogram) > 1

    def item(index: int, rows: np.ndarray, views: list[int]) -> Item:
        """Of the kept views, those of these numbers; `rows` are of all kept views."""
        data, label = rows[views], f"{name}-{index:03d}" if many else name
        used = projector if len(views) == len(kept) else projector.subset(views)
        warnings = []
        lines = to_lines(scan.kind, flux)(data)
        edge = truncated(lines)
        if edge > EDGE and operator["region_mm"] is None:
            warnings.append(
                f"The outer detectors hold {100 * edge:.0f} % of the maximum: the object leaves the field."
            )
        if window is not None:
            unit = window.attenuation(float(operator["mu_water"]))
        else:
            image = filtered_back_projection(lines, used.geometry, size, pixel)
            unit = float(np.percentile(image[seen], 99.5))
            if not unit > 0:
                raise InputError(f"{name} reconstructs to nothing; check angles, centre and kind of the data")
        prepared = prepare(
            data,
            scan.kind,
            used,
            noise=noise,
            flux=flux,
            unit=unit,
            window=window,
            field_of_view=circle,
            exact=False,
            grid_error=FINER_DETAIL,
        )
        notes = {
            "data": f"measured; {len(views)} of {len(whole.angles)} views used",
            **_described(used.geometry, pixel, scan.calibrated),
            "rotation centre": f"detector {whole.centre:g}, {how}",
            **prepared.notes,
            **scan.notes,
        }
        if window is None:
            notes["data scale"] = (
                f"{unit:.4g} per detector spacing is x = 1 (99.5th percentile of the FBP); no HU"
            )
        affine = slice_affine(None, 0, (0, 0), pixel, 1.0)
        return Item(label, prepared, seen, affine, None, std_scale, tuple(warnings), notes)

    if operator.get("volume"):
        raise InputError("operator.volume=true is for slices of images and this is a sinogram; leave it out")
    rows = {
        index: scan.sinogram[index][kept][:, columns]
        for index in chosen_slices(config["input"].get("slices"), len(scan.sinogram))
    }
    if operator.get("budget") is None:
        return [item(index, data, list(range(len(kept)))) for index, data in rows.items()]
    logarithm_of = to_lines(scan.kind, flux)
    return [
        Complete(data, projector, logarithm_of, functools.partial(item, index))
        for index, data in rows.items()
    ]
