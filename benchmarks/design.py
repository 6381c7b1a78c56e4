"""Which measurements to make: active subsampling beside policies that do not look at the data.

    python benchmarks/design.py heads DATA                  lines of single-coil k-space, of 128
    python benchmarks/design.py chests DATA                 views of 180 over half a turn
    python benchmarks/design.py mr_chests DATA              lines of 256, anatomy that the prior does not know
    python benchmarks/design.py heads DATA --split train    the same on held-out training subjects

Every policy begins with the same measurements, has the same budget in all and is followed by the same
sampler with the same seed; PSNR and SSIM are of the posterior mean, the entropy is the mean over
components of the samples' Gaussian entropy. Intervals: 95 % of the mean over slices and seeds.
`--figure FILE` draws the curves, the order of measuring, and what was gained over the best fixed policy.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
from common import closing, solve

POLICIES = ("variance", "entropy", "random", "equispaced", "variable_density")
TITLES = {
    "heads": "lines measured (of 128)",
    "chests": "views measured (of 180)",
    "mr_chests": "lines measured (of 256)",
}


def acquired(overrides: list[str]) -> dict[str, Any]:
    """One run: metrics of its only item and its acquisition."""
    result = solve(overrides)
    item, record = result["item"], result["acquisition"]
    row = item["table"]["posterior mean"]
    return {
        "psnr": row["psnr"],
        "ssim": row["ssim"],
        "entropy": item["facts"]["posterior entropy (nats a component)"],
        "order": [one for turn in record["turns"] for one in turn["chosen"]],
        "seconds": float(np.median([turn["seconds"] for turn in record["turns"][1:]] or [0.0])),
    }


def inputs(what: str, data: Path, split: str, count: int, folder: Path) -> list[list[str]]:
    """The settings that name each slice, written once to a file."""
    out = []
    if what in ("heads", "mr_chests"):
        from PIL import Image

        name = "brain128_nichart" if what == "heads" else "chest256_admmnet"
        with np.load(data / f"mri_{split}/{name}_{split}.npz") as file:
            images = file["images"]
            if what == "heads" and split != "test":
                images = images[file["subject"] == 22]
        images = images[(images > 25).mean(axis=(1, 2)) > 0.15]
        for number, index in enumerate(np.linspace(0, len(images) - 1, count + 2).astype(int)[1:-1]):
            path = folder / f"head{number}.png"
            Image.fromarray(images[index]).save(path)
            out.append(
                ["domain=mri", "operator=active_lines", "operator.single_coil=true", f"input.path={path}"]
            )
        return out
    from ct import slices

    for number, image in enumerate(slices(data, split, count)):
        path = folder / f"chest{number}.npy"
        np.save(path, image)
        out.append(["domain=ct", "operator=active_views", f"input.path={path}"])
    return out


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval."""
    spread = values.std(ddof=1) if len(values) > 1 else np.nan
    return float(values.mean()), float(1.96 * spread / len(values) ** 0.5)


def run(arguments: argparse.Namespace) -> dict[str, object]:
    policies, budgets = arguments.policies.split(","), [int(b) for b in arguments.budgets.split(",")]
    keys, jobs = [], []
    with tempfile.TemporaryDirectory() as temporary:
        images = inputs(arguments.what, arguments.data, arguments.split, arguments.count, Path(temporary))
        for budget in budgets:
            for policy in policies:
                for number, image in enumerate(images):
                    for seed in range(arguments.seeds):
                        keys.append((budget, policy, number, seed))
                        jobs.append(
                            [
                                *image,
                                f"operator.budget={budget}",
                                f"operator.design.policy={policy}",
                                f"seed={seed}",
                                "samples=4",
                                "run.baselines=false",
                                *arguments.overrides,
                            ]
                        )
        with ProcessPoolExecutor(arguments.processes) as pool:
            results = list(pool.map(acquired, jobs))
    found = dict(zip(keys, results, strict=True))
    print(f"{len(images)} slices of {arguments.split} subjects, {arguments.seeds} seeds\n")
    print("| budget | policy | PSNR (dB) | SSIM | entropy (nats) | s a decision |\n|---|---|---|---|---|---|")
    table: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for budget in budgets:
        for policy in policies:
            rows = [found[key] for key in keys if key[:2] == (budget, policy)]
            cells = {
                name: interval(np.array([row[name] for row in rows])) for name in ("psnr", "ssim", "entropy")
            }
            table.setdefault(policy, {})[str(budget)] = cells
            texts = [
                f"{cells[name][0]:.{digits}f} ± {cells[name][1]:.{digits}f}"
                for name, digits in (("psnr", 2), ("ssim", 3), ("entropy", 3))
            ]
            seconds = np.median([row["seconds"] for row in rows])
            print(f"| {budget} | {policy} | " + " | ".join(texts) + f" | {seconds:.2f} |", flush=True)
    fixed = [policy for policy in policies if policy not in ("variance", "entropy")]
    active = [policy for policy in policies if policy not in fixed]
    if fixed and active:
        print("\nPSNR over the best fixed policy at that budget, paired by slice and seed (dB)\n")
        print("| budget | best fixed | " + " | ".join(active) + " |\n|---|---|" + "---|" * len(active))
        for budget in budgets:
            best = max(fixed, key=lambda policy: table[policy][str(budget)]["psnr"][0])
            texts = []
            for policy in active:
                gains = [
                    found[key]["psnr"] - found[(budget, best, *key[2:])]["psnr"]
                    for key in keys
                    if key[:2] == (budget, policy)
                ]
                mean, half = interval(np.array(gains))
                texts.append(f"{mean:+.2f} ± {half:.2f}")
            print(f"| {budget} | {best} | " + " | ".join(texts) + " |", flush=True)
    orders = {
        policy: found[(max(budgets[len(budgets) // 2 : len(budgets) // 2 + 1]), policy, 0, 0)]["order"]
        for policy in policies
    }
    return {"what": arguments.what, "budgets": budgets, "table": table, "orders": orders}


def draw(result: dict[str, object], path: Path) -> None:
    """PSNR, SSIM and entropy over the budget, and the order of measuring of one slice."""
    from matplotlib.figure import Figure

    from invdiff.imaging import save

    page = Figure(figsize=(13, 3.4), layout="constrained")
    axes = page.subplots(1, 4)
    budgets = result["budgets"]
    for name, label, axis in zip(
        ("psnr", "ssim", "entropy"),
        ("PSNR of the mean (dB)", "SSIM of the mean", "posterior entropy (nats a component)"),
        axes,
        strict=False,
    ):
        for policy, rows in result["table"].items():
            cells = [rows[str(budget)][name] for budget in budgets]
            active = policy in ("variance", "entropy")
            axis.errorbar(
                budgets,
                [mean for mean, _ in cells],
                [half for _, half in cells],
                label=f"active: {policy}" if active else policy.replace("_", " "),
                linewidth=1.8 if active else 1.0,
                linestyle="-" if active else "--",
                capsize=2,
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(budgets, [str(budget) for budget in budgets])
        axis.set_xlabel(TITLES[result["what"]], fontsize=9)
        axis.set_ylabel(label, fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].legend(fontsize=7)
    for place, order in enumerate(result["orders"].values()):
        axes[3].scatter(order, [place] * len(order), c=range(len(order)), cmap="viridis_r", s=60, marker="|")
    axes[3].set_yticks(
        range(len(result["orders"])), [p.replace("_", " ") for p in result["orders"]], fontsize=8
    )
    axes[3].set_ylim(-0.6, len(result["orders"]) - 0.4)
    axes[3].set_xlabel("candidate, dark: late", fontsize=9)
    axes[3].set_title(f"one slice, {len(order)} measured", fontsize=9)
    save(page, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=tuple(TITLES))
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--count", type=int, default=3, help="number of slices")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budgets", default="8,16,32,64")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings of the run as key=value")
    arguments = parser.parse_intermixed_args()
    result = run(arguments)
    if arguments.figure:
        draw(result, arguments.figure)
    closing(f"design.py {arguments.what} DATA", arguments.overrides, arguments.processes)


if __name__ == "__main__":
    main()
