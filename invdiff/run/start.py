"""The `start` group of a configuration: where the reverse process begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from invdiff.errors import InputError
from invdiff.prior.prior import Prior
from invdiff.registry import plugins
from invdiff.sampler.boundary import Boundary, FixedStart, prior_digest
from invdiff.sampler.loop import DiffusionSampler, Sampler
from invdiff.sampler.noise_search import Kind, NoiseSearch

STARTS = ("prior", "fixed", "search", "boundary")


@dataclass(frozen=True)
class Started:
    """A sampler with its start.

    Attributes:
        sampler: deterministic where the start is fixed.
        fixed: whether every sample would be the same image.
        notes: for the report.
        warnings: sentences that a reader must not miss.
    """

    sampler: Sampler
    fixed: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def deterministic(sampler: Sampler) -> DiffusionSampler:
    """The sampler without noise in its steps, of the same order.

    Raises:
        InputError: for one that is not the reverse loop.
    """
    if not isinstance(sampler, DiffusionSampler):
        raise InputError(
            f"a fixed start needs a sampler of the reverse loop and {sampler.name} is none; use proximal, "
            "pigdm, dds, moment_matching or conditional"
        )
    return replace(sampler, integrator=replace(sampler.integrator, eta=0.0), end="mean")


def bundled_boundary(prior: str) -> Path:
    """The boundary condition that ships with a prior.

    Raises:
        InputError: where none does.
    """
    import importlib

    plugin = plugins("priors").get(prior)
    folder = None
    if plugin is not None:
        module = importlib.import_module(plugin.target.partition(":")[0].partition(".")[0])
        folder = Path(module.__path__[0]) / "weights"
    path = None if folder is None else folder / f"{prior}.boundary.safetensors"
    if path is None or not path.is_file():
        raise InputError(
            f"prior {prior!r} has no bundled boundary condition; find one with `invdiff boundary find` and "
            "give start.file="
        )
    return path


def started(config: Mapping[str, Any], sampler: Sampler, prior: Prior) -> Started:
    """The sampler with the start that the configuration asks for.

    Raises:
        InputError: for an unknown start, one that does not go with the sampler, or a boundary condition of
            another prior or other settings.
    """
    settings = config.get("start") or {"name": "prior"}
    name = str(settings["name"])
    if name not in STARTS:
        raise InputError(f"unknown start {name!r}; expected one of {', '.join(STARTS)}")
    if name == "prior":
        return Started(sampler)
    plain = deterministic(sampler)
    if name == "search":
        kinds: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
        if (kind := str(settings["kind"])) not in kinds:
            raise InputError(f"start.kind is {kind!r}; expected one of {', '.join(kinds)}")
        count, rounds = int(settings["candidates"]), int(settings["rounds"])
        words = f"{kind} search for each image, {count} candidates, by log p(y | x)"
        return Started(NoiseSearch(plain, kinds[kind], count, rounds), notes={"start": words})
    one = "One image from a fixed start: its spread and its evidence are not known."
    if name == "fixed":
        start = FixedStart(0, int(settings["key"]), float(settings["scale"]))
        words = f"fixed, key {start.key}, scale {start.scale:g}" if start.scale else "the mean of the prior"
        return Started(replace(plain, start=start), True, {"start": words}, (one,))
    given = settings.get("file")
    path = Path(str(given)) if given else bundled_boundary(str(config["prior"]["name"]))
    boundary = Boundary.load(path)
    warnings = boundary.check(prior_digest(prior), dict(config["sampler"]), dict(config["operator"]))
    words = (
        f"boundary condition {path.name}, found by {boundary.criterion} on {len(boundary.references)} images"
    )
    return Started(replace(plain, start=boundary.start), True, {"start": words}, (one, *warnings))
