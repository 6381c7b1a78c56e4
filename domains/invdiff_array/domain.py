"""`array`: `.npy` data, any registered operator, npy results.

The operator is built as `build(settings, shape)` with the event shape of x
where it is known (a truth, or `domain.shape`), else None.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff import (
    Acquisition,
    Config,
    Estimates,
    Figure,
    GaussianNoise,
    InputError,
    LinearOperator,
    Measurement,
    Noise,
    Operator,
    Pending,
    Plan,
    Posterior,
    Prior,
    Problem,
    Summary,
    Tick,
    UnknownGaussianNoise,
    as_operator,
    candidates_of,
    keyed_stream,
    load_plugin,
    select,
    start_size,
)
from invdiff.imaging import acquisition_figure


class Identity(LinearOperator):
    """`A = 1`: denoising."""

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        return x

    def adjoint(self, y: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        return y


def identity(settings: Mapping[str, Any], shape: tuple[int, ...] | None) -> Operator:
    """The identity, for any shape."""
    operator = Identity()
    operator.event_shape = shape
    return operator


class Pixels(Identity):
    """`A = 1` with blocks of `side` x `side` pixels (all channels) as candidates: inpainting.

    Raises:
        InputError: for events without two image axes, or a block that does not divide them.
    """

    def __init__(self, shape: tuple[int, ...], side: int = 1) -> None:
        if len(shape) < 2 or side < 1 or shape[-1] % side or shape[-2] % side:
            raise InputError(
                f"operator.block is {side} and the event shape {shape}; it must divide an image's sides"
            )
        self.event_shape, self.side = shape, side

    def candidates(self) -> Int[Tensor, "*event"]:
        """The block of every pixel, row by row."""
        assert self.event_shape is not None
        height, width = self.event_shape[-2:]
        rows, columns = torch.arange(height) // self.side, torch.arange(width) // self.side
        blocks = rows[:, None] * (width // self.side) + columns[None, :]
        return blocks.expand(self.event_shape).clone()


def pixels(settings: Mapping[str, Any], shape: tuple[int, ...] | None) -> Operator:
    """Blocks of pixels to choose from; 64 x 64 where no shape is known."""
    return Pixels(shape or (1, 64, 64), int(settings.get("block", 1)))


def read_array(path: Path) -> Float[Tensor, "*shape"]:
    """A real array from .npy, without unpickling."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path.name} is not a numpy array ({error})") from None
    if not isinstance(loaded, np.ndarray) or np.iscomplexobj(loaded):
        raise InputError(f"{path.name} must be one real .npy array; complex data as two channels")
    array = torch.from_numpy(np.ascontiguousarray(loaded, dtype=np.float32))
    if not bool(torch.isfinite(array).all()):
        raise InputError(f"{path.name} holds values that are NaN or infinite; repair or mask them")
    return array


def given_noise(settings: Mapping[str, Any]) -> tuple[Noise | None, float | None]:
    """The noise model, and for `auto` its level alone, where one is given."""
    if settings["name"] == "auto":
        return None, settings["sigma"]
    noise: Noise = load_plugin("noises", str(settings["name"]))(settings)
    return noise, None


def gaussian_noise(sigma: float, unknown: bool) -> GaussianNoise:
    """Gaussian noise of a level that is known, or inferred with x."""
    return UnknownGaussianNoise(sigma) if unknown else GaussianNoise(sigma)


class ArrayDomain:
    """The `array` domain."""

    name = "array"
    baseline_names = ("adjoint",)

    def problems(self, config: Config) -> list[Problem]:
        path = config["input"].get("path")
        settings = config["domain"]
        shape = tuple(settings["shape"]) if settings.get("shape") else None
        build = load_plugin("operators", str(config["operator"]["name"]))
        seed = int(config["seed"])
        noise, sigma = given_noise(config["noise"])
        truth: Tensor | None = None
        if path is None:
            truth = bundled_truth(shape or (1, 64, 64), seed)
        elif settings["truth"]:
            truth = read_array(Path(path))
        if truth is not None:
            operator = as_operator(build(config["operator"], tuple(truth.shape)))
            clean = operator(truth[None])[0]
            if noise is None:
                level = float(sigma) if sigma is not None else 0.05 * float(clean.std())
                noise = gaussian_noise(level, bool(config["noise"]["infer"]))
            measurement = Measurement(operator, noise, noise.sample(clean, keyed_stream(seed, 1)))
            source = "simulated from a truth with noise that is ours"
            return [self._chosen(self._problem(measurement, tuple(truth.shape), truth, source), config)]
        y = read_array(Path(path))
        if noise is None:
            if sigma is None:
                raise InputError("the noise level of the data is not known; give noise.sigma=")
            noise = gaussian_noise(float(sigma), bool(config["noise"]["infer"]))
        operator = as_operator(build(config["operator"], shape))
        event = shape or operator.event_shape
        if event is None and isinstance(operator, LinearOperator):
            event = tuple(operator.adjoint(y[None]).shape[1:])
        if event is None:
            raise InputError("the shape of x is not known; give domain.shape=[channels,y,x]")
        measured = operator(torch.zeros(1, *event)).shape[1:]
        if tuple(measured) != tuple(y.shape):
            raise InputError(
                f"the operator makes data of shape {tuple(measured)} from x of {tuple(event)} and "
                f"{Path(path).name} has {tuple(y.shape)}"
            )
        measurement = Measurement(operator, noise, y)
        return [self._chosen(self._problem(measurement, tuple(event), None, "measured"), config)]

    def _chosen(self, problem: Problem, config: Config) -> Problem:
        """The problem, or one whose measurements are still to be chosen where the operator has a budget."""
        settings = config["operator"]
        if settings.get("budget") is None:
            return problem
        measurement = problem.measurement
        if not isinstance(measurement.noise, GaussianNoise):
            raise InputError("choosing measurements needs Gaussian noise; use noise=auto or gaussian")
        operator, y = measurement.operator, measurement.y
        groups = candidates_of(operator)
        count = int(groups.max()) + 1
        size = start_size(settings, max(2, round(0.04 * count)))
        plan = Plan.of(
            settings, count, [int((i + 0.5) * count / size) for i in range(size)], int(config["seed"])
        )
        sizes = torch.bincount(groups.flatten().clamp_min(0))
        if plan.exchange is not None and int(sizes.min()) != int(sizes.max()):
            raise InputError("an instrument answers candidates of one size only, and this operator's differ")
        what = f"values of candidates, in the order of the data of shape {tuple(y.shape)}"
        instrument = plan.instrument(what, (int(sizes[0]),), "float32")
        asked = y.clone() if instrument is None else torch.zeros_like(y)

        def source(chosen: Sequence[int]) -> Tensor:
            if instrument is not None:
                for one, row in zip(chosen, instrument.ask(chosen), strict=True):
                    asked[groups == one] = torch.from_numpy(row).to(asked)
            return asked

        def part(order: Sequence[int]) -> Problem:
            operator_of, data = select(operator, order, asked)
            return replace(problem, measurement=Measurement(operator_of, measurement.noise, data))

        def finish(acquisition: Acquisition) -> Problem:
            if instrument is not None:
                instrument.close()
            return part(acquisition.order)

        pending = Pending(operator, measurement.noise.sigma, source, plan, finish)
        return replace(part(plan.initial), pending=pending)

    def _problem(
        self,
        measurement: Measurement,
        shape: tuple[int, ...],
        truth: Tensor | None,
        source: str,
    ) -> Problem:
        notes = {"data": source, "noise": str(measurement.noise), "event shape": str(shape)}
        return Problem("array", measurement, shape, truth, notes)

    def adapt_prior(self, prior: Prior, problem: Problem) -> Prior:
        return prior

    def baselines(self, problem: Problem, tick: Tick) -> Estimates:
        operator = problem.measurement.operator
        if not isinstance(operator, LinearOperator):
            return {}
        return {"adjoint": operator.adjoint(problem.measurement.y[None])[0]}

    def summarise(self, problem: Problem, posterior: Posterior, baselines: Estimates) -> Summary:
        truth: Tensor | None = problem.context
        if truth is None:
            return Summary()
        rows = {**baselines, "one sample": posterior.samples[0], "posterior mean": posterior.mean}
        peak = float(truth.abs().max())
        table = {
            name: {
                "psnr": float(10 * torch.log10(peak**2 / (value - truth).square().mean())),
                "rmse": float((value - truth).square().mean().sqrt()),
            }
            for name, value in rows.items()
        }
        facts: dict[str, float] = {}
        count = len(posterior.samples)
        if count > 1:
            z = (truth - posterior.mean).abs() / (posterior.std * (1 + 1 / count) ** 0.5)
            facts["within_1_std"] = float((z < 1).float().mean())
            facts["within_2_std"] = float((z < 2).float().mean())
        return Summary(table, facts, "PSNR with the largest |truth| as range, over all components")

    def write(self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> None:
        arrays = {"mean": posterior.mean, "samples": posterior.samples}
        if len(posterior.samples) > 1:
            arrays["std"] = posterior.std
        for name, value in arrays.items():
            part = folder / f".{name}.npy"
            with part.open("wb") as file:
                np.save(file, value.numpy())
            os.replace(part, folder / f"{name}.npy")

    def figures(
        self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path
    ) -> list[Figure]:
        from matplotlib.figure import Figure as Canvas

        chosen = [] if problem.acquisition is None else [acquisition_figure(problem, folder, "candidates")]
        if len(problem.shape) < 2:
            return chosen
        panels = {"mean": posterior.mean, "sample": posterior.samples[0], **baselines}
        if len(posterior.samples) > 1:
            panels["std"] = posterior.std
        if problem.context is not None:
            panels["truth"] = problem.context
        page = Canvas(figsize=(2.6 * len(panels), 2.9), layout="constrained")
        for axis, (name, value) in zip(
            np.atleast_1d(page.subplots(1, len(panels))).flat, panels.items(), strict=True
        ):
            axis.imshow(value.reshape(-1, *value.shape[-2:])[0], cmap="gray")
            axis.set_title(name, fontsize=10)
            axis.set_axis_off()
        path = folder / f"{problem.id}.png"
        page.savefig(path, dpi=110, metadata={"Software": None})
        return [Figure("Result", path, "First channel; each panel on its own window."), *chosen]


def bundled_truth(shape: tuple[int, ...], seed: int) -> Float[Tensor, "*shape"]:
    """A draw from the default Gaussian field, so that an operator can be tried without data."""
    from invdiff_array.priors import GaussianField

    drawn = GaussianField(0.25, 4.0, 1.5).at(shape).sample(1, keyed_stream(seed, 0))[0]
    return drawn.reshape(shape).float()
