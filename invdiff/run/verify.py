"""`invdiff verify`: the table, the JSON and the figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from invdiff import __version__
from invdiff.benchmark.verify import Row, verify
from invdiff.run.directory import write_json, write_text

HEADS = ("problem", "sampler", "claim", "verdict", "distance / floor", "log Z error", "min ESS", "calls", "s")


def run_verify(
    samplers: list[str], problems: list[str], full: bool, seed: int, out: Path, as_json: bool
) -> bool:
    """Run, print and write; returns whether every verdict agrees with its claim."""
    import torch
    from rich.console import Console

    console = Console(stderr=True)
    command = " ".join(
        [
            "invdiff verify",
            *(f"--sampler {name}" for name in samplers),
            *(f"--problem {name}" for name in problems),
            *(["--full"] if full else []),
            *([f"--seed {seed}"] if seed else []),
        ]
    )
    content: dict[str, Any] = {
        "status": "running",
        "command": command,
        "invdiff": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": [],
    }

    def tell(row: Row) -> None:
        out.mkdir(parents=True, exist_ok=True)
        console.print(
            f"{row.problem}: {row.sampler} {row.verdict} ({row.seconds:.1f} s)", style="dim", highlight=False
        )
        content["rows"].append(row.as_dict())
        write_json(out / "verify.json", content)

    rows = verify(samplers, problems, full, seed, tell)
    content["status"] = "complete"
    write_json(out / "verify.json", content)
    note = f"`{command}`; invdiff {__version__}, torch {torch.__version__}, CPU seconds of one process"
    write_text(out / "verify.md", markdown(rows) + f"\n{note}\n")
    figure(rows, out / "verify.png")
    agrees = all(row.agrees for row in rows)
    if as_json:
        print(json.dumps(content))
    else:
        print_table(rows)
        wrong = [row for row in rows if not row.agrees]
        for row in wrong:
            print(f"DISAGREES with its claim ({row.claim}): {row.sampler} on {row.problem}: {row.note}")
        verdict = "every verdict agrees with its claim" if agrees else f"{len(wrong)} disagree"
        print(f"{verdict}; see {out}/verify.md and verify.png")
    return agrees


def cells(row: Row) -> list[str]:
    """One row as text."""
    noted = row.note and (row.verdict != "exact" or math.isnan(row.distance))
    verdict = f"{row.verdict}: {row.note}" if noted else row.verdict
    return [
        row.problem,
        row.sampler,
        row.claim,
        verdict,
        "" if math.isnan(row.distance) else f"{row.distance:.3g} / {row.floor:.3g}",
        "" if row.log_evidence_error is None else f"{row.log_evidence_error:+.2f}",
        "" if row.ess is None else f"{row.ess:.2g}",
        f"{row.calls:.0f}" + (f" + {row.derivatives:.0f} VJP" if row.derivatives else ""),
        f"{row.seconds:.1f}",
    ]


def applicable(rows: list[Row]) -> list[Row]:
    """The rows of samplers that run on the problem."""
    return [row for row in rows if row.verdict != "not applicable"]


def left_out(rows: list[Row]) -> list[str]:
    """A line for each reason why a sampler does not run on some problems."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.verdict == "not applicable":
            reasons.setdefault((row.sampler, row.note), []).append(row.problem)
    return [f"{name} on {', '.join(problems)}: {note}" for (name, note), problems in reasons.items()]


def summary(rows: list[Row]) -> str:
    """How many problems of a family every sampler is exact on, of those that it runs on, as Markdown."""
    families = list(dict.fromkeys(row.problem.split()[0].rstrip(",") for row in applicable(rows)))
    lines = ["| exact on | " + " | ".join(families) + " |", "|" + "---|" * (len(families) + 1)]
    for name in dict.fromkeys(row.sampler for row in applicable(rows)):
        cells = []
        for family in families:
            mine = [
                row
                for row in applicable(rows)
                if row.sampler == name and row.problem.split()[0].rstrip(",") == family
            ]
            good, broken = sum(row.verdict == "exact" for row in mine), sum(not row.agrees for row in mine)
            cells.append(
                (f"{good} of {len(mine)}" + (f", **{broken} break its claim**" * bool(broken)))
                if mine
                else ""
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def markdown(rows: list[Row]) -> str:
    """The summary and the table as Markdown, and below it what does not apply."""
    lines = [summary(rows), "| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in applicable(rows)]
    if others := left_out(rows):
        lines += ["", "Not applicable:", "", *(f"- {line}" for line in others)]
    return "\n".join(lines) + "\n"


def print_table(rows: list[Row]) -> None:
    """The table on the terminal, a block a problem; the notes, of any length, come last in a line."""
    form = "  {:34s} {:11s} {:9s} {:>10s} {:>8s} {:>7s} {:>10s}  {}"
    for problem in dict.fromkeys(row.problem for row in applicable(rows)):
        print(f"\n{problem}")
        print(form.format("sampler", "claim", "verdict", "dist/floor", "log Z", "ESS", "calls", ""))
        for row in (row for row in applicable(rows) if row.problem == problem):
            _, name, claim, _, _, evidence, ess, calls, _ = cells(row)
            ratio = "" if math.isnan(row.distance) else f"{row.distance / row.floor:.2f}"
            calls = calls.replace(" VJP", "v").replace(" ", "")
            note = "" if row.verdict == "exact" and not math.isnan(row.distance) else row.note
            print(form.format(name, claim, row.verdict, ratio, evidence, ess, calls, note).rstrip())
    names = dict.fromkeys(row.sampler for row in rows if row.verdict == "not applicable")
    if len(names) == 1:
        print("\n" + "\n".join(f"not applicable: {line}" for line in left_out(rows)))
    elif names:
        print(f"\nnot applicable to some of these problems: {', '.join(names)} (verify.md says why)")
    print()


def figure(rows: list[Row], path: Path) -> None:
    """Distance over floor by sampler, best first, with its network calls; one panel a problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    shown = [row for row in rows if math.isfinite(row.distance) and row.sampler != "(exact draws)"]
    problems = list(dict.fromkeys(row.problem for row in shown))
    if not problems:
        return
    columns = min(4, len(problems))
    lines = -(-len(problems) // columns)
    most = max(sum(row.problem == problem for row in shown) for problem in problems)
    picture, axes = plt.subplots(
        lines,
        columns,
        figsize=(5.0 * columns, (0.24 * most + 0.9) * lines),
        squeeze=False,
        layout="constrained",
    )
    shades = {"exact": "#1b7837", "biased": "#e08214", "fails": "#b2182b"}
    for axis, problem in zip(axes.flat, problems, strict=False):
        mine = sorted((r for r in shown if r.problem == problem), key=lambda r: -r.distance / r.floor)
        for height, row in enumerate(mine):
            ratio = row.distance / row.floor
            axis.plot(ratio, height, "o", color=shades[row.verdict])
            calls = f"{row.calls:.0f}" + (f" + {row.derivatives:.0f}" if row.derivatives else "")
            axis.annotate(
                calls, (ratio, height), xytext=(7, -3), textcoords="offset points", fontsize=7, color="0.35"
            )
        axis.set_yticks(range(len(mine)), [row.sampler for row in mine], fontsize=8)
        axis.axvline(1, color="0.4", linewidth=0.8, linestyle="--")
        axis.set(xscale="log", title=problem)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.18)
    for axis in list(axes.flat)[len(problems) :]:
        axis.set_visible(False)
    picture.supxlabel(
        "distance to the exact posterior in Monte Carlo floors "
        "(green: exact, orange: biased, red: breaks its claim; numbers: network calls + VJPs a sample)",
        fontsize=9,
    )
    picture.savefig(path, dpi=100)
    plt.close(picture)
