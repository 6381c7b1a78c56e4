"""CT reconstruction beside the classical methods, through the product's own command path.

    python benchmarks/ct.py slices DATA                   five test patients, one slice each
    python benchmarks/ct.py slices DATA --split train     the same on held-out training patients
    python benchmarks/ct.py tune-baselines DATA           lambda of TV, on training patients only
    python benchmarks/ct.py tooth DATA                    a real scan from a sixth and a third of its views

DATA is the folder of the shared data. Projections are simulated on a grid twice as
fine as the reconstruction's (pixels of 1 mm, 256 detectors, water .02 / mm). Every
table says its command, versions and seed. Two processes of one thread each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
from common import closing, solve

CASES = {
    "30": ["operator=sparse_view", "operator.views=30"],
    "60": ["operator=sparse_view", "operator.views=60"],
    "60-noisy": ["operator=sparse_view", "operator.views=60", "operator.flux=1e5"],
    "90deg": ["operator=limited_angle", "operator.stop=90"],
}
NAMES = ("FBP", "SIRT", "TV", "one sample", "posterior mean")
GOALS = {"30": 33.5, "60": 36.0, "60-noisy": 35.0, "90deg": 24.0}
HELD_OUT = (
    "TCGA-17-Z011",
    "TCGA-17-Z045",
    "TCGA-34-5231",
    "TCGA-50-6592",
    "TCGA-60-2715",
    "TCGA-92-8064",
)  # of configs/train/ct.yaml


def slices(data: Path, split: str, count: int) -> list[np.ndarray]:
    """The first slice of each patient, in the order of the file."""
    with np.load(data / f"ct_{split}/lung256_siim_{split}.npz") as file:
        hu, patient = file["hu"], file["patient"]
    wanted = np.arange(len(hu)) if split == "test" else np.flatnonzero(np.isin(patient, HELD_OUT))
    first = {str(patient[i]): i for i in wanted[::-1]}
    return [hu[i] for i in sorted(first.values())][:count]


def jobs_of(images: list[np.ndarray], case: str, extra: list[str], folder: Path) -> list[list[str]]:
    """One run a slice; slices are written once as HU arrays."""
    jobs = []
    for number, image in enumerate(images):
        path = folder / f"slice{number}.npy"
        np.save(path, image)
        jobs.append(["domain=ct", *CASES[case], f"input.path={path}", f"seed={number}", *extra])
    return jobs


def test_slices(
    data: Path, extra: list[str], split: str, count: int, cases: list[str], keep: Path | None
) -> None:
    images = slices(data, split, count)
    print(f"{len(images)} slices of {split} patients; PSNR (dB) over the square / inside the circle / SSIM /")
    print("RMSE (HU), means over the slices\n")
    heads = ("case", "goal", *NAMES, "chi2", "within 1 std (68 %)", "within 2 std (95 %)", "std factor", "s")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for case in cases:
            jobs = jobs_of(images, case, extra, Path(temporary))
            folders = [None if keep is None else keep / f"{case}-{i}" for i in range(len(jobs))]
            with ProcessPoolExecutor(2) as pool:
                done = list(pool.map(solve, jobs, folders))
            items = [result["item"] for result in done]
            cells = []
            for name in NAMES:
                row = {
                    key: np.mean([item["table"][name][key] for item in items])
                    for key in ("psnr", "psnr_fov", "ssim", "rmse_hu")
                }
                cells.append(
                    f"{row['psnr']:.2f} / {row['psnr_fov']:.2f} / {row['ssim']:.3f} / {row['rmse_hu']:.0f}"
                )
            shares = []
            for key in ("within_1_std", "within_2_std"):
                share = [100 * item["facts"].get(key, np.nan) for item in items]
                shares.append(f"{np.mean(share):.0f} % ({min(share):.0f}–{max(share):.0f})")
            factor = np.mean([item["facts"].get("std_factor", np.nan) for item in items])
            chi2 = np.mean([np.mean(item["chi2_per_sample"]) for item in items])
            seconds = np.mean([result["seconds"]["sampling"] for result in done])
            tail = (f"{chi2:.2f}", *shares, f"{factor:.2f}", f"{seconds:.0f}")
            print(f"| {case} | {GOALS[case]} | " + " | ".join((*cells, *tail)) + " |", flush=True)


def tune_baselines(data: Path, count: int, cases: list[str]) -> None:
    images = slices(data, "train", count)
    quick = ["sampler=plug_and_play", "sampler.steps=1", "samples=1"]
    with tempfile.TemporaryDirectory() as temporary:
        for case in cases:
            for weight in (1e-4, 2e-4, 5e-4, 1e-3, 2e-3):
                extra = [*quick, f"domain.baselines.tv={weight}", "domain.baselines.sirt_iterations=1"]
                jobs = jobs_of(images, case, extra, Path(temporary))
                with ProcessPoolExecutor(2) as pool:
                    rows = [result["item"]["table"]["TV"]["psnr"] for result in pool.map(solve, jobs)]
                print(case, weight, round(float(np.mean(rows)), 2), flush=True)


def tooth(data: Path, extra: list[str], keep: Path | None) -> None:
    """Views that were left out are the reference: |p - A x| / |p| over them."""
    from invdiff_ct.geometry import Geometry
    from invdiff_ct.projector import line_integrals

    with np.load(data / "ct_test/tooth_sinogram_real.npz") as file:
        lines, degrees = file["sinogram"][:, 0].astype(np.float64), file["theta_deg"].astype(np.float64)
    print("relative error of the views left out, row 0\n")
    print("| views | FBP | SIRT | TV | one sample | posterior mean |\n|---|---|---|---|---|---|")
    for views in (31, 60):
        with tempfile.TemporaryDirectory() as temporary:
            folder = (keep or Path(temporary)) / f"tooth-{views}"
            path = data / "ct_test/tooth_sinogram_real.npz"
            solve(
                ["domain=ct", f"input.path={path}", "input.slices=0", f"operator.views={views}", *extra],
                folder,
            )
            with np.load(next((folder / "items").iterdir()) / "result.npz") as file:
                images = {key: file[key] for key in ("fbp", "sirt", "tv", "mean")}
                images["sample"] = file["samples"][0]
                used, pixel = file["angles_deg"], float(file["pixel_mm"])
        out = np.array([np.abs(used - angle).min() > 1e-3 for angle in degrees])
        geometry = Geometry(np.deg2rad(degrees[out]), lines.shape[1], 1.0, 295.5)
        inside = np.abs(geometry.positions) < 290
        row = {}
        for name, image in images.items():
            error = line_integrals(image, pixel, geometry) - lines[out]
            row[name] = np.linalg.norm(error[:, inside]) / np.linalg.norm(lines[out][:, inside])
        order = ("fbp", "sirt", "tv", "sample", "mean")
        print(f"| {views} | " + " | ".join(f"{row[name]:.4f}" for name in order) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("slices", "tune-baselines", "tooth"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--count", type=int, default=6, help="number of slices, at most")
    parser.add_argument("--cases", default=",".join(CASES), help="some of " + ",".join(CASES))
    parser.add_argument("--keep", type=Path, help="keep the run directories here")
    parser.add_argument("overrides", nargs="*", help="settings of the run as key=value")
    arguments = parser.parse_intermixed_args()
    cases = arguments.cases.split(",")
    if arguments.what == "slices":
        test_slices(
            arguments.data, arguments.overrides, arguments.split, arguments.count, cases, arguments.keep
        )
    elif arguments.what == "tooth":
        tooth(arguments.data, arguments.overrides, arguments.keep)
    else:
        tune_baselines(arguments.data, arguments.count, cases)
    closing(f"ct.py {arguments.what} DATA", arguments.overrides, 2)


if __name__ == "__main__":
    main()
