"""MR reconstruction beside the classical methods, through the product's own command path.

    python benchmarks/mri.py head DATA [--samples 8]      the table of README: a real 8-coil head
    python benchmarks/mri.py slices DATA                  the same on ten test slices, with std maps
    python benchmarks/mri.py prospective DATA             a real 7.9x Poisson-disc scan
    python benchmarks/mri.py tune-baselines DATA          lambdas, on training subjects only

DATA is the folder of the shared data. Every table says its command, versions
and seed. Two processes of one thread each.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
from common import closing, solve

CASES = [
    (coils, acceleration, mask)
    for coils in ("multi", "single")
    for acceleration in (4, 8)
    for mask in ("equispaced", "random")
]
NAMES = ("zero-filled", "CG-SENSE", "L1-wavelet", "TV", "one sample", "posterior mean")
# PSNR in dB: best classical method with lambda chosen knowing the truth, and a prototype prior
# (11 CPU-minutes of training, 48 network calls) with its plug-and-play estimate.
BEFORE = {
    ("multi", 4, "equispaced"): (41.3, 43.0),
    ("multi", 4, "random"): (40.4, 42.3),
    ("multi", 8, "equispaced"): (31.7, 36.3),
    ("multi", 8, "random"): (32.8, 36.9),
    ("single", 4, "equispaced"): (32.6, 38.0),
    ("single", 4, "random"): (33.1, 38.7),
    ("single", 8, "equispaced"): (28.8, 30.8),
    ("single", 8, "random"): (29.5, 33.4),
}


def head_overrides(data: Path, case: tuple[str, int, str], extra: list[str]) -> list[str]:
    coils, acceleration, mask = case
    return [
        f"input.path={data / 'mri_kspace/head8ch_full_fastmri.h5'}",
        f"operator.mask={mask}",
        f"operator.acceleration={acceleration}",
        f"operator.single_coil={str(coils == 'single').lower()}",
        *extra,
    ]


def cell(row: dict[str, float]) -> str:
    return f"{row['psnr']:.2f} / {row['ssim']:.3f} / {row['nmse']:.4f}"


def head(data: Path, extra: list[str], keep: Path | None) -> None:
    jobs = [head_overrides(data, case, extra) for case in CASES]
    folders = [None if keep is None else keep / "-".join(map(str, case)) for case in CASES]
    with ProcessPoolExecutor(2) as pool:
        done = list(pool.map(solve, jobs, folders))
    print("PSNR (dB) / SSIM / NMSE, fastMRI convention; head8ch, reference: RSS of the full scan\n")
    print(
        "| case | best classical, oracle | prototype | " + " | ".join(NAMES) + " | chi2 | 1 std | 2 std | s |"
    )
    print("|---|---|---|" + "---|" * (len(NAMES) + 4))
    for case, result in zip(CASES, done, strict=True):
        item = result["item"]
        seconds = result["seconds"]["sampling"]
        classical, prototype = BEFORE[case]
        facts = item["facts"]
        chi2 = float(np.mean(item["chi2_per_sample"]))
        within = [
            f"{100 * facts[key]:.0f} %" if key in facts else "–" for key in ("within_1_std", "within_2_std")
        ]
        print(
            f"| {case[0]} {case[1]}x {case[2]} | {classical} | {prototype} | "
            + " | ".join(cell(item["table"][name]) for name in NAMES)
            + f" | {chi2:.2f} | {within[0]} | {within[1]} | {seconds:.0f} |"
        )
        if item["table"]["posterior mean"]["psnr"] <= prototype:
            print(f"  (below the prototype: {case})", file=sys.stderr)


def slices(data: Path, split: str, count: int) -> list[np.ndarray]:
    """Magnitude slices, half of each set, evenly spaced. `train` takes only held-out training subjects."""
    found = []
    for name, subject in (("brain128_nichart", 22), ("brain256_openms", 9)):
        with np.load(data / f"mri_{split}" / f"{name}_{split}.npz") as file:
            images = file["images"]
            if split == "train":
                images = images[file["subject"] == subject]
        content = (images > 25).mean(axis=(1, 2)) > 0.08
        images = images[content]
        found += [images[i] for i in np.linspace(0, len(images) - 1, count // 2 + 2).astype(int)[1:-1]]
    return found


def simulated(image: np.ndarray, number: int, case: tuple[str, int, str], extra: list[str]) -> list[str]:
    """A slice written as PNG and read by the product as a simulated scan."""
    from PIL import Image

    path = Path(tempfile.mkdtemp()) / f"slice{number}.png"
    Image.fromarray(image).save(path)
    coils, acceleration, mask = case
    return [
        f"input.path={path}",
        f"operator.mask={mask}",
        f"operator.acceleration={acceleration}",
        f"operator.mask_seed={number}",
        f"seed={number}",
        f"operator.single_coil={str(coils == 'single').lower()}",
        *extra,
    ]


def test_slices(data: Path, extra: list[str], split: str, count: int, cases: str) -> None:
    """Means over slices: the table of `head`, and the range of the shares over the slices."""
    images = slices(data, split, count)
    print(f"{len(images)} slices of {split} subjects, simulated scans (noise .01 of the 99.5th percentile);")
    print("PSNR (dB) / SSIM / NMSE, means over the slices\n")
    heads = ("case", *NAMES, "chi2", "within 1 std (68 %)", "within 2 std (95 %)", "std factor for 68 %")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for case in CASES if cases == "all" else [tuple(text.split("-")) for text in cases.split(",")]:
        coils, acceleration, mask = case
        jobs = [
            simulated(image, i, (coils, int(acceleration), mask), extra) for i, image in enumerate(images)
        ]
        with ProcessPoolExecutor(2) as pool:
            items = [done["item"] for done in pool.map(solve, jobs)]
        rows = [
            cell(
                {
                    key: np.mean([item["table"][name][key] for item in items])
                    for key in ("psnr", "ssim", "nmse")
                }
            )
            for name in NAMES
        ]
        shares = []
        for key in ("within_1_std", "within_2_std"):
            share = [100 * item["facts"][key] for item in items]
            shares.append(f"{np.mean(share):.0f} % ({min(share):.0f}–{max(share):.0f})")
        chi2 = np.mean([np.mean(item["chi2_per_sample"]) for item in items])
        factor = np.mean([item["facts"]["std_factor"] for item in items])
        print(
            f"| {coils} {acceleration}x {mask} | "
            + " | ".join((*rows, f"{chi2:.2f}", *shares, f"{factor:.2f}"))
            + " |",
            flush=True,
        )


def prospective(data: Path, extra: list[str], keep: Path | None) -> None:
    """The mask is not told; the reference is another group's reconstruction, matched by one scalar."""
    from invdiff_mri import metrics
    from invdiff_mri.domain import TITLES

    with tempfile.TemporaryDirectory() as temporary:
        folder = (keep or Path(temporary)) / "brain8ch"
        with np.load(data / "mri_kspace/brain8ch_poisson8x_ref.npz") as file:
            kspace = file["kspace_bart"]
            reference = np.abs(file["reference_maps_image"][0])
        path = Path(temporary) / "brain8ch.npz"
        np.savez(path, kspace=kspace)
        result = solve([f"input.path={path}", *extra], folder)
        with np.load(next((folder / "items").iterdir()) / "result.npz") as file:
            images = {name: np.abs(file[name]) for name in (*TITLES, "mean")}
    item = result["item"]
    print(
        {key: item["notes"][key] for key in ("samples", "acceleration", "coil maps", "noise", "acquisition")}
    )
    print(f"chi2 of samples {np.mean(item['chi2_per_sample']):.2f}; facts {item['facts']}\n")
    print("| method | PSNR / SSIM / NMSE after one scalar |\n|---|---|")
    for name, image in images.items():
        # One scalar: the reference is in units of its own.
        scale = (image * reference).sum() / (image**2).sum()
        print(f"| {TITLES.get(name, 'posterior mean')} | {cell(metrics.compare(reference, scale * image))} |")


def tune_baselines(data: Path) -> None:
    grid = (0.003, 0.005, 0.008, 0.012, 0.02)
    images = slices(data, "train", 4)
    for coils, acceleration in (("multi", 4), ("multi", 8), ("single", 4), ("single", 8)):
        for weight in grid:
            extra = [
                "sampler=plug_and_play",
                "sampler.steps=1",
                "samples=1",
                f"domain.baselines.wavelet={weight}",
                f"domain.baselines.tv={weight}",
            ]
            jobs = [
                simulated(image, i, (coils, acceleration, "equispaced"), extra)
                for i, image in enumerate(images)
            ]
            with ProcessPoolExecutor(2) as pool:
                items = [done["item"] for done in pool.map(solve, jobs)]
            row = {
                name: np.mean([item["table"][name]["psnr"] for item in items])
                for name in ("L1-wavelet", "TV")
            }
            print(
                coils,
                acceleration,
                weight,
                {name: round(float(value), 2) for name, value in row.items()},
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("head", "slices", "prospective", "tune-baselines"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--count", type=int, default=10, help="number of slices")
    parser.add_argument("--cases", default="all", help="of slices: multi-4-equispaced,single-8-random,...")
    parser.add_argument("--keep", type=Path, help="keep the run directories here")
    parser.add_argument("overrides", nargs="*", help="settings of the run as key=value")
    arguments = parser.parse_intermixed_args()
    if arguments.what == "head":
        head(arguments.data, arguments.overrides, arguments.keep)
    elif arguments.what == "slices":
        test_slices(arguments.data, arguments.overrides, arguments.split, arguments.count, arguments.cases)
    elif arguments.what == "prospective":
        prospective(arguments.data, arguments.overrides, arguments.keep)
    else:
        tune_baselines(arguments.data)
    closing(f"mri.py {arguments.what} DATA", arguments.overrides, 2)


if __name__ == "__main__":
    main()
