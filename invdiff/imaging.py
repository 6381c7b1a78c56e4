"""What packs of images share: metrics, the coverage of a std map, pictures, files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.ndimage import uniform_filter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from invdiff.domain import Figure as ReportFigure
    from invdiff.domain import Problem

DPI = 110


def psnr(
    reference: Float[np.ndarray, "*shape"], image: Float[np.ndarray, "*shape"], peak: float = 1.0
) -> float:
    """`10 log10(peak^2 / mean squared error)` in dB."""
    error = float(((reference.astype(np.float64) - image) ** 2).mean())
    return float(10 * np.log10(peak**2 / max(error, 1e-20 * peak**2)))


def plane_psnr(
    reference: Float[np.ndarray, "z y x"],
    image: Float[np.ndarray, "z y x"],
    inside: Bool[np.ndarray, "z y x"],
    peak: float = 1.0,
) -> dict[str, float]:
    """PSNR by direction: the mean over planes of which more than a twentieth is `inside`."""
    row = {}
    for axis, name in enumerate(("axial", "coronal", "sagittal")):
        planes = range(reference.shape[axis])
        kept = [k for k in planes if inside.take(k, axis).mean() > 0.05] or list(planes)
        each = [psnr(reference.take(k, axis), image.take(k, axis), peak) for k in kept]
        row[f"psnr_{name}"] = float(np.mean(each))
    return row


def ssim_map(
    reference: Float[np.ndarray, "y x"], image: Float[np.ndarray, "y x"], peak: float = 1.0
) -> Float[np.ndarray, "y x"]:
    """SSIM of every pixel (Wang et al. 2004): uniform 7 x 7 window, k1 = .01, k2 = .03, sample covariances.

    As scikit-image with its defaults; a border of three pixels sees less than the window.
    """
    v, w = reference.astype(np.float64), image.astype(np.float64)
    unbiased = 49 / 48
    mean_v, mean_w = uniform_filter(v, 7), uniform_filter(w, 7)
    var_v = unbiased * (uniform_filter(v * v, 7) - mean_v**2)
    var_w = unbiased * (uniform_filter(w * w, 7) - mean_w**2)
    cov = unbiased * (uniform_filter(v * w, 7) - mean_v * mean_w)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    top = (2 * mean_v * mean_w + c1) * (2 * cov + c2)
    found: np.ndarray = top / ((mean_v**2 + mean_w**2 + c1) * (var_v + var_w + c2))
    return found


def coverage(
    reference: Float[np.ndarray, "*shape"],
    mean: Float[np.ndarray, "*shape"],
    std: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
    reference_noise: Float[np.ndarray, "*shape"] | float = 0.0,
) -> dict[str, float]:
    """Share of the mask's pixels within 1 and 2 std of the mean (nominal .683 and .954).

    `std_factor` is what the std would have to be multiplied by for .683. `reference_noise` is the std of
    the reference's own noise, added in quadrature: a measured reference is not the truth.
    """
    total = np.sqrt(std**2 + np.asarray(reference_noise) ** 2)
    z = (np.abs(reference - mean) / np.maximum(total, 1e-12))[mask]
    return {
        "within_1_std": float((z < 1).mean()),
        "within_2_std": float((z < 2).mean()),
        "std_factor": float(np.quantile(z, 0.6827)),
    }


def std_scale(config: Mapping[str, Any]) -> float:
    """Factor on the std map that `domain.std_scale` names for one sampler with one prior; 1 for others."""
    fitted = config["domain"]["std_scale"]
    same = all(config[key]["name"] == fitted[key] for key in ("sampler", "prior"))
    return float(fitted["factor"]) if same else 1.0


def canvas(columns: int, aspect: float = 1.0) -> tuple[Figure, list[Axes]]:
    """A row of panels for images of that height over width."""
    page = page_of(2.6 * columns, 2.6 * aspect + 0.3)
    return page, list(np.atleast_1d(page.subplots(1, columns)).flat)


def show(axes: Axes, image: Float[np.ndarray, "y x"], title: str, top: float, colours: str = "gray") -> None:
    """An image on the window [0, top]."""
    axes.imshow(image, cmap=colours, vmin=0, vmax=top, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def three_planes(volume: Float[np.ndarray, "z y x"]) -> list[Float[np.ndarray, "rows columns"]]:
    """Axial, coronal and sagittal planes through the middle; z runs up."""
    z, y, x = (length // 2 for length in volume.shape)
    return [volume[z], volume[::-1, y], volume[::-1, :, x]]


def planes_figure(
    images: Mapping[str, Float[np.ndarray, "z y x"]], top: float, colours: str = "gray"
) -> Figure:
    """One column an image, its three planes below each other, on the window [0, top]."""
    shapes = [plane.shape for plane in three_planes(next(iter(images.values())))]
    heights = [rows / columns for rows, columns in shapes]
    page = page_of(max(2.3 * len(images), 2.6), 2.3 * sum(heights) + 0.4)
    axes = np.atleast_2d(page.subplots(3, len(images), squeeze=False, height_ratios=heights))
    for column, (name, image) in enumerate(images.items()):
        for row, plane in enumerate(three_planes(image)):
            show(axes[row, column], plane, name if row == 0 else "", top, colours)
    return page


def acquisition_figure(problem: Problem, folder: Path, what: str) -> ReportFigure:
    """The order in which candidates were measured: one mark each, turn by turn upwards."""
    from invdiff.domain import Figure as ReportFigure

    acquisition = problem.acquisition
    assert acquisition is not None
    page = page_of(8.0, 2.4)
    axes = page.subplots()
    for number, turn in enumerate(acquisition.turns):
        axes.scatter(
            turn.chosen,
            [number] * len(turn.chosen),
            c=["#1b1f24" if number == 0 else "#0969da"],
            s=40,
            marker="|",
            linewidths=1.5,
        )
    axes.set_xlim(-1, acquisition.count)
    axes.set_ylim(-0.6, len(acquisition.turns) - 0.4)
    axes.set_xlabel(what, fontsize=9)
    axes.set_ylabel("turn", fontsize=9)
    axes.tick_params(labelsize=8)
    path = save(page, folder / f"{problem.id}_acquisition.png")
    caption = (
        f"{len(acquisition.order)} of {acquisition.count} {what} measured, by policy {acquisition.policy}; "
        "black: the start, which no policy chose."
    )
    return ReportFigure("What was measured, in order", path, caption)


def page_of(width: float, height: float) -> Figure:
    """An empty page, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(page: Figure, path: Path) -> Path:
    """A picture, whole or not at all, the same bytes for the same content."""
    part = path.with_name("." + path.name)
    page.savefig(part, dpi=DPI, facecolor="white", metadata={"Software": None})
    part.replace(path)
    return path


def write_nifti(
    path: Path, volume: Shaped[np.ndarray, "slice y x"], affine: Float[np.ndarray, "4 4"] | None
) -> None:
    """A real volume as float32, array axes (y, x, slice) as in the affine; whole or not at all."""
    import nibabel

    data = np.moveaxis(np.asarray(volume, dtype=np.float32), 0, 2)
    image = nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine)
    image.header["descrip"] = b"invdiff; not for clinical use"
    part = path.with_name("." + path.name)
    nibabel.save(image, part)
    os.replace(part, path)


def write_npz(path: Path, **arrays: Shaped[np.ndarray, "..."]) -> None:
    """Compressed npz, whole or not at all."""
    part = path.with_name("." + path.name)
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    os.replace(part, path)
