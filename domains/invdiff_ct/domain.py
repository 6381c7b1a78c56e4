"""The CT domain: from a file to problems, from samples to files, figures and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from invdiff import (
    Config,
    Estimates,
    Figure,
    InputError,
    Posterior,
    Prior,
    Problem,
    SlicewisePrior,
    Summary,
    Tick,
    TrainingData,
    exchange_folder,
)
from invdiff.imaging import coverage, std_scale, write_nifti, write_npz
from invdiff_ct import formats, metrics
from invdiff_ct.active import pending, plan_of
from invdiff_ct.baselines import TITLES, BaselineSettings, all_baselines
from invdiff_ct.formats import dicom_output
from invdiff_ct.formats.options import ReadOptions
from invdiff_ct.hu import Window
from invdiff_ct.item import Item
from invdiff_ct.problems import from_projections, from_volume
from invdiff_ct.scan import Volume
from invdiff_ct.training import Slices, Source

EXAMPLE = Path(__file__).resolve().parent / "examples" / "chest.npz"


class CT:
    """The `ct` domain."""

    name = "ct"
    baseline_names = tuple(TITLES)

    def problems(self, config: Config) -> list[Problem]:
        given = config["input"]
        path = Path(given["path"]) if given.get("path") else EXAMPLE
        data = formats.read(path, ReadOptions.of(config["operator"], given))
        name = path.name.split(".")[0] or path.name if given.get("path") else "example"
        make = from_volume if isinstance(data, Volume) else from_projections
        items = make(data, config, name, std_scale(config))  # type: ignore[operator]

        def problem(item: Item) -> Problem:
            return Problem(
                id=item.name,
                measurement=item.prepared.measurement,
                shape=tuple(item.prepared.projector.event_shape),
                context=(
                    replace(item, dicom=bool(config["domain"]["dicom"])),
                    BaselineSettings(**config["domain"]["baselines"]),
                ),
                notes=item.notes,
            )

        operator, noise, seed = config["operator"], config["noise"], int(config["seed"])
        if exchange_folder(operator) is not None and len(items) > 1:
            raise InputError(
                f"operator.design.exchange asks for the views of one slice and {len(items)} are chosen; "
                "give input.slices="
            )
        return [
            problem(item)
            if isinstance(item, Item)
            else pending(item, plan_of(item.data, operator, noise, seed), problem)
            for item in items
        ]

    def training_data(self, settings: Mapping[str, Any]) -> TrainingData:
        """Slices for `invdiff train`: `root`, `hu_range`, `sources` (path, held_out patients)."""
        root = Path(str(settings["root"]))
        sources = []
        for source in settings["sources"]:
            path = root / str(source["path"])
            if not path.is_file():
                raise InputError(f"there is no training file {path}; set data.root=FOLDER")
            sources.append(Source(path, tuple(str(patient) for patient in source.get("held_out", ()))))
        return Slices(sources, Window(*settings.get("hu_range", (-1000, 1000))))

    def adapt_prior(self, prior: Prior, problem: Problem) -> Prior:
        card = prior.card
        if card.channels not in (None, 1):
            raise InputError(
                f"prior {card.name!r} has {card.channels} channels; a CT image has one, so choose another"
            )
        if card.shape is not None and tuple(card.shape) != tuple(problem.shape[-2:]):
            raise InputError(
                f"prior {card.name!r} was trained for images of {tuple(card.shape)} and this one is "
                f"{tuple(problem.shape[-2:])}; set operator.size= or choose a prior for any size"
            )
        if len(problem.shape) == 4:
            return SlicewisePrior(prior, problem.context[0].slice_batch)
        return prior

    def baselines(self, problem: Problem, tick: Tick) -> Estimates:
        item, settings = problem.context
        prepared = item.prepared
        return all_baselines(prepared.projector, prepared.lines, settings, tick, prepared.noisy)

    def summarise(self, problem: Problem, posterior: Posterior, baselines: Estimates) -> Summary:
        item: Item = problem.context[0]
        facts: dict[str, Any] = {}
        if item.std_scale != 1:
            facts["std map scaled by"] = f"{item.std_scale:g} (fitted on held-out training patients)"
        if item.reference is None or item.prepared.window is None:
            return Summary(facts=facts, convention=metrics.CONVENTION, warnings=item.warnings)
        estimates = {TITLES[name]: value for name, value in baselines.items()}
        estimates |= {"one sample": posterior.samples[0], "posterior mean": posterior.mean}
        inside, width = item.seen, item.prepared.window.width
        compare = metrics.compare if item.reference.ndim == 2 else metrics.compare_volumes
        table = {
            name: compare(item.reference, item.prepared.image(value), inside, width)
            for name, value in estimates.items()
        }
        mean, std, samples = item.maps(posterior)
        if float(std.max()) > 0:
            body = inside & metrics.body_mask(item.reference)
            widened = std * np.sqrt(1 + 1 / len(samples))
            facts.update(coverage(item.reference, mean, widened, body))
            error = np.abs(item.reference - mean)[body]
            facts["correlation of std and error"] = float(np.corrcoef(error, std[body])[0, 1])
            facts["coverage mask"] = "body: largest part above -500 HU, filled, inside the field of view"
        return Summary(table, facts, metrics.CONVENTION, item.warnings)

    def write(self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> None:
        item: Item = problem.context[0]
        mean, std, samples = item.maps(posterior)
        shown, window = item.prepared.shown, item.prepared.window
        width = item.prepared.unit if window is None else window.width
        images: dict[str, Float[np.ndarray, "*shape"]] = {
            "mean": shown(mean),
            "std": std * np.float32(width),
            "samples": shown(samples),
        }
        side = mean.shape[-2:]
        write_nifti(folder / "mean.nii.gz", images["mean"].reshape(-1, *side), item.affine)
        write_nifti(folder / "std.nii.gz", images["std"].reshape(-1, *side), item.affine)
        if item.dicom:
            for name in ("mean", "std"):
                dicom_output.write(
                    folder / "dicom" / name, images[name].reshape(-1, *side), item.affine, name
                )
        if mean.ndim == 2:
            write_nifti(folder / "samples.nii.gz", images["samples"], item.affine)
        for number, sample in enumerate(images["samples"] if mean.ndim == 3 else ()):
            write_nifti(folder / f"sample_{number:02d}.nii.gz", sample, item.affine)
        classical = {name: shown(item.prepared.image(value)) for name, value in baselines.items()}
        geometry = item.prepared.projector.geometry
        write_npz(
            folder / "result.npz",
            **images,
            **classical,
            sinogram=item.prepared.lines.numpy() * item.prepared.unit,
            angles_deg=np.rad2deg(geometry.angles),
            pixel_mm=np.array(item.prepared.projector.pixel_mm),
        )

    def figures(
        self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path
    ) -> list[Figure]:
        from invdiff_ct.figures import draw_figures, draw_volume

        draw = draw_figures if problem.context[0].mean_axes == 2 else draw_volume
        return draw(problem, posterior, baselines, folder)
