"""The command line. Flags are sugar for configuration overrides: `--operator undersample` is
`operator=undersample`; both mix in any order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from invdiff.errors import InputError

T = TypeVar("T", int, float)

app = typer.Typer(
    name="invdiff",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help=(
        "Posterior samples for inverse problems: any diffusion prior, any forward model.\n\n"
        "Start with `invdiff solve --domain mri --operator undersample`, which solves a bundled "
        "example and writes a report; then give it your own file with --input."
    ),
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings as key=value, such as sampler=dds sampler.steps=50.", show_default=False),
]


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Bad input: its sentence on stderr and exit code 2. A sampler that diverges: 1. Interruption: 130."""
    try:
        yield
    except InputError as error:
        typer.echo(f"invdiff: {error}", err=True)
        raise typer.Exit(2) from None
    except FloatingPointError as error:
        typer.echo(f"invdiff: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(
            "invdiff: interrupted; continue a solve with `invdiff resume RUN`, a training with its command",
            err=True,
        )
        raise typer.Exit(130) from None


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    if quiet:
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("starting", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield report


PATHS = ("input.path", "domain.moving", "run.out")  # quoted, since they may hold anything


def _gather(overrides: list[str] | None, **flags: object) -> list[str]:
    given = list(overrides or [])
    for key, value in flags.items():
        if value is None:
            continue
        path = key.replace("__", ".")
        shown = json.dumps(str(value)) if path in PATHS else str(value)
        entry = f"{path}={shown}"
        for other in given:
            name, _, old = other.partition("=")
            if name == path and old.strip("\"'") != str(value):
                raise InputError(f"{path} is given twice: {value} by a flag and {old!r}")
        given = [other for other in given if other.partition("=")[0] != path]
        given.append(entry)
    return given


def _sweep(overrides: list[str]) -> list[list[str]]:
    """Every combination of comma-separated values (`sampler=dps,dds`)."""
    runs: list[list[str]] = [[]]
    for override in overrides:
        key, _, value = override.partition("=")
        values = [value] if value[:1] in "[\"'{" else value.split(",")
        runs = [[*run, f"{key}={one}"] for run in runs for one in values]
    return runs


@app.command()
def solve(
    overrides: Overrides = None,
    domain: Annotated[str | None, typer.Option(help="Domain pack, such as mri.")] = None,
    operator: Annotated[str | None, typer.Option(help="Forward model, such as undersample.")] = None,
    prior: Annotated[str | None, typer.Option(help="Prior, such as brain_mr.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler, such as split_langevin or dds.")] = None,
    input: Annotated[Path | None, typer.Option(help="Your data; the bundled example without it.")] = None,
    moving: Annotated[
        Path | None, typer.Option(help="Of a registration: the image that is deformed onto --input.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Posterior samples to draw.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed: the same seed gives the same bytes.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/<time>_... without it.")] = None,
    baselines: Annotated[
        bool | None, typer.Option("--baselines/--no-baselines", help="Classical methods beside the result.")
    ] = None,
    cfg: Annotated[bool, typer.Option("--cfg", help="Print the resolved configuration and stop.")] = False,
    multirun: Annotated[bool, typer.Option("-m", help="Sweep over comma-separated values.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Sample p(x | y): a reconstruction with its uncertainty, and a report."""
    with _one_sentence():
        given = _gather(
            overrides,
            domain=domain,
            operator=operator,
            prior=prior,
            sampler=sampler,
            input__path=input,
            domain__moving=moving,
            samples=samples,
            seed=seed,
            run__device=device,
            run__out=out,
            run__baselines=None if baselines is None else str(baselines).lower(),
        )
        from invdiff.config import compose

        sweeps = _sweep(given) if multirun else [given]
        configs = [compose(run) for run in sweeps]
        if cfg:
            from omegaconf import OmegaConf

            for config in configs:
                typer.echo(OmegaConf.to_yaml(OmegaConf.create(config)))
            return
        if multirun and out is not None and len(configs) > 1:
            raise InputError("a sweep makes several runs; leave --out away or set run.folder=")
        from invdiff.run.solve import begin, execute, plan

        jobs = [plan(config) for config in configs]
        for job in jobs:
            run = begin(job)
            typer.echo(f"run directory: {run}", err=True)
            with _progress(quiet=as_json or not sys.stderr.isatty()) as report:
                metrics = execute(job, run, report)
            _print_result(run, metrics, as_json)


def _print_result(run: Path, metrics: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"run": str(run), "metrics": metrics}, default=str))
        return
    from rich.console import Console
    from rich.table import Table

    from invdiff.run.report import CLAIMS, calibration_sentence

    console = Console()
    for name, item in metrics.items():
        if item["table"]:
            table = Table(title=name, title_justify="left")
            columns = list(next(iter(item["table"].values())))
            table.add_column("method")
            for column in columns:
                table.add_column(column, justify="right")
            for method, values in item["table"].items():
                table.add_row(method, *(f"{values[column]:.4g}" for column in columns))
            console.print(table)
        residual = item["chi2_per_sample"]
        console.print(
            f"{name}: chi2 per measured component {sum(residual) / len(residual):.3f} a sample; "
            f"{CLAIMS[item['claim']]}",
            highlight=False,
        )
        for text in (*item["warnings"], calibration_sentence(item)):
            if text:
                console.print(text, highlight=False)
    typer.echo(f"report: {run / 'report.html'}")


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="Directory of an interrupted run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Continue a run that was killed; the result has the bytes of an uninterrupted one."""
    with _one_sentence():
        from invdiff.run.solve import resume as continue_run

        with _progress(quiet=as_json or not sys.stderr.isatty()) as report:
            metrics = continue_run(run, report)
        _print_result(run, metrics, as_json)


@app.command()
def sample(
    overrides: Overrides = None,
    prior: Annotated[str, typer.Option(help="Prior to sample.")] = "brain_mr",
    shape: Annotated[str, typer.Option(help="Event shape with channels, such as 1,128,128.")] = "1,128,128",
    samples: Annotated[int, typer.Option(help="How many.")] = 4,
    steps: Annotated[int, typer.Option(help="Network calls a sample.")] = 64,
    sigma_max: Annotated[float, typer.Option(help="First noise level.")] = 40.0,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    input: Annotated[
        Path | None, typer.Option(help="Of a generator: the image that it makes variants of.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Files OUT.npy and OUT.png; of a generator a folder.")] = Path(
        "samples"
    ),
) -> None:
    """Draw from a prior alone: what does it believe before any data?"""
    with _one_sentence():
        from invdiff.run.prior_samples import write_prior_samples

        parts = tuple(int(part) for part in shape.split(",") if part.strip().isdigit())
        if not parts or len(parts) != len(shape.split(",")):
            raise InputError(f"--shape is {shape!r}; expected numbers such as 1,128,128")
        given = _gather(overrides, prior=prior)
        written = write_prior_samples(given, parts, samples, steps, sigma_max, seed, out, input)
        typer.echo(f"wrote {', '.join(str(path) for path in written)}")


@app.command()
def train(
    overrides: Overrides = None,
    config: Annotated[Path | None, typer.Option(help="Training configuration (YAML).")] = None,
) -> None:
    """Train a prior; run the same command again to continue an interrupted training."""
    with _one_sentence():
        from invdiff.run.train import train_from_config

        if config is None:
            raise InputError("give the training configuration: invdiff train --config configs/train/mri.yaml")
        train_from_config(config, list(overrides or []), typer.echo)


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="operator or prior.")],
    name: Annotated[str, typer.Argument(help="Its registered name.")],
    overrides: Overrides = None,
    shape: Annotated[str | None, typer.Option(help="Event shape, such as 2,64,64.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check an operator (adjoint, linearity, scale, gradient, dtype) or a prior (scale, range)."""
    with _one_sentence():
        from invdiff.run.check import run_checks

        parts = tuple(int(part) for part in shape.split(",")) if shape else None
        results = run_checks(target, name, list(overrides or []), parts)
        if as_json:
            typer.echo(json.dumps([{**vars(one), "passed": one.passed} for one in results]))
        else:
            for one in results:
                mark = "ok  " if one.passed else "FAIL"
                note = f"  {one.note}" if one.note else ""
                typer.echo(f"{mark} {one.name:32s} error {one.error:.3g} (limit {one.limit:g}){note}")
        if not all(one.passed for one in results):
            raise typer.Exit(1)


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Every plug-in with the distribution that brought it."""
    with _one_sentence():
        from invdiff.registry import GROUPS, plugins

        found = {group: plugins(group) for group in GROUPS}
        if as_json:
            rows = [
                {
                    "group": p.group,
                    "name": p.name,
                    "target": p.target,
                    "distribution": p.distribution,
                    "version": p.version,
                }
                for group in found.values()
                for p in group.values()
            ]
            typer.echo(json.dumps(rows))
            return
        from invdiff.config import choices, first_comment

        for group, known in found.items():
            typer.echo(group)
            said = choices(group.removesuffix("s"))
            for plugin in sorted(known.values(), key=lambda p: p.name):
                words = first_comment(said[plugin.name]) if plugin.name in said else ""
                where = f"{plugin.distribution} {plugin.version}"
                typer.echo(f"  {plugin.name:22s} {where:16s} {words or plugin.target}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Directory of a complete run.")]) -> None:
    """Print the metrics of a run and where its report is."""
    with _one_sentence():
        path = run / "metrics.json"
        status = run / "status.json"
        if not status.is_file():
            raise InputError(f"{run} is not a run directory")
        state = json.loads(status.read_text()).get("status")
        if state != "complete" or not path.is_file():
            raise InputError(f"{run} is {state}, not complete; continue it with `invdiff resume {run}`")
        _print_result(run, json.loads(path.read_text()), as_json=False)


@app.command()
def verify(
    sampler: Annotated[
        list[str] | None, typer.Option(help="Sampler to verify; repeat for more; all registered without it.")
    ] = None,
    problem: Annotated[
        list[str] | None,
        typer.Option(
            help="lingauss, grf, grf2, gmm25, ksd16, fk, tokens, nonlinear, scaling, evidence; repeatable."
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="More sizes and seeds (an hour, not minutes).")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the samplers.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of verify.json, verify.md, verify.png.")] = Path("verify"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Run samplers on posteriors known in closed form: is each what it claims to be?

    Exit code 0 when every verdict agrees with its sampler's claim, 1 when one does not.
    """
    with _one_sentence():
        from invdiff.run.verify import run_verify

        if not run_verify(sampler or [], problem or [], full, seed, out, as_json):
            raise typer.Exit(1)


@app.command()
def calibrate(
    overrides: Overrides = None,
    problem: Annotated[
        str | None, typer.Option(help="A closed-form problem (lingauss, grf, gmm25) instead of a domain's.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler.")] = None,
    domain: Annotated[str | None, typer.Option(help="Domain pack, such as mri.")] = None,
    operator: Annotated[str | None, typer.Option(help="Forward model, such as undersample.")] = None,
    problems: Annotated[int, typer.Option(help="Simulated truths.")] = 100,
    draws: Annotated[int, typer.Option(help="Posterior samples of each.")] = 99,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of calibrate.json and calibrate.png.")] = Path(
        "calibrate"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Simulate truths from the prior and test whether a sampler's posteriors cover them as they should.

    For any prior and forward model: simulation-based calibration, coverage, TARP. Exit code 1 when the
    posteriors are not calibrated.
    """
    with _one_sentence():
        from invdiff.run.calibrate import run_calibrate

        given = _gather(overrides, domain=domain, operator=operator)
        with _progress(quiet=as_json or not sys.stderr.isatty()) as report:
            agrees = run_calibrate(given, problem, sampler, problems, draws, seed, out, as_json, report)
        if not agrees:
            raise typer.Exit(1)


boundary = typer.Typer(help="Reusable boundary conditions of the diffusion ODE.", no_args_is_help=True)
app.add_typer(boundary, name="boundary")


@boundary.command("find")
def boundary_find(
    overrides: Overrides = None,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of references, or with lr and hr inside, pairs.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="The same for the controls; every other reference without it.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Domain pack, such as superres.")] = None,
    operator: Annotated[str | None, typer.Option(help="Forward model.")] = None,
    prior: Annotated[str | None, typer.Option(help="Prior.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Sampler; it is run without noise in its steps.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the candidates.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of boundary.safetensors, .json, .md and .png.")] = Path(
        "boundary"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Find a start that is good for every image, and compare it with trivial starts on others.

    Besides configuration: candidates=100, criterion=haarpsi, scale=1.0 (or several, scale=0.25,0.5,1).
    """
    with _one_sentence():
        own, rest = _own(overrides, {"candidates": "100", "criterion": "", "scale": "1.0"})
        if reference is None:
            raise InputError("say which references to search on with --reference FOLDER")
        if not reference.is_dir():
            raise InputError(f"there is no folder {reference}")
        given = _gather(rest, domain=domain, operator=operator, prior=prior, sampler=sampler)
        from invdiff.config import compose
        from invdiff.run.boundary import run_find, verdict

        config = compose(given)
        with _progress(quiet=as_json or not sys.stderr.isatty()) as report:
            summary = run_find(
                config,
                reference,
                test,
                _number(own, "candidates", int),
                own["criterion"],
                [_number({"scale": part}, "scale", float) for part in own["scale"].split(",")],
                seed,
                out,
                report,
            )
        if as_json:
            typer.echo(json.dumps(summary))
            return
        typer.echo(verdict(summary))
        typer.echo(f"boundary condition: {out / 'boundary.safetensors'}\ntable: {out / 'boundary.md'}")


def _own(overrides: list[str] | None, known: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The command's own key=value settings, and the rest."""
    own, rest = dict(known), []
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if equals and key in known:
            own[key] = value
        else:
            rest.append(override)
    return own, rest


def _number(own: dict[str, str], key: str, kind: type[T]) -> T:
    try:
        return kind(own[key])
    except ValueError:
        raise InputError(f"{key} is {own[key]!r}; expected a number") from None


@app.command()
def doctor() -> None:
    """What is installed, what is missing, which device and precision will be used."""
    with _one_sentence():
        from invdiff.run.doctor import diagnose

        for line in diagnose():
            typer.echo(line)


def main() -> None:
    """Entry point of the `invdiff` command."""
    app()


if __name__ == "__main__":
    main()
