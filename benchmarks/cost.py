"""Accuracy against cost on image-size Gaussian fields with a known posterior.

    python benchmarks/cost.py [--out docs/cost.png]

Every guidance method and weighting at 20, 50, 100 and 200 levels on `grf` (32 x 32): k-space rows of a
complex field, and a blurred real one; 64 draws. Errors of the mean (in exact stds) and of the std
(relative), root mean square over all pixels, over 64 random projections, and, which sees most, over radial
bands of measured and of unmeasured modes: that one is drawn. The Monte Carlo floor, dashed, is that of as
many exact draws.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from invdiff.api import make_sampler
from invdiff.benchmark.known import Known
from invdiff.benchmark.problems import field
from invdiff.prior.counted import counted
from invdiff.sampler.loop import draw, prepared

DRAWS, EXACT, PROJECTIONS = 64, 4000, 64
STEPS = (20, 50, 100, 200)
METHODS: dict[str, dict[str, object]] = {
    "moment_matching": {},
    "pigdm": {"integrator": "2m_sde"},
    "proximal": {"integrator": "2m_sde"},
    "diffpir": {},
    "dds": {},
    "dps": {},
    "likelihood_gradient": {},
    "stsl": {},
    "split_langevin": {"start_steps": 0, "sigma_max": 3.0},
    "daps": {},
    "twisted": {"particles": 400, "keep": DRAWS},
    "ensemble": {"particles": 500, "keep": DRAWS},
    "ddsmc": {"particles": 400, "keep": DRAWS},
    "steering": {"particles": 500, "keep": DRAWS},
}


@dataclass(frozen=True)
class Exact:
    """Mean and std of the exact posterior over pixels and projections, from many exact draws."""

    known: Known
    directions: Tensor
    pixels: tuple[Tensor, Tensor]
    projections: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, known: Known) -> Exact:
        x = known.sample(EXACT, torch.Generator().manual_seed(99)).flatten(1)
        generator = torch.Generator().manual_seed(7)
        directions = torch.randn(x.shape[1], PROJECTIONS, generator=generator, dtype=x.dtype)
        directions = directions / directions.norm(dim=0)
        projected = x @ directions
        return cls(known, directions, (x.mean(0), x.std(0)), (projected.mean(0), projected.std(0)))

    def errors(self, x: Tensor) -> list[float]:
        """Mean and std over pixels, mean and std over projections, both over radial bands."""
        flat = x.flatten(1)
        found = []
        for values, (mean, std) in ((flat, self.pixels), (flat @ self.directions, self.projections)):
            found.append(float(((values.mean(0) - mean) / std).square().mean().sqrt()))
            found.append(float((values.std(0) / std - 1).square().mean().sqrt()))
        return [*found, self.known.distance(x, x)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("cost.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    picture, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    for axis, kind in zip(axes, ("mri", "blur"), strict=True):
        known = field(kind)
        exact = Exact.of(known)
        floor = exact.errors(known.sample(DRAWS, torch.Generator().manual_seed(5)))
        print(f"\n{known.name}: mean / std over pixels; over projections; bands (calls + VJPs a sample)\n")
        print("| method | " + " | ".join(f"{steps} levels" for steps in STEPS) + " |\n|" + "---|" * 5)
        print("| exact draws | " + " | ".join([cell(floor)] * 4) + " |", flush=True)
        for name, settings in METHODS.items():
            costs, totals, cells = [], [], []
            for steps in STEPS:
                errors, calls, derivatives = run(known, exact, name, {**settings, "steps": steps})
                cells.append(
                    f"{cell(errors)} ({calls:.0f}" + (f" + {derivatives:.0f})" if derivatives else ")")
                )
                costs.append(calls + derivatives)
                totals.append(errors[-1])
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
            axis.plot(costs, totals, "s--" if "particles" in settings else "o-", label=name, markersize=4)
        axis.axhline(floor[-1], color="0.4", linestyle="--", linewidth=0.8)
        axis.set(xscale="log", yscale="log", title=known.name, xlabel="network calls + VJPs a sample")
    axes[0].set_ylabel("distance over radial bands, in exact stds")
    axes[1].legend(fontsize=7, loc="upper right", ncols=2)
    picture.savefig(arguments.out, dpi=110)
    print(f"\n`python benchmarks/cost.py`; torch {torch.__version__}, one thread")


def run(
    known: Known, exact: Exact, name: str, settings: dict[str, object]
) -> tuple[list[float], float, float]:
    """Errors, network calls and vector-Jacobian products of one sampler."""
    prior = counted(known.prior)
    sampler = make_sampler(name, prior.card, **settings)
    ready = prepared(sampler, prior, known.measurement, known.shape, dtype=torch.float64)
    particles = range(DRAWS)
    x = draw(ready, prior, known.measurement, known.shape, particles=particles, dtype=torch.float64).x
    return exact.errors(x), prior.calls / DRAWS, prior.derivatives / DRAWS


def cell(errors: list[float]) -> str:
    return f"{errors[0]:.2f} / {errors[1]:.2f}; {errors[2]:.2f} / {errors[3]:.2f}; **{errors[4]:.3f}**"


if __name__ == "__main__":
    main()
