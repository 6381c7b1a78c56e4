"""Deformations on real data, beside classical registration.

    python benchmarks/deformation.py simulated DATA             pairs made by the model: coverage, chi2, std
    python benchmarks/deformation.py lungs DATA [--seeds 1]     landmarks, held out by fifths, exact posterior
    python benchmarks/deformation.py cardiac DATA [--every 1]   Sunnybrook test pairs: mode, posterior, demons
    python benchmarks/deformation.py spread DATA [--every 1]    factor on the spread, from training pairs
    python benchmarks/deformation.py brain DATA                 a pair of volumes: mode, Laplace draws, memory
    python benchmarks/deformation.py slices DATA                planes of pairs of brains: mode, demons

Shorter runs with --every N (every N-th pair).
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.interpolate import RBFInterpolator
from scipy.stats import norm

from invdiff import GaussianNoise, Measurement, compose, keyed_stream, load_plugin, sample
from invdiff_deformation.baselines import TITLES, all_baselines
from invdiff_deformation.evidence import fit
from invdiff_deformation.formats import Points
from invdiff_deformation.grid import Grid
from invdiff_deformation.item import Item, registered
from invdiff_deformation.jacobian import folded_strict
from invdiff_deformation.judge import Drawn, boundary_draws, boundary_facts, row_of
from invdiff_deformation.learned import LearnedVelocity
from invdiff_deformation.metrics import coverage_of_draws
from invdiff_deformation.operators import Displacements, Images, Transform, observed
from invdiff_deformation.prior import Modes, Spectrum
from invdiff_deformation.register import blurred, coarse_to_fine

SAMPLES = 16
Arrays = tuple[np.ndarray, np.ndarray]


def folds(count: int, parts: int, seed: int) -> list[np.ndarray]:
    """Held-out numbers of each fold."""
    return np.array_split(np.random.default_rng(seed).permutation(count), parts)


def posterior_at(
    grid: Grid, spectrum: Spectrum, noise: float, seen: Points, asked: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """Mean and std of u in mm at other points, by the exact posterior over the modes."""
    modes = Modes(spectrum, grid)
    transform = Transform(modes, "displacement")
    eye = torch.diag(torch.tensor(grid.spacing, dtype=torch.float64))

    def matrix(points: np.ndarray, std: float) -> torch.Tensor:
        whitening = torch.eye(grid.dimensions, dtype=torch.float64).expand(len(points), -1, -1) / std
        return observed(transform, [Displacements(torch.from_numpy(points), eye, whitening)]).matrix

    a, b = matrix(seen.fixed, noise), matrix(asked, 1.0)
    y = torch.from_numpy(seen.vectors / noise).flatten()
    inner = a @ a.mT + torch.eye(len(y), dtype=torch.float64)
    mean = b @ (a.mT @ torch.linalg.solve(inner, y))
    cross = b @ a.mT
    variance = b.square().sum(1) - (cross * torch.linalg.solve(inner, cross.mT).mT).sum(1)
    shape = asked.shape
    return mean.reshape(shape).numpy(), variance.clamp_min(0).sqrt().reshape(shape).numpy()


def lungs(data: Path, options: argparse.Namespace) -> None:
    """Held-out TRE and coverage of landmarks, the prior's scales by evidence on each training part."""
    with np.load(data / "deformation/lung_landmarks_3d.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for suffix in ("", "_corrected"):
        fixed, moving = (arrays[f"{side}_point_set{suffix}"] for side in ("fixed", "moving"))
        vectors = moving - fixed
        spacing = 10.0
        low = fixed.min(axis=0) - 40
        shape = tuple(int(n) for n in np.ceil((np.ptp(fixed, axis=0) + 80) / spacing) + 1)
        affine = np.diag([spacing] * 3 + [1.0])
        affine[:3, 3] = low
        grid = Grid(shape, affine)
        rows: dict[str, list[float]] = {}
        z: list[float] = []
        began = time.process_time()
        for seed in range(options.seeds):
            for held in folds(len(fixed), options.folds, seed):
                kept = np.setdiff1d(np.arange(len(fixed)), held)
                shift = vectors[kept].mean(axis=0)
                seen = Points(grid.voxels(fixed[kept])[:, :3], vectors[kept] - shift, np.ones(len(kept)))
                found = fit(seen, grid, Spectrum(omitted=5e-3))
                mean, std = posterior_at(
                    grid, found.spectrum, found.noise, seen, grid.voxels(fixed[held])[:, :3]
                )
                truth = vectors[held]

                def tell(name: str, guess: np.ndarray, truth: np.ndarray = truth, rows=rows) -> None:
                    rows.setdefault(name, []).extend(np.linalg.norm(guess - truth, axis=1))

                tell("identity", np.zeros_like(truth))
                tell("translation", np.broadcast_to(shift, truth.shape))
                for name, kernel, degree, smooth in (
                    ("affine", "linear", 1, 1e9),
                    ("thin-plate", "thin_plate_spline", 1, 0.0),
                ):
                    spline = RBFInterpolator(
                        fixed[kept], vectors[kept], kernel=kernel, degree=degree, smoothing=smooth
                    )
                    tell(name, spline(fixed[held]))
                tell("Gaussian posterior", mean + shift)
                z.extend(((mean + shift - truth) / np.sqrt(std**2 + found.noise**2)).ravel())
        seconds = (time.process_time() - began) / (options.folds * options.seeds)
        print(f"\n{len(fixed)} points, {options.seeds} splits in {options.folds}, {seconds:.1f} CPU s a part")
        for name, errors in rows.items():
            print(f"  {name:20s} TRE {np.mean(errors):6.2f} mm   median {np.median(errors):.2f}")
        size = np.abs(np.asarray(z))
        cover = [float((size < norm.ppf(0.5 + level / 2)).mean()) for level in (0.5, 0.9, 0.95)]
        print(
            f"  coverage at 50, 90, 95 %: {', '.join(f'{c:.3f}' for c in cover)}   std of z {np.std(z):.2f}"
        )


def item_of(
    fixed: np.ndarray,
    moving: np.ndarray,
    grid: Grid,
    labels: tuple[np.ndarray, np.ndarray] | None = None,
    overrides: tuple[str, ...] = (),
) -> tuple[Item, Measurement, torch.Tensor]:
    """A pair of arrays as the deformation domain makes it of files."""
    item, measurement, mode = registered(fixed, moving, grid, labels, overrides)
    assert mode is not None
    measurement.operator.guess = lambda: mode
    return item, measurement, mode


def sampler_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The sampler of a configuration, as `sample` takes it."""
    settings = dict(compose(["domain=deformation", *overrides])["sampler"])
    return {"sampler": str(settings.pop("name")), **settings}


def simulated(data: Path, options: argparse.Namespace) -> None:
    """Pairs that the model itself makes, of 32 x 32 brain slices, sigma known: error, coverage, chi2."""
    with np.load(data / "deformation/brain2d_pairs.npz") as file:
        slices = torch.from_numpy(file["fixed"].astype(np.float32) / 255)
    grid, level = Grid((32, 32), np.eye(4)), 0.05
    modes = Modes(Spectrum(lengths=(4.0, 8.0)), grid)
    transform = Transform(modes)
    inside = torch.ones(grid.shape, dtype=torch.bool)
    errors, inner, covers, spreads = [], [], [], []
    began = time.process_time()
    count = 8 * options.seeds
    settings: dict[str, Any] = {"sampler": "tempered"}
    if options.overrides:
        settings = {**sampler_of(options.overrides), "particles": 16}
    for number in range(count):
        moving = F.avg_pool2d(slices[number % len(slices)][None], 4)[0, 2:34, 6:38]
        moving = moving / moving.max()
        generator = keyed_stream(number, 0)
        truth = transform.displacement(torch.randn((1, *modes.event_shape), generator=generator))[0]
        noise = level * torch.randn(grid.shape, generator=generator)
        fixed = (Images(moving, moving, inside).warped(truth[None])[0] + noise).numpy()

        def seen(blur: float, moving: torch.Tensor = moving, fixed: np.ndarray = fixed) -> Measurement:
            pair = blurred(moving.numpy(), blur), blurred(fixed, blur)
            return Measurement(
                observed(transform, [Images(*pair, inside)]), GaussianNoise(level), pair[1].flatten()
            )

        mode = coarse_to_fine(modes.prior, [seen(blur) for blur in (2.0, 1.0, 0.0)])
        measurement = seen(0.0)
        measurement.operator.guess = lambda mode=mode: mode
        drawn = sample(
            modes.prior,
            measurement,
            modes.event_shape,
            samples=SAMPLES,
            seed=number,
            **{**settings, "keep": SAMPLES},
        )
        u = torch.cat([transform.displacement(z[None]) for z in drawn.samples])
        errors.append(float((u.mean(0) - truth).norm(dim=0).mean()))
        inner.append(float(drawn.chi2.mean()))
        spreads.append(float(u.var(dim=0).sum(dim=0).sqrt().mean()))
        covers.append(list(coverage_of_draws(truth.numpy().ravel(), u.numpy().reshape(16, -1)).values()))
    print(
        f"{count} problems, {(time.process_time() - began) / count:.1f} CPU s each: error of the mean "
        f"{np.mean(errors):.3f} voxels, chi2 {np.mean(inner):.3f}, std {np.mean(spreads):.3f}, coverage at "
        f"50, 90, 95 %: {np.mean(covers, axis=0).round(3)}"
    )


def cardiac_pairs(data: Path, split: str, every: int) -> Iterator[tuple[int, Arrays, Arrays]]:
    """Number, images and ventricles of every so-many-th pair: systole, then diastole."""
    with np.load(data / "deformation/sunnybrook_ed_es_2d.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for number in np.flatnonzero(arrays["split"] == split)[::every]:
        es, ed = ((arrays[f"{phase}_lv"][number] > 0).astype(np.int64) for phase in ("es", "ed"))
        yield int(number), (arrays["es"][number], arrays["ed"][number]), (es, ed)


def drawn_of(item: Item, measurement: Measurement, overrides: Sequence[str]) -> Drawn:
    """16 samples with the domain's sampler, all kept from one filter where it has filters."""
    config = compose(["domain=deformation", *overrides])
    settings = sampler_of(overrides)
    if "keep" in settings:
        settings["keep"] = SAMPLES
    prior = load_plugin("priors", str(config["prior"]["name"]))(config["prior"])
    drawn = sample(
        prior if isinstance(prior, LearnedVelocity) else item.prior,
        measurement,
        item.transform.coordinates.event_shape,
        samples=SAMPLES,
        **settings,
    )
    return Drawn(item, drawn)


def spread(data: Path, options: argparse.Namespace) -> None:
    """domain.spread and domain.contour_std that boundaries of TRAINING pairs ask for, by their log score."""
    grid, found = Grid((128, 128), np.eye(4)), []
    for number, images, labels in cardiac_pairs(data, "train", options.every):
        item, measurement, _ = item_of(*images, grid, labels, tuple(options.overrides))
        found.append(drawn_of(item, measurement, options.overrides))
        print(f"pair {number}", end="\r", flush=True)
    table = []
    for factor in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0):
        wider = [Drawn(replace(one.item, spread=factor), one.posterior) for one in found]
        draws = [boundary_draws(one) for one in wider]
        folded = max(float(folded_strict(one.u).double().mean()) for one in wider)
        for hand in (0.0, 0.25, 0.5, 0.75, 1.0):
            extra = float(np.hypot(hand, 1 / np.sqrt(12)))
            scores, covers = [], []
            for one in draws:
                std = np.sqrt(one.var(axis=0, ddof=1) * (1 + 1 / len(one)) + extra**2)
                scores.append(norm.logpdf(one.mean(axis=0) + 0.5, 0, std).mean())
                known = np.full(one.shape[1], -0.5)
                covers.append(list(coverage_of_draws(known, one, extra=extra).values()))
            table.append((float(np.mean(scores)), factor, hand, np.mean(covers, axis=0).round(3), folded))
    print(f"\n{len(found)} training pairs; log score, spread, contour_std, coverage at 50, 90, 95 %, folded")
    for row in sorted(table, key=lambda row: -row[0])[:8] + table[:1]:
        print("  {:.3f}  {:g}  {:g}  {}  {:.2g}".format(*row))


def cardiac(data: Path, options: argparse.Namespace) -> None:
    """Every test pair, systole fixed and diastole moving: Dice, folding, boundaries and their coverage."""
    grid = Grid((128, 128), np.eye(4))
    rows: dict[str, list[dict[str, float]]] = {}
    facts: list[dict[str, float]] = []
    seconds = []
    for number, images, labels in cardiac_pairs(data, options.split, options.every):
        began = time.process_time()
        item, measurement, mode = item_of(*images, grid, labels, tuple(options.overrides))
        tables = {TITLES[k]: v for k, v in all_baselines(item, mode, lambda: None).items()}
        middle = time.process_time()
        if not options.mode:
            deformations = drawn_of(item, measurement, options.overrides)
            tables["posterior, exp of the mean"] = deformations.representative
            more = {
                "chi2": float(deformations.posterior.chi2.mean()),
                "std of u in pixels": float(deformations.std.mean()),
                "folded % of the samples": 100 * float(folded_strict(deformations.u).double().mean()),
            }
            facts.append(boundary_facts(deformations) | more)
        seconds.append((middle - began, time.process_time() - middle))
        for name, u_one in tables.items():
            rows.setdefault(name, []).append(row_of(item, u_one))
        print(f"pair {number}: {row_of(item, tables[list(tables)[-1]])['dice']:.3f}", end="\r", flush=True)
    print(
        f"\n{len(seconds)} pairs; CPU s each {np.mean(seconds, axis=0).round(1)} (mode with demons, samples)"
    )
    for name, found_rows in rows.items():
        keys = ("dice", "ncc", "folded_%", "folded_strict_%", "min_det")
        shown = "  ".join(f"{key} {np.mean([row[key] for row in found_rows]):.4f}" for key in keys)
        tenth = np.quantile([row["dice"] for row in found_rows], 0.1)
        print(f"  {name:32s} {shown}  10 % quantile {tenth:.3f}")
    for key in facts[0] if facts else ():
        values = [one[key] for one in facts if key in one and np.isfinite(one[key])]
        print(f"  {key:44s} {np.mean(values):.3f}")


def brain(data: Path, options: argparse.Namespace) -> None:
    """One pair of brains of two people, 2 mm: Dice over 30 labels, folding, time and memory."""
    with np.load(data / "deformation/brain3d_pair_half.npz") as file:
        arrays = {name: file[name] for name in file.files}
    grid = Grid(arrays["fixed"].shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    labels = tuple(known_labels(arrays[f"{side}_seg"], arrays) for side in ("fixed", "moving"))
    began, wall = time.process_time(), time.time()
    sampler = (
        [] if any(one.startswith("sampler=") for one in options.overrides) else ["sampler=laplace_volume"]
    )
    overrides = ("operator=register_subjects", *sampler, *options.overrides)
    item, measurement, mode = item_of(arrays["fixed"], arrays["moving"], grid, labels, overrides)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"mode: {time.process_time() - began:.0f} CPU s, {time.time() - wall:.0f} s, {memory:.1f} GB")
    print(item.transform.coordinates.event_shape, item.notes, flush=True)
    tables = {TITLES[k]: v for k, v in all_baselines(item, mode, lambda: None).items()}
    for name, u in tables.items():
        tell_row(name, row_of(item, u))
    if options.mode:
        return
    began, wall = time.process_time(), time.time()
    settings = sampler_of(overrides)
    shape = item.transform.coordinates.event_shape
    drawn = sample(item.prior, measurement, shape, samples=int(settings["keep"]), **settings)
    deformations = Drawn(item, drawn)
    tell_row("posterior, exp of the mean", row_of(item, deformations.representative))
    rows = [row_of(item, one) for one in deformations.u]
    tell_row("mean of the samples' own", {key: float(np.mean([row[key] for row in rows])) for key in rows[0]})
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"samples: {time.process_time() - began:.0f} CPU s, {time.time() - wall:.0f} s, {memory:.1f} GB")
    inside = labels[0] > 0
    print(
        f"{drawn.claim}, chi2 {float(drawn.chi2.mean()):.3f}, std {deformations.std.mean():.2f} mm, inside "
        f"labels {deformations.std[inside].mean():.2f}, elsewhere {deformations.std[~inside].mean():.2f}"
    )
    for factor in (1.0, 2.0, 3.0, 4.0):
        wider = Drawn(replace(item, spread=factor), drawn)
        folded = 100 * float(torch.stack([folded_strict(one[None]).double().mean() for one in wider.u]).max())
        print(f"spread {factor:g}: folded % of the samples, largest {folded:.4f}", boundary_facts(wider))


def slices(data: Path, options: argparse.Namespace) -> None:
    """Planes of brains of two people: Dice over 30 labels of the mode and of demons."""
    with np.load(data / "deformation/brain2d_pairs.npz") as file:
        arrays = {name: file[name] for name in file.files}
    grid = Grid(arrays["fixed"].shape[1:], np.eye(4))
    overrides = ("operator=register_subjects", *options.overrides)
    rows: dict[str, list[dict[str, float]]] = {}
    began = time.process_time()
    for number in range(0, len(arrays["fixed"]), options.every):
        labels = tuple(known_labels(arrays[f"{side}_seg"][number], arrays) for side in ("fixed", "moving"))
        item, _, mode = item_of(arrays["fixed"][number], arrays["moving"][number], grid, labels, overrides)
        for name, u in all_baselines(item, mode, lambda: None).items():
            rows.setdefault(TITLES[name], []).append(row_of(item, u))
    count = len(rows[TITLES["mode"]])
    print(f"{count} pairs, {(time.process_time() - began) / count:.1f} CPU s each, demons included")
    for name, found in rows.items():
        tell_row(name, {key: float(np.mean([row[key] for row in found])) for key in found[0]})


def known_labels(labels: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The 30 labels that are judged, 0 elsewhere."""
    return np.where(np.isin(labels, arrays["labels"]), labels, 0).astype(np.int64)


def tell_row(name: str, row: dict[str, float]) -> None:
    """One row of a table."""
    keys = ("dice", "ncc", "folded_%", "folded_strict_%", "min_det", "mean_|u|")
    print(f"  {name:32s} " + "  ".join(f"{key} {row[key]:.4f}" for key in keys), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = {"simulated": simulated, "lungs": lungs, "cardiac": cardiac, "spread": spread, "brain": brain}
    known["slices"] = slices
    parser.add_argument("what", choices=sorted(known))
    parser.add_argument("data", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--split", default="test")
    parser.add_argument("--mode", action="store_true", help="the mode alone, no samples")
    parser.add_argument("overrides", nargs="*", help="configuration, such as operator.blur=0.7")
    options = parser.parse_intermixed_args()
    known[options.what](options.data, options)


if __name__ == "__main__":
    main()
