"""The super-resolution domain: from a picture to a problem, from samples to files, figures and metrics."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from invdiff import (
    Config,
    CrossedPrior,
    Estimates,
    Figure,
    GaussianNoise,
    InputError,
    Measurement,
    NetworkPrior,
    Noise,
    Posterior,
    Prior,
    Problem,
    SlicewisePrior,
    Summary,
    Tick,
    TiledPrior,
    UnknownGaussianNoise,
    keyed_stream,
    load_plugin,
)
from invdiff.imaging import coverage, std_scale
from invdiff_superres import formats, jpeg, metrics, volume
from invdiff_superres.baselines import TITLES, all_baselines, upsampled
from invdiff_superres.formats import Picture
from invdiff_superres.item import Item, make_operator
from invdiff_superres.operators import Separable
from invdiff_superres.training import Photographs
from invdiff_superres.volume import VolumeItem

EXAMPLE = Path(__file__).resolve().parent / "examples" / "harbour.png"
PLANES = 32  # of a volume in one network call
ROUNDING = 1 / (255 * 12**0.5)  # std of rounding to 8 bits, in [0, 1]


def _criterion(name: str, sign: float, problem: Problem, x: Tensor) -> float:
    """A metric of an image against its reference, larger is better."""
    item: Item = problem.context
    assert item.reference is not None
    image = item.image(x)
    whole = metrics.compare(item.reference, image, item.border)
    return sign * whole[name]


class Superres:
    """The `superres` domain."""

    name = "superres"
    baseline_names = tuple(TITLES)
    criteria: ClassVar[dict[str, Callable[[Problem, Tensor], float]]] = {
        name: functools.partial(_criterion, name, sign) for name, sign in metrics.CRITERIA.items()
    }

    def problems(self, config: Config) -> list[Problem]:
        given, settings = config["input"], config["domain"]
        path = Path(given["path"]) if given.get("path") else None
        card = load_plugin("priors", str(config["prior"]["name"]))(config["prior"]).card
        if path is not None and volume.is_volume(path):
            thick, measurement = volume.read(path, config)
            if card.channels not in (None, 1):
                raise InputError(
                    f"prior {card.name!r} has {card.channels} channels and {path.name} one; choose a prior "
                    "of one, such as prior=brain_mr"
                )
            event = measurement.operator.event_shape
            assert event is not None
            return [Problem(thick.name, measurement, event, thick, thick.notes)]
        truth = path is None or bool(settings["truth"])
        references = _references(settings["reference"], path)
        items = [
            self._item(config, file, truth, references.get(file.stem), card, number, path is None)
            for number, file in enumerate(formats.files(path or EXAMPLE))
        ]
        names = [item.name for item, _ in items]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"two pictures are called {twice}; rename one of them")
        return [
            Problem(item.name, measurement, tuple(item.operator.event_shape), item, item.notes)
            for item, measurement in items
        ]

    def _item(
        self,
        config: Config,
        file: Path,
        truth: bool,
        reference_file: Path | None,
        card: Any,
        number: int,
        example: bool,
    ) -> tuple[Item, Measurement]:
        operator_settings, seed = config["operator"], int(config["seed"])
        source = formats.read(file)
        scale = _scale(operator_settings)
        noise, level = _noise(config["noise"], source)
        warnings = []
        coefficients: jpeg.Coefficients | None = None
        if truth:
            _, height, width = source.values.shape
            kept = height // scale[0] * scale[0], width // scale[1] * scale[1]
            if min(kept) == 0:
                raise InputError(f"{file.name} is {width} x {height} pixels, smaller than the scale")
            reference = source.values[:, : kept[0], : kept[1]]
            shape = (len(reference), kept[0] // scale[0], kept[1] // scale[1])
            operator = make_operator(operator_settings, shape, card.channels)
            plain = make_operator(operator_settings, shape, None)
            clean = plain(torch.from_numpy(reference)[None])[0]
            y = clean
            if noise is not None or config["noise"].get("sigma") is not None:
                y = (noise or GaussianNoise(level)).sample(clean, keyed_stream(seed, number, 1))
            if source.bits is not None and noise is None:
                top = 2**source.bits - 1
                y = (y.clamp(0, 1) * top).round() / top
            source = Picture(y.numpy(), source.bits, None, source.notes)
            if operator_settings["jpeg"] is not None:
                content = jpeg.encode(source.values, int(operator_settings["jpeg"]))
                coefficients = jpeg.read(content, "the simulated JPEG")
                source = Picture(jpeg.decode(content), 8, None, source.notes)
            warnings.append("The data are simulated from a picture; the forward model is ours.")
            cropped = kept != (height, width)
            how = "simulated from the picture" + (f", cropped to {kept[1]} x {kept[0]}" if cropped else "")
        else:
            shape = source.values.shape
            operator = make_operator(operator_settings, shape, card.channels)
            reference, how = None, "the picture as it is"
            if file.suffix.lower() in (".jpg", ".jpeg"):
                coefficients = jpeg.read(file, file.name)
            if reference_file is not None:
                reference = formats.read(reference_file).values
                expected = (shape[0], shape[1] * scale[0], shape[2] * scale[1])
                if reference.shape != expected:
                    raise InputError(
                        f"the reference {reference_file.name} is {_size(reference.shape)} and {file.name} "
                        f"needs one of {_size(expected)}; crop it or choose another"
                    )
        y = torch.from_numpy(source.values)
        clipped = float(((y <= 0) | (y >= 1)).float().mean())
        if clipped > 0.02:
            warnings.append(
                f"{100 * clipped:.0f} % of the data are at 0 or at the largest value; they may be clipped, "
                "and are taken as they are."
            )
        measured: Separable | jpeg.Jpeg = operator
        if coefficients is not None:
            measured = jpeg.Jpeg(operator, coefficients)
            y, level = measured.data(coefficients), jpeg.STD
            how += f", JPEG of steps {coefficients.steps[0].min():g} to {coefficients.steps[0].max():g}"
        model = noise or (
            UnknownGaussianNoise(level) if config["noise"].get("infer") else GaussianNoise(level)
        )
        notes = {
            "data": how + (" (bundled, of our own making)" if example else ""),
            "forward model": measured.kind,
            "size": f"{_size(source.values.shape)} to {_size(operator.event_shape)}",
            "noise": _noise_words(model, source) if coefficients is None else "rounding of the coefficients",
            "values at the ends": f"{100 * clipped:.2g} %",
            **source.notes,
        }
        if len(source.values) == 1 and operator.event_shape[0] == 3:
            notes["colour"] = "grey data: a luminance of unknown colours, which are averaged over"
        tile, overlap = int(config["domain"]["tile"]), int(config["domain"]["overlap"])
        if tile and max(operator.event_shape[-2:]) > tile:
            notes["tiles"] = f"of {tile} pixels with {overlap} shared, in the prior alone"
        name = "example" if example else "".join(c if c.isalnum() or c in "-_" else "_" for c in file.stem)
        item = Item(
            name, source, operator, scale, reference, std_scale(config), tuple(warnings), notes, tile, overlap
        )
        if isinstance(model, GaussianNoise):
            measured = measured.scaled()
            model = type(model)(model.sigma * measured.scale)
            y = y * measured.scale
        return item, Measurement(measured, model, y)

    def references(self, config: Config, folder: Path) -> list[Problem]:
        """Problems of a folder of references, or of one with `lr` and `hr` inside, by the same names.

        Raises:
            InputError: for a folder without pictures, or a picture without its partner.
        """
        pairs = (folder / "lr").is_dir() and (folder / "hr").is_dir()
        given = {"path": str(folder / "lr" if pairs else folder)}
        settings = {"truth": not pairs, "reference": str(folder / "hr") if pairs else None}
        problems = self.problems(
            {
                **config,
                "input": {**config["input"], **given},
                "domain": {**config["domain"], **settings},
            }
        )
        alone = next((problem.id for problem in problems if problem.context.reference is None), None)
        if alone is not None:
            raise InputError(
                f"{alone} of {folder / 'lr'} has no reference of the same name in {folder / 'hr'}"
            )
        return problems

    def training_data(self, settings: Mapping[str, Any]) -> Photographs:
        """Crops for `invdiff train`: `root`, `path`, `held_out` (every n-th), `scale` of a condition."""
        path = Path(str(settings["root"])) / str(settings["path"])
        scale = settings.get("scale")
        return Photographs(path, int(settings.get("held_out", 10)), None if scale is None else int(scale))

    def adapt_prior(self, prior: Prior, problem: Problem) -> Prior:
        item: Item = problem.context
        card = prior.card
        if isinstance(problem.context, VolumeItem):
            slices = SlicewisePrior(prior, PLANES)
            return CrossedPrior(slices) if problem.context.crossed else slices
        if card.shape is not None and tuple(card.shape) != tuple(problem.shape[-2:]):
            raise InputError(
                f"prior {card.name!r} was trained for images of {tuple(card.shape)} and this one is "
                f"{tuple(problem.shape[-2:])}; choose a prior for any size"
            )
        if not card.condition:
            return self._tiled(prior, item)
        kind = problem.measurement.operator.kind  # type: ignore[attr-defined]
        if card.condition != kind:
            raise InputError(
                f"prior {card.name!r} is conditional on data of {card.condition!r} and these are "
                f"{kind!r}; choose an unconditional prior"
            )
        assert isinstance(prior, NetworkPrior)
        given = prior.given(upsampled(item.operator, item.data, "bicubic")[None])
        return self._tiled(given, item)

    @staticmethod
    def _tiled(prior: Prior, item: Item) -> Prior:
        """The prior by tiles where the image is larger than one."""
        if not item.tile or max(item.operator.event_shape[-2:]) <= item.tile:
            return prior
        return TiledPrior(prior, item.tile, item.overlap)

    def baselines(self, problem: Problem, tick: Tick) -> Estimates:
        item = problem.context
        data = problem.measurement.y if isinstance(item, VolumeItem) else item.data
        return all_baselines(item.operator, data, tick)

    def summarise(self, problem: Problem, posterior: Posterior, baselines: Estimates) -> Summary:
        if isinstance(problem.context, VolumeItem):
            return volume.summarise(problem.context, posterior, baselines)
        item: Item = problem.context
        facts: dict[str, Any] = {}
        if item.std_scale != 1:
            facts["std map scaled by"] = f"{item.std_scale:g} (fitted on held-out training photographs)"
        y = item.data
        for name, value in (("one sample", posterior.samples[0]), ("the mean", posterior.mean)):
            again = item.operator(value.clamp(0, 1)[None])[0]
            facts[f"grey levels off the data, {name}"] = round(255 * float((again - y).abs().mean()), 3)
        if item.reference is None:
            return Summary(facts=facts, convention=metrics.CONVENTION, warnings=item.warnings)
        rows: dict[str, Tensor] = {TITLES[name]: value for name, value in baselines.items()}
        rows |= {"one sample": posterior.samples[0], "posterior mean": posterior.mean}
        table = {
            name: metrics.compare(item.reference, item.image(value), item.border)
            for name, value in rows.items()
        }
        mean, std, samples = item.maps(posterior)
        if float(std.max()) > 0:
            widened = std * np.sqrt(1 + 1 / len(samples))
            everywhere = np.ones(mean.shape, dtype=bool)
            facts.update(coverage(item.reference, mean, widened, everywhere, ROUNDING))
            error = np.abs(item.reference - mean).ravel()
            facts["correlation of std and error"] = float(np.corrcoef(error, std.ravel())[0, 1])
            facts["coverage mask"] = "all pixels and channels"
        return Summary(table, facts, metrics.CONVENTION, item.warnings)

    def write(self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> None:
        if isinstance(problem.context, VolumeItem):
            return volume.write(problem.context, posterior, folder)
        item: Item = problem.context
        mean, std, samples = item.maps(posterior)
        bits = item.picture.bits
        alpha = item.picture.alpha
        formats.write(folder / "mean", mean, bits)
        spread = max(float(np.percentile(std, 99.7)), 1e-12)
        formats.write(folder / "std", std / spread, 8)
        (folder / "samples").mkdir(exist_ok=True)
        for number, sample in enumerate(samples):
            formats.write(folder / "samples" / f"{number:02d}", sample, bits)
        if alpha is not None:
            shape = (1, *item.operator.event_shape[1:])
            plane = make_operator(
                {"kernel": "bicubic", "scale": item.scale[0], "antialias": True}, alpha.shape, 1
            )
            if tuple(plane.event_shape) == shape:
                opaque = upsampled(plane, torch.from_numpy(alpha.copy()), "bicubic").numpy()
                formats.write(folder / "alpha", opaque, bits)
        for name, value in {"mean": mean, "std": std, "samples": samples}.items():
            part = folder / f".{name}.npy"
            np.save(part, value)
            os.replace(part, folder / f"{name}.npy")

    def figures(
        self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path
    ) -> list[Figure]:
        if isinstance(problem.context, VolumeItem):
            return volume.figures(problem, posterior, baselines, folder)
        from invdiff_superres.figures import draw_figures

        return draw_figures(problem, posterior, baselines, folder)


def _scale(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Pixels of x a pixel of the data, along y and x."""
    scale = settings["scale"]
    if isinstance(scale, bool) or float(scale) != int(scale) or int(scale) < 1:
        raise InputError(f"operator.scale is {scale}; expected a whole number from 2 on")
    scale = int(scale)
    if settings["kernel"] != "slices":
        return scale, scale
    return (scale, 1) if settings["axis"] == "y" else (1, scale)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-1]} x {shape[-2]} x {shape[-3]}"


def _noise(settings: Mapping[str, Any], picture: Picture) -> tuple[Noise | None, float]:
    """The noise model where one is named, and the level of `auto`: what is given, at least rounding."""
    if settings["name"] != "auto":
        made: Noise = load_plugin("noises", str(settings["name"]))(settings)
        return made, 0.0
    given = float(settings["sigma"] or 0.0)
    if given < 0:
        raise InputError(f"noise.sigma is {given:g}; give a level of zero or more, in units of [0, 1]")
    return None, max(given, picture.rounding or ROUNDING)


def _noise_words(noise: Noise, picture: Picture) -> str:
    sigma = getattr(noise, "sigma", None)
    if sigma is None:
        return str(noise)
    rounding = picture.rounding or ROUNDING
    words = f"std {sigma:.3g} of the largest value"
    return words + (f" (rounding to {picture.bits or 8} bits)" if sigma <= 1.001 * rounding else "")


def _references(given: object, path: Path | None) -> dict[str, Path]:
    """References by the stem of the picture they belong to."""
    if given is None or path is None:
        return {}
    reference = Path(str(given))
    found = formats.files(reference)
    if not path.is_dir():
        if len(found) != 1:
            raise InputError(f"{reference} holds {len(found)} pictures; give the reference of {path.name}")
        return {path.stem: found[0]}
    return {one.stem: one for one in found}
