"""The MR domain: from a file to problems, from samples to files, figures and metrics."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from invdiff import (
    ChannelwisePrior,
    Composition,
    Config,
    Estimates,
    Figure,
    InputError,
    NetworkPrior,
    Posterior,
    Prior,
    Problem,
    SlicewisePrior,
    Summary,
    Tick,
    TrainingData,
    exchange_folder,
)
from invdiff.imaging import coverage, psnr, std_scale, write_nifti, write_npz
from invdiff_mri import formats, metrics, volume
from invdiff_mri.active import known_noise, pending, plan_of, whole
from invdiff_mri.baselines import BaselineSettings, all_baselines
from invdiff_mri.formats.images import SimulateOptions
from invdiff_mri.formats.images import read as read_image_scan
from invdiff_mri.formats.options import ReadOptions
from invdiff_mri.inputs import choose_mask, combined, crop, given_maps, parse_slices, volume_reference
from invdiff_mri.operators import to_complex, to_image
from invdiff_mri.prepare import Prepared, PrepareSettings, prepare
from invdiff_mri.scan import Scan
from invdiff_mri.training import MagnitudeSlices, Source

EXAMPLE = Path(__file__).resolve().parent / "examples" / "head.npz"
TITLES = {
    "zero_filled": "zero-filled",
    "cg_sense": "CG-SENSE",
    "l1_wavelet": "L1-wavelet",
    "tv": "TV",
}


@dataclass(frozen=True)
class Item:
    """What a slice needs to be written and judged.

    Attributes:
        prepared: measurement and the way back to scan units.
        reference: magnitude in scan units, cropped, where one is known.
        measured_reference: the reference is the root sum of squares of a full noisy scan, and
            is compared with what such a scan would have shown (`Prepared.expected_rss`).
        std_scale: factor on the std map (see configs/domain/mri.yaml).
        peak: maximum of the reference volume.
        scan: the scan that it came from (k-space left out).
    """

    prepared: Prepared
    reference: Float[np.ndarray, "y x"] | None
    measured_reference: bool
    std_scale: float
    peak: float
    scan: Scan

    def image(self, x: Float[Tensor, "batch 2 y x"]) -> Complex[np.ndarray, "batch y x"]:
        """Complex images in scan units, cropped."""
        return crop(self.prepared.image(x), self.scan.crop).numpy()

    def comparable(self, x: Float[Tensor, "batch 2 y x"]) -> Float[np.ndarray, "batch y x"]:
        """What is held against the reference: |x|, or the expected root sum of squares."""
        if not self.measured_reference:
            return np.abs(self.image(x))
        return crop(self.prepared.expected_rss(x), self.scan.crop).numpy()

    def reference_noise(self) -> Float[np.ndarray, "y x"] | float:
        """Std of the reference's own noise that was not seen by the measurement."""
        if not self.measured_reference:
            return 0.0
        operator = self.prepared.measurement.operator
        missing = 1 - float(operator.mask.float().mean())  # type: ignore[attr-defined]
        return missing**0.5 * crop(self.prepared.gain, self.scan.crop).numpy()


class MRI:
    """The `mri` domain."""

    name = "mri"
    baseline_names = tuple(TITLES)

    def problems(self, config: Config) -> list[Problem]:
        operator, given = dict(config["operator"]), dict(config["input"])
        options = ReadOptions(given.get("format"), given.get("axes"), bool(given.get("shift")))
        simulate = config["domain"]["simulate"]
        path = Path(given["path"]) if given.get("path") else EXAMPLE
        slices = parse_slices(given.get("slices"))
        if formats.is_image(path):
            if not path.exists():
                raise InputError(f"there is no file {path}")
            coils = 1 if operator["single_coil"] else int(simulate["coils"])
            scan = read_image_scan(
                path,
                SimulateOptions(
                    coils, float(simulate["sigma"]), slices, int(config["seed"]), bool(operator.get("volume"))
                ),
            )
            slices = None
        elif not given.get("path") and operator.get("budget") is not None:
            scan = example_scan()
        else:
            scan = formats.read(path, options)
        if operator["single_coil"] and scan.kspace.shape[1] > 1:
            scan = combined(scan)
        mask, retrospective = (
            choose_mask(scan, operator) if operator.get("budget") is None else whole(scan, operator)
        )
        noise = config["noise"]
        if noise["name"] != "auto":
            raise InputError(
                f"k-space noise is Gaussian and this run asks for noise={noise['name']}; "
                "leave noise=auto and give noise.sigma= where the level is known"
            )
        settings = PrepareSettings(
            sigma=noise["sigma"],
            infer=bool(noise["infer"]),
            scale=operator["scale"],
            phase=str(operator["phase"]),
            kernel=None if operator["kernel"] is None else int(operator["kernel"]),
            threshold=float(operator["threshold"]),
        )
        maps = given_maps(scan, str(operator["coil_maps"]))
        count = len(scan.kspace)
        chosen = list(range(count)[slice(*slices)] if slices else range(count))
        if not chosen:
            raise InputError(f"input.slices selects none of the {count} slices")
        name = "example" if given.get("path") is None else path.name.split(".")[0] or path.name
        references, level = volume_reference(scan, mask, retrospective)
        widening = std_scale(config)
        bare = replace(scan, kspace=scan.kspace[:0], coil_maps=None, reference=None)
        ones = str(operator["coil_maps"]) == "ones"

        active = operator.get("budget") is not None

        def problem(index: int, kspace: Complex[Tensor, "coil y x"], mask: Bool[Tensor, "y x"]) -> Problem:
            prepared = prepare(
                kspace,
                mask,
                settings,
                coil_maps=None if maps is None else maps[index],
                noise_scan=scan.noise,
                covariance=known_noise(scan, index, settings) if active and retrospective else None,
                single_coil=ones,
            )
            reference = None if references is None else references[index]
            measured_reference = retrospective and scan.simulated is None
            notes = {
                **prepared.notes,
                "acquisition": "retrospective: undersampled here" if retrospective else "prospective",
            }
            if scan.simulated:
                notes["data"] = scan.simulated
            return Problem(
                id=f"{name}-{index:03d}" if count > 1 else name,
                measurement=prepared.measurement,
                shape=(2, *mask.shape),
                context=(
                    Item(prepared, reference, measured_reference, widening, level, bare),
                    BaselineSettings(**config["domain"]["baselines"]),
                ),
                notes=notes,
            )

        if operator.get("volume"):
            if active:
                raise InputError("lines are chosen for one slice at a time; leave out operator.volume")
            batch = operator.get("slice_batch")
            every = [problem(index, scan.kspace[index], mask) for index in chosen]
            return [volume.stacked(every, name, None if batch is None else int(batch))]
        if not active:
            return [problem(index, scan.kspace[index], mask) for index in chosen]
        if exchange_folder(operator) is not None and len(chosen) > 1:
            raise InputError(
                f"operator.design.exchange asks for the lines of one slice and {len(chosen)} are chosen; "
                "give input.slices="
            )
        plan = plan_of(scan, mask, operator, int(config["seed"]), espirit=maps is None and not ones)
        axis = int(operator["axis"])
        return [
            pending(plan, axis, scan.kspace[index], functools.partial(problem, index)) for index in chosen
        ]

    def training_data(self, settings: Mapping[str, Any]) -> TrainingData:
        """Slices for `invdiff train`: `root`, `sources` (path, share, held_out), `contrast`."""
        root = Path(str(settings["root"]))
        sources = []
        for source in settings["sources"]:
            path = root / str(source["path"])
            if not path.is_file():
                raise InputError(f"there is no training file {path}; set data.root=FOLDER")
            held_out = tuple(int(subject) for subject in source.get("held_out", ()))
            sources.append(Source(path, float(source["share"]), held_out))
        return MagnitudeSlices(
            sources, int(settings.get("validation_images", 24)), float(settings.get("contrast", 0.0))
        )

    def adapt_prior(self, prior: Prior, problem: Problem) -> Prior:
        if isinstance(prior, Composition):
            return Composition(tuple((self.adapt_prior(one, problem), power) for one, power in prior.parts))
        card = prior.card
        if card.shape is not None and tuple(card.shape) != tuple(problem.shape[-2:]):
            raise InputError(
                f"prior {card.name!r} was trained for images of {tuple(card.shape)} and this scan is "
                f"{tuple(problem.shape[-2:])}; crop the scan or choose a prior for any size"
            )
        if card.channels not in (None, 1, 2) or (card.channels == 1 and not isinstance(prior, NetworkPrior)):
            raise InputError(
                f"prior {card.name!r} has {card.channels} channels; an MR image needs 2 (real and "
                "imaginary), or 1 that is used for both"
            )
        both = ChannelwisePrior(prior) if isinstance(prior, NetworkPrior) and card.channels == 1 else prior
        stack = problem.context[0]
        return SlicewisePrior(both, stack.slice_batch) if isinstance(stack, volume.Stack) else both

    def baselines(self, problem: Problem, tick: Tick) -> Estimates:
        item, settings = problem.context
        if isinstance(item, volume.Stack):
            return volume.baselines(item, settings)
        return all_baselines(problem.measurement, settings, tick)

    def summarise(self, problem: Problem, posterior: Posterior, baselines: Estimates) -> Summary:
        if isinstance(problem.context[0], volume.Stack):
            named = {TITLES.get(name, name): value for name, value in baselines.items()}
            return volume.summarise(problem.context[0], posterior, named)
        item: Item = problem.context[0]
        reference = item.reference
        facts: dict[str, Any] = {}
        warnings = []
        if item.scan.simulated:
            warnings.append(f"The data are {item.scan.simulated}.")
        if reference is None:
            return Summary(facts=facts, convention=metrics.CONVENTION, warnings=tuple(warnings))
        estimates = {TITLES.get(name, name): value for name, value in baselines.items()}
        estimates["one sample"] = posterior.samples[0]
        estimates["posterior mean"] = posterior.mean
        table = {}
        for name, estimate in estimates.items():
            image = item.comparable(estimate[None])[0]
            if item.measured_reference and name == "zero-filled":
                image = crop(zero_filled_rss(item.prepared), item.scan.crop).numpy()
            row = metrics.compare(reference, image, item.peak)
            if item.measured_reference:
                plain = np.abs(item.image(estimate[None])[0])
                row["psnr_magnitude"] = psnr(reference, plain, item.peak)
            table[name] = row
        convention = metrics.CONVENTION
        if item.measured_reference:
            convention += (
                "; the reference is the root sum of squares (RSS) of a full noisy scan, so every method is "
                "compared as the RSS that such a scan would have shown: measured samples as measured, the "
                "expected noise power where nothing was measured (psnr_magnitude: the bare magnitude, which "
                "has no noise floor)"
            )
        _, std, samples = magnitudes(item, posterior)
        if float(std.max()) > 0:
            inside = metrics.object_mask(reference)
            mean = item.comparable(posterior.mean[None])[0]
            widened = std * np.sqrt(1 + 1 / len(samples))
            facts.update(coverage(reference, mean, widened, inside, item.reference_noise()))
            error = np.abs(reference - mean)[inside]
            facts["correlation of std and error"] = float(np.corrcoef(error, std[inside])[0, 1])
            if item.std_scale != 1:
                facts["std map scaled by"] = f"{item.std_scale:g} (fitted on held-out training subjects)"
            if item.measured_reference:
                facts["coverage note"] = "the reference is measured; its own noise is added to the std"
        return Summary(table, facts, convention, tuple(warnings))

    def write(self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> None:
        if isinstance(problem.context[0], volume.Stack):
            return volume.write(problem.context[0], posterior, baselines, folder)
        item: Item = problem.context[0]
        mean, std, samples = magnitudes(item, posterior)
        complex_mean = item.image(posterior.mean[None])[0]
        affine = item.scan.affine
        write_nifti(folder / "mean.nii.gz", mean[None], affine)
        write_nifti(folder / "std.nii.gz", std[None], affine)
        write_nifti(folder / "phase.nii.gz", np.angle(complex_mean)[None], affine)
        write_nifti(folder / "samples.nii.gz", samples, affine)
        rss = crop(item.prepared.expected_rss(posterior.mean[None]), item.scan.crop).numpy()
        write_nifti(folder / "rss.nii.gz", rss, affine)
        arrays = {name: item.image(value[None])[0] for name, value in baselines.items()}
        write_npz(
            folder / "result.npz",
            mean=complex_mean,
            std=std,
            samples=item.image(posterior.samples),
            mask=item.prepared.measurement.operator.mask.numpy(),  # type: ignore[attr-defined]
            coil_maps=item.prepared.coils.maps.numpy(),
            **arrays,
        )

    def figures(
        self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path
    ) -> list[Figure]:
        if isinstance(problem.context[0], volume.Stack):
            return volume.figures(problem, posterior, baselines, TITLES, folder)
        from invdiff_mri.figures import draw_figures

        return draw_figures(problem, posterior, baselines, folder)


def example_scan() -> Scan:
    """The bundled head with all of its lines, drawn anew: what a scanner of active subsampling would give."""
    from invdiff_mri.examples.make_head import full_scan

    drawn = {name: torch.from_numpy(array) for name, array in full_scan().items()}
    return Scan(
        drawn["kspace"][None],
        noise=drawn["noise"],
        reference=drawn["reference"][None],
        simulated="drawn: object, phase, coils and noise are ours",
    )


def magnitudes(
    item: Item, posterior: Posterior
) -> tuple[Float[np.ndarray, "y x"], Float[np.ndarray, "y x"], Float[np.ndarray, "samples y x"]]:
    """Magnitude of the complex mean, (scaled) std of the sample magnitudes, sample magnitudes."""
    samples = np.abs(item.image(posterior.samples))
    mean = np.abs(item.image(posterior.mean[None])[0])
    std = item.std_scale * samples.std(axis=0, ddof=1) if len(samples) > 1 else np.zeros_like(mean)
    return mean, std, samples


def zero_filled_rss(prepared: Prepared) -> Float[Tensor, "y x"]:
    """Root sum of squares of the zero-filled coil images, in scan units."""
    white = to_image(to_complex(prepared.measurement.y[None])[0])
    coils = torch.einsum("ij,jyx->iyx", prepared.unmix, white) * prepared.scale
    return coils.abs().square().sum(dim=0).sqrt()
