"""The Python API: what `invdiff solve` does, from objects instead of files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from invdiff.measurement.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.prior.prior import Prior, PriorCard
from invdiff.registry import load
from invdiff.sampler.loop import Progress, Sampler, draw, prepared, whole_groups


def make_sampler(name: str, card: PriorCard, **settings: Any) -> Sampler:
    """A sampler by the name of its shipped configuration, changed by `settings`.

    Raises:
        InputError: for an unknown name or setting.
    """
    from invdiff.config import choices

    path = choices("sampler").get(name)
    shipped: dict[str, Any] = {"name": name}
    if path is not None:
        from omegaconf import OmegaConf

        loaded = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(loaded, dict)
        shipped.update({str(key): value for key, value in loaded.items()})
    sampler: Sampler = load("samplers", str(shipped["name"]))({**shipped, **settings}, card)
    return sampler


def sample(
    prior: Prior,
    measurement: Measurement,
    shape: tuple[int, ...],
    *,
    sampler: str | Sampler = "split_langevin",
    samples: int = 8,
    batch: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    **settings: Any,
) -> Posterior:
    """Draw samples of p(x | y).

    Args:
        prior: what x is.
        measurement: operator, noise and data.
        shape: event shape of x, without batch.
        sampler: a registered name (with `settings` over its shipped ones) or a Sampler.
        samples: how many; sample i is the same for any number and any `batch`.
        batch: samples drawn together; all by default.
        seed: of all random numbers.
        dtype: of x; float64 for closed-form problems.
    """
    made = make_sampler(sampler, prior.card, **settings) if isinstance(sampler, str) else sampler
    made = prepared(made, prior, measurement, shape, device, dtype)
    size = samples if batch is None else whole_groups(batch, made)
    began = time.perf_counter()
    parts, filters = [], []
    for first in range(0, samples, size):
        numbers = range(first, min(first + size, samples))
        drawn = draw(
            made,
            prior,
            measurement,
            shape,
            particles=numbers,
            seed=seed,
            device=device,
            dtype=dtype,
            progress=progress,
        )
        parts.append(drawn.x)
        filters += [asdict(one) for one in drawn.filters]
    x = torch.cat(parts)
    with torch.no_grad():
        chi2 = measurement.to(device).chi2(x)
    info: dict[str, Any] = {"sampler": made.name, "seconds": round(time.perf_counter() - began, 3)}
    if filters:
        info["filters"] = filters
    return Posterior(x, chi2, made.claim, info)


def solve(*overrides: str, out: str | None = None) -> Mapping[str, Any]:
    """Run `invdiff solve` with `key=value` overrides; returns the metrics.

    `solve("sampler=dds", "samples=4", out="runs/mine")`.
    """
    from importlib import import_module

    from invdiff.config import compose

    engine = import_module("invdiff.run.solve")
    job = engine.plan(compose([*overrides, *([f"run.out={out}"] if out else [])]))
    run = engine.begin(job)
    metrics: dict[str, Any] = engine.execute(job, run)
    return {"run": str(run), "metrics": metrics}
