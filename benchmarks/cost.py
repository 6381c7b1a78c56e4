"""Accuracy against cost on image-size Gaussian fields with a known posterior.

    python benchmarks/cost.py [--out docs/cost.png]

Every guidance method and weighting at 20, 50, 100 and 200 levels on `grf` (32 x 32): k-space rows of a
complex field, and a blurred real one. The distance is the root mean square over radial bands of measured and
unmeasured modes of (error of the mean, std / exact - 1), 32 draws; the dashed line is that of exact draws.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib.pyplot as plt
import torch

from invdiff.api import make_sampler
from invdiff.benchmark.problems import field
from invdiff.benchmark.verify import judge

STEPS = (20, 50, 100, 200)
METHODS: dict[str, dict[str, object]] = {
    "moment_matching": {},
    "pigdm": {"integrator": "2m_sde"},
    "proximal": {"integrator": "2m_sde"},
    "diffpir": {},
    "dds": {},
    "dps": {},
    "likelihood_gradient": {},
    "split_langevin": {"start_steps": 0, "sigma_max": 3.0},
    "twisted": {"particles": 128, "keep": 32},
    "ensemble": {"particles": 160, "keep": 32},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("cost.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    picture, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    for axis, kind in zip(axes, ("mri", "blur"), strict=True):
        known = field(kind)
        print(f"\n{known.name}: distance (calls + VJPs a sample)\n")
        print("| method | " + " | ".join(f"{steps} levels" for steps in STEPS) + " |\n|" + "---|" * 5)
        floor = 0.0
        for name, settings in METHODS.items():
            rows = []
            for steps in STEPS:
                sampler = make_sampler(name, known.prior.card, steps=steps, **settings)
                rows.append(judge(sampler, known, 0))
            shown = [row for row in rows if row.distance == row.distance]
            cells = [
                f"{row.distance:.3f} ({row.calls:.0f}"
                + (f" + {row.derivatives:.0f})" if row.derivatives else ")")
                for row in rows
            ]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
            if shown:
                floor = shown[0].floor
                axis.plot(
                    [r.calls + r.derivatives for r in shown], [r.distance for r in shown], "o-", label=name
                )
        axis.axhline(floor, color="0.4", linestyle="--", linewidth=0.8)
        axis.set(xscale="log", yscale="log", title=known.name, xlabel="network calls + VJPs a sample")
    axes[0].set_ylabel("distance to the exact posterior, in exact stds")
    axes[1].legend(fontsize=7, loc="upper right")
    picture.savefig(arguments.out, dpi=110)
    print(f"\n`python benchmarks/cost.py`; torch {torch.__version__}, one thread")


if __name__ == "__main__":
    main()
