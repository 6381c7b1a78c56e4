"""Solve a configured run: read, refuse, sample, compare, write, report.

Samples are drawn in batches of `run.batch`; every finished batch is a file, and
a run that was killed continues after the last one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from invdiff.domain import Domain, Estimates, Problem, Summary
from invdiff.errors import InputError
from invdiff.measurement.noise import UnknownGaussianNoise
from invdiff.posterior import Posterior
from invdiff.prior.compose import parts_of
from invdiff.prior.counted import counted
from invdiff.prior.prior import Prior, PriorCard
from invdiff.registry import load, missing_extra
from invdiff.run.acquisition import measured
from invdiff.run.directory import (
    Log,
    full_disk_is_an_input_error,
    new_directory,
    require_space,
    write_json,
    write_text,
)
from invdiff.run.filters import filter_facts, filter_warnings
from invdiff.run.fit import check_prior, check_scale
from invdiff.run.provenance import measurement_digest, provenance
from invdiff.run.start import started
from invdiff.sampler.design import entropy_of_samples
from invdiff.sampler.loop import Sampler, draw, prepared, require_prior, require_supported, whole_groups

Report = Callable[[str, int, int], None]
"""Called with what is being done, units done and units in all."""


@dataclass(frozen=True)
class Job:
    """A checked run: everything read and refused, nothing written yet.

    `belief` is the sampler with which measurements are chosen, where that is asked for.
    """

    config: Mapping[str, Any]
    domain: Domain
    problems: list[Problem]
    priors: list[Prior]
    sampler: Sampler
    belief: Sampler
    device: torch.device
    warnings: tuple[str, ...] = ()


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where it is."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; expected auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for and this torch sees no CUDA device; use cpu")
    return device


def make_prior(settings: Mapping[str, Any]) -> Prior:
    """The prior of a configuration: a denoiser, or a masked prior of tokens."""
    build = load("priors", str(settings["name"]))
    try:
        prior = build(settings)
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None
    if not isinstance(prior, Prior):
        raise InputError(f"prior {settings['name']!r} does not return a Prior")
    return prior


def make_sampler(settings: Mapping[str, Any], card: PriorCard) -> Sampler:
    """The sampler of a configuration."""
    sampler: Sampler = load("samplers", str(settings["name"]))(settings, card)
    return sampler


def plan(config: Mapping[str, Any]) -> Job:
    """Read the input and refuse whatever is wrong, before any work.

    Raises:
        InputError: one sentence that says what was found, expected, and the mend.
    """
    if int(config["samples"]) < 1:
        raise InputError(f"samples is {config['samples']}; at least one is needed")
    if int(config["run"]["batch"]) < 1:
        raise InputError(f"run.batch is {config['run']['batch']}; at least one is needed")
    device = choose_device(str(config["run"]["device"]))
    domain: Domain = load("domains", str(config["domain"]["name"]))()
    prior = make_prior(config["prior"])
    begun = started(config, make_sampler(config["sampler"], prior.card), prior)
    sampler = begun.sampler
    require_prior(sampler, prior)
    if begun.fixed and int(config["samples"]) > 1:
        config = {**config, "samples": 1}  # every sample would be the same image
    try:
        problems = domain.problems(config)
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None
    for problem in problems:
        require_supported(sampler, problem.measurement, problem.shape)
    unknown = any(isinstance(p.measurement.noise, UnknownGaussianNoise) for p in problems)
    if unknown and (sampler.name != "split_langevin" or int(config["run"]["batch"]) != 1):
        raise InputError(
            "noise.infer=true needs sampler=split_langevin and run.batch=1; "
            f"found {sampler.name} and {config['run']['batch']}"
        )
    priors = [domain.adapt_prior(prior, problem) for problem in problems]
    for adapted, problem in zip(priors, problems, strict=True):
        check_prior(adapted, problem)
        if problem.pending is None or bool(problem.measurement.y.any()):  # else nothing is measured yet
            check_scale(adapted, problem)
    problems = [replace(problem, notes={**problem.notes, **begun.notes}) for problem in problems]
    belief = belief_sampler(config, prior.card)
    warnings = (*begun.warnings, *unweighted(prior, sampler))
    return Job(config, domain, problems, priors, sampler, belief, device, warnings)


def unweighted(prior: Prior, sampler: Sampler) -> tuple[str, ...]:
    """That a composition is sampled without the weights that make its law."""
    if not parts_of(prior) or getattr(sampler, "composes", False):
        return ()
    return (
        f"The prior is a composition ({prior.card.name}) and sampler {sampler.name!r} adds its parts' scores "
        "up without the weights that correct them: a heuristic, whatever the sampler is otherwise.",
    )


def belief_sampler(config: Mapping[str, Any], card: PriorCard) -> Sampler:
    """The run's sampler with the steps that `operator.design.steps` gives the belief."""
    settings, steps = dict(config["sampler"]), (config["operator"].get("design") or {}).get("steps")
    if steps is not None and "steps" in settings:
        settings["steps"] = int(steps)
    return make_sampler(settings, card)


def begin(job: Job) -> Path:
    """Make the run directory of a checked job."""
    from omegaconf import OmegaConf

    config = job.config
    shape_bytes = sum(4 * int(torch.Size(p.shape).numel()) for p in job.problems)
    needed = shape_bytes * (4 * int(config["samples"]) + 16) + 20_000_000
    folder = Path(config["run"]["folder"])
    out = config["run"]["out"]
    require_space(Path(out) if out else folder, needed)
    if out:
        run = Path(out)
        if run.exists() and any(run.iterdir()):
            raise InputError(f"{run} exists and is not empty; choose another --out, or resume it")
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the run directory {run}: {error.strerror}") from None
    else:
        parts = (config["domain"]["name"], config["operator"]["name"], config["sampler"]["name"])
        run = new_directory(folder, "-".join(str(part) for part in parts))
    with full_disk_is_an_input_error():
        write_text(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))
        write_json(run / "provenance.json", provenance(job.config, job.problems, job.device))
        write_json(run / "status.json", {"status": "running"})
    return run


def execute(job: Job, run: Path, report: Report = lambda what, done, total: None) -> dict[str, Any]:
    """Do what is not yet done of a run and finish it; returns its metrics.

    An interruption leaves `status.json` at interrupted and every finished batch
    on disk.
    """
    write_json(run / "status.json", {"status": "running"})
    log = Log(run / "log.jsonl")
    log.write("start", items=len(job.problems))
    try:
        with full_disk_is_an_input_error():
            results = _items(job, run, log, report)
            metrics = _finish(job, run, results)
    except BaseException as error:
        log.write("stop", reason=type(error).__name__)
        write_json(run / "status.json", {"status": "interrupted", "reason": type(error).__name__})
        raise
    log.write("complete")
    write_json(run / "status.json", {"status": "complete"})
    return metrics


@dataclass(frozen=True)
class ItemResult:
    """What the report needs of a finished item."""

    problem: Problem
    posterior: Posterior
    baselines: Estimates
    summary: Summary
    seconds: dict[str, float]
    network_calls: int
    shared_calls: int


def _items(job: Job, run: Path, log: Log, report: Report) -> list[ItemResult]:
    samples = int(job.config["samples"])
    batch = whole_groups(int(job.config["run"]["batch"]), job.sampler)
    use_baselines = bool(job.config["run"]["baselines"])
    names = job.domain.baseline_names if use_baselines else ()
    per_item = samples * job.sampler.steps
    total = len(job.problems) * per_item
    results = []
    for index, (given, prior) in enumerate(zip(job.problems, job.priors, strict=True)):
        problem = given
        folder = run / "items" / problem.id
        folder.mkdir(parents=True, exist_ok=True)
        counter = counted(prior)
        began = time.perf_counter()
        report("starting", index * per_item, total)

        def measuring(done: int, steps: int, base: int = index * per_item) -> None:
            report(f"measuring, turn {done} of {steps}", base, total)

        problem = measured(problem, counter, job.belief, folder, index, job.device, measuring)
        sampler = prepared(job.sampler, counter, problem.measurement, problem.shape, job.device)
        shared_calls = counter.calls
        parts: list[Posterior] = []
        for first in range(0, samples, batch):
            numbers = range(first, min(first + batch, samples))
            path = folder / f"samples_{first:04d}.safetensors"
            base = index * per_item + first * job.sampler.steps
            if not path.exists():

                def progress(done: int, steps: int, base: int = base, count: int = len(numbers)) -> None:
                    report("sampling", base + done * count * job.sampler.steps // steps, total)

                before = counter.calls
                drawn = draw(
                    sampler,
                    counter,
                    problem.measurement,
                    problem.shape,
                    particles=numbers,
                    seed=int(job.config["seed"]),
                    item=index,
                    device=job.device,
                    progress=progress,
                )
                x = drawn.x.cpu()
                with torch.no_grad():
                    chi2 = problem.measurement.chi2(x)
                filters = [asdict(one) for one in drawn.filters]
                info = {"network_calls": counter.calls - before, "filters": filters}
                Posterior(x, chi2, job.sampler.claim, info).save(path)
                log.write("samples", item=problem.id, first=first, count=len(numbers))
            parts.append(Posterior.load(path))
        sampling = time.perf_counter() - began
        report("comparing", (index + 1) * per_item, total)
        calls = sum(int(part.info["network_calls"]) for part in parts)
        posterior = Posterior(
            torch.cat([part.samples for part in parts]),
            torch.cat([part.chi2 for part in parts]),
            job.sampler.claim,
            {
                "sampler": job.sampler.name,
                "prior": prior.card.name,
                "filters": [one for part in parts for one in part.info["filters"]],
            },
        )
        began = time.perf_counter()
        with torch.no_grad():
            baselines = job.domain.baselines(problem, lambda: None) if names else {}
        compared = time.perf_counter() - began
        summary = job.domain.summarise(problem, posterior, baselines)
        job.domain.write(problem, posterior, baselines, folder)
        seconds = {"sampling": round(sampling, 2), "baselines": round(compared, 2)}
        results.append(ItemResult(problem, posterior, baselines, summary, seconds, calls, shared_calls))
    return results


def inferred_level(result: ItemResult) -> dict[str, str]:
    """Where the noise level was inferred: its mean and range over the samples, from their residuals."""
    noise = result.problem.measurement.noise
    if not isinstance(noise, UnknownGaussianNoise):
        return {}
    levels = (noise.sigma * result.posterior.chi2.sqrt()).tolist()
    text = f"{sum(levels) / len(levels):.4g} ({min(levels):.4g} to {max(levels):.4g})"
    return {"inferred sigma_y in prior units": f"{text}; started at {noise.sigma:.4g}"}


def entropy_fact(result: ItemResult) -> dict[str, float]:
    """Where measurements were chosen: what the samples leave open."""
    if result.problem.acquisition is None or len(result.posterior.samples) < 2:
        return {}
    return {"posterior entropy (nats a component)": entropy_of_samples(result.posterior.samples)}


def _finish(job: Job, run: Path, results: list[ItemResult]) -> dict[str, Any]:
    from invdiff.run.report import write_report

    figures = run / "figures"
    figures.mkdir(exist_ok=True)
    metrics: dict[str, Any] = {}
    drawn = []
    for result in results:
        residual = [round(float(value), 4) for value in result.posterior.chi2]
        mean = result.posterior.mean[None]
        with torch.no_grad():
            chi2_mean = float(result.problem.measurement.chi2(mean)[0])
        metrics[result.problem.id] = {
            "table": result.summary.table,
            "facts": {**result.summary.facts, **filter_facts(result.posterior), **entropy_fact(result)},
            "convention": result.summary.convention,
            "warnings": [*job.warnings, *result.summary.warnings, *filter_warnings(result.posterior)],
            "chi2_per_sample": residual,
            "chi2_of_mean": round(chi2_mean, 4),
            "notes": {**result.problem.notes, **inferred_level(result)},
            "sampler": job.sampler.name,
            "claim": job.sampler.claim,
            "network_calls_shared": result.shared_calls,
            "network_calls_per_sample": result.network_calls / len(result.posterior.samples),
        }
        if result.summary.answers:
            calls = (result.network_calls + result.shared_calls) / result.summary.answers
            metrics[result.problem.id]["network_calls_per_answer"] = round(calls, 1)
            result.seconds["sampling_per_answer"] = round(
                result.seconds["sampling"] / result.summary.answers, 4
            )
        drawn.append(job.domain.figures(result.problem, result.posterior, result.baselines, figures))
    write_json(run / "metrics.json", metrics)
    timing = {result.problem.id: result.seconds for result in results}
    write_json(run / "timing.json", timing)
    write_report(run, job.config, metrics, timing, drawn, job.priors[0].card)
    for result in results:
        for path in (run / "items" / result.problem.id).glob("samples_*.safetensors"):
            path.unlink()
    return metrics


def resume(run: Path, report: Report = lambda what, done, total: None) -> dict[str, Any]:
    """Continue a run from its directory.

    Raises:
        InputError: where it is no run, is complete, or its input has changed.
    """
    from omegaconf import OmegaConf

    if not (run / "config.yaml").is_file() or not (run / "provenance.json").is_file():
        raise InputError(f"{run} is not a run directory (config.yaml and provenance.json expected)")
    status = json.loads((run / "status.json").read_text()) if (run / "status.json").exists() else {}
    if status.get("status") == "complete":
        raise InputError(f"{run} is complete; see {run / 'report.html'}")
    loaded = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=True)
    assert isinstance(loaded, dict)
    config = {str(key): value for key, value in loaded.items()}
    job = plan(config)
    before = json.loads((run / "provenance.json").read_text())["measurement"]
    if before != [measurement_digest(problem) for problem in job.problems]:
        raise InputError(f"the input of {run} has changed since it was started; solve it anew")
    return execute(job, run, report)
