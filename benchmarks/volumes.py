"""A whole volume from few views, with and without coupling of its slices.

    python benchmarks/volumes.py table DATA            a real CT volume of 3 mm voxels at 8, 16 and 30 views
    python benchmarks/volumes.py tune DATA             rho and tau, on a held-out training head at 2 mm
    python benchmarks/volumes.py anatomy DATA          the chest prior on chest slices and on this pelvis
    python benchmarks/volumes.py heads DATA            24 MR slices of a test subject, simulated scans

DATA is the folder of the shared data. Projections are simulated on a grid twice as fine. No training
volume of CT exists there: `tune` takes a volume of MR slices, with grey values as if they were HU.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
from common import closing, solve
from ct import slices

VOLUME = "ct_test/vol_example_ct_3mm.npz"
PLANES = ("psnr", "psnr_axial", "psnr_coronal", "psnr_sagittal", "ssim", "rmse_hu")
METHODS = {
    "slice by slice": ["sampler=volume", "sampler.rho=0"],
    "coupled along z": ["sampler=volume"],
    "DiffusionMBIR, uncoupled": ["sampler=diffusion_mbir", "sampler.rho=0"],
    "DiffusionMBIR": ["sampler=diffusion_mbir"],
    "DiffusionMBIR, one noise": ["sampler=diffusion_mbir", "sampler.shared_noise=true"],
}


def volume_of(path: Path, views: int, extra: list[str]) -> list[str]:
    return [
        "domain=ct",
        "operator=sparse_view",
        f"operator.views={views}",
        "operator.volume=true",
        f"input.path={path}",
        "input.axes=x,y,z",
        *extra,
    ]


def table(data: Path, extra: list[str], keep: Path | None) -> None:
    print("| views | method | " + " | ".join(PLANES) + " | chi2 | s |\n" + "|---" * (len(PLANES) + 4) + "|")
    for views in (8, 16, 30):
        shown: set[str] = set()
        for name, settings in METHODS.items():
            overrides = volume_of(data / VOLUME, views, ["samples=1", *settings, *extra])
            if shown:
                overrides.append("run.baselines=false")
            folder = None if keep is None else keep / f"{views}-{name.replace(' ', '-').replace(',', '')}"
            result = solve(overrides, folder)
            item, seconds = result["item"], result["seconds"]
            rows = {
                key: row for key, row in item["table"].items() if key not in ("posterior mean", "one sample")
            }
            rows = {} if shown else rows
            rows[name] = item["table"]["one sample"]
            for title, row in rows.items():
                cells = [f"{row[key]:.3f}" if key == "ssim" else f"{row[key]:.2f}" for key in PLANES]
                chi2 = f"{item['chi2_per_sample'][0]:.2f}" if title == name else "–"
                spent = f"{seconds['sampling']:.0f}" if title == name else "–"
                print(f"| {views} | {title} | " + " | ".join(cells) + f" | {chi2} | {spent} |", flush=True)
            shown.add(name)


def tune(data: Path, extra: list[str]) -> None:
    with np.load(data / "mri_train/brain128_nichart_train.npz") as file:
        images = file["images"][(file["subject"] == 22) & (file["contrast"] == 0)]
    middle = len(images) // 2
    hu = (-1000 + 1200 * images[middle - 16 : middle + 16].astype(np.float32) / 255).transpose(2, 1, 0)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "head.npz"
        np.savez(path, hu=hu, spacing=np.array([2.0, 2.0, 2.0]))
        for views in (8, 30):
            for rho in (0, 0.001, 0.003, 0.01):
                for tau in (0.005, 0.02, 0.05) if rho else (0.02,):
                    settings = ["sampler=volume", f"sampler.rho={rho}", f"sampler.tau={tau}"]
                    overrides = volume_of(
                        path, views, ["samples=1", "run.baselines=false", *settings, *extra]
                    )
                    row = solve(overrides)["item"]["table"]["one sample"]
                    print(views, rho, tau, {key: round(row[key], 3) for key in PLANES}, flush=True)


def anatomy(data: Path, extra: list[str]) -> None:
    """Gain over TV of the same sampler on the anatomy that the prior knows and on another one."""
    print("| anatomy | TV | posterior mean | gain (dB) |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        with np.load(data / VOLUME) as file:
            pelvis = np.moveaxis(file["hu"], 2, 0).transpose(0, 2, 1)
        chest = [image.reshape(128, 2, 128, 2).mean(axis=(1, 3)) for image in slices(data, "test", 5)]
        other = [pelvis[k] for k in np.linspace(20, len(pelvis) - 20, 5).astype(int)]
        for name, images in (("chest (trained on)", chest), ("pelvis and abdomen", other)):
            rows = []
            for number, image in enumerate(images):
                path = Path(temporary) / f"{number}.npz"
                np.savez(path, hu=image, pixel_mm=2.8 if image.shape[0] == 128 else 3.0)
                item = solve(["domain=ct", "operator.views=16", f"input.path={path}", "samples=4", *extra])[
                    "item"
                ]
                rows.append([item["table"][key]["psnr"] for key in ("TV", "posterior mean")])
            tv, mean = np.mean(rows, axis=0)
            print(f"| {name} | {tv:.2f} | {mean:.2f} | {mean - tv:+.2f} |", flush=True)


def heads(data: Path, extra: list[str]) -> None:
    """MR: the coupling's gain over slices by themselves, where the phase is the same in all of them."""
    import nibabel

    with np.load(data / "mri_test/brain128_nichart_test.npz") as file:
        images = file["images"][(file["subject"] == file["subject"][0]) & (file["contrast"] == 0)]
    middle = len(images) // 2
    volume = np.moveaxis(images[middle - 12 : middle + 12], 0, 2).astype(np.float32)
    print("| acquisition | TV | slice by slice | coupled along z | by direction |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "head.nii.gz"
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([2.0, 2.0, 2.0, 1.0])), path)
        for coils in ("single", "multi"):
            common = [
                "domain=mri",
                "sampler=volume",
                f"input.path={path}",
                "input.slices=0:24",
                "operator.volume=true",
                f"operator.single_coil={str(coils == 'single').lower()}",
                "samples=1",
            ]
            rows = []
            for rho in ("0", "0.003"):
                item = solve([*common, f"sampler.rho={rho}", *extra])["item"]
                rows.append(item["table"])
            slices_of, whole = rows[0]["one sample"], rows[1]["one sample"]
            parts = [f"{whole[key] - slices_of[key]:+.2f}" for key in PLANES[1:4]]
            cells = [f"{row['psnr']:.2f}" for row in (rows[0]["TV"], slices_of, whole)]
            print("| " + " | ".join([f"{coils} 4x", *cells, " / ".join(parts)]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("table", "tune", "anatomy", "heads"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--keep", type=Path, help="keep the run directories here")
    parser.add_argument("overrides", nargs="*", help="settings of the run as key=value")
    arguments = parser.parse_intermixed_args()
    if arguments.what == "table":
        table(arguments.data, arguments.overrides, arguments.keep)
    elif arguments.what == "tune":
        tune(arguments.data, arguments.overrides)
    elif arguments.what == "heads":
        heads(arguments.data, arguments.overrides)
    else:
        anatomy(arguments.data, arguments.overrides)
    closing(f"volumes.py {arguments.what} DATA", arguments.overrides, 1)


if __name__ == "__main__":
    main()
