"""Through-plane super-resolution: thick slices of a volume to thin ones.

The volume is solved as a stack of the planes that contain the thick axis, one event under a prior of slices.
Values are scaled so that the 99.5th percentile is 1, as the MR priors are. The affine of the result has the
column of the thick axis divided by the scale r, and its origin moved by ((1 / r) - 1) / 2 thick slices: the
first thin slice lies at the edge of the first thick one, not at its middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import (
    Config,
    Estimates,
    Figure,
    GaussianNoise,
    InputError,
    Measurement,
    Posterior,
    Problem,
    Summary,
    keyed_stream,
)
from invdiff.imaging import coverage, plane_psnr, planes_figure, psnr, save, write_nifti
from invdiff_superres.baselines import TITLES
from invdiff_superres.operators import Separable, matrices

ENDINGS = (".nii", ".nii.gz")
ASSUMED = 0.01  # noise level where none is given, of the 99.5th percentile
FOREGROUND = 0.1  # of the 99.5th percentile
CONVENTION = (
    "PSNR in dB with the 99.5th percentile of the reference as range, over the volume, over its foreground "
    "(above a tenth of it), and by plane"
)


@dataclass(frozen=True)
class VolumeItem:
    """A volume, its axes turned so that the thick one is y of every plane.

    Attributes:
        name: file-system safe.
        operator: thin to thick.
        unit: value of the file that is 1.
        order: axes of the file that became (plane, y, x).
        affine: of the result, in the file's axes.
        reference: the truth over `unit`, where one is known.
        crossed: whether the prior sees both sets of planes that contain the thick axis.
        warnings: sentences that a reader must not miss.
        notes: for the report.
    """

    name: str
    operator: Separable
    unit: float
    order: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]
    reference: Float[np.ndarray, "plane y x"] | None
    crossed: bool = True
    warnings: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    def file_order(self, volume: Float[np.ndarray, "plane y x"]) -> Float[np.ndarray, "i j k"]:
        """The volume in the axes of the file."""
        return np.transpose(volume, np.argsort(self.order))


def is_volume(path: Path) -> bool:
    """Whether a file is a NIfTI volume by its name."""
    return path.name.lower().endswith(ENDINGS)


def thick_axis(given: object, zooms: Float[np.ndarray, "3"], name: str) -> int:
    """The axis of the slices: given as 0, 1 or 2, else the one of the largest spacing.

    Raises:
        InputError: where two axes share the largest spacing, or the axis given is none.
    """
    if given not in (None, "auto", "x", "y"):
        if str(given) not in ("0", "1", "2"):
            raise InputError(f"operator.axis is {given!r}; expected 0, 1 or 2 for a volume")
        return int(str(given))
    order = np.argsort(zooms)
    if zooms[order[2]] < 1.05 * zooms[order[1]]:
        spaced = " x ".join(f"{value:.3g}" for value in zooms)
        raise InputError(
            f"the voxels of {name} are {spaced} mm and no axis is thicker than the others; say which with "
            "operator.axis=0, 1 or 2"
        )
    return int(order[2])


def finer_affine(affine: Float[np.ndarray, "4 4"], axis: int, scale: int) -> Float[np.ndarray, "4 4"]:
    """Of `scale` times as many slices along an axis, which cover the same space."""
    move = np.eye(4)
    move[axis, axis] = 1 / scale
    move[axis, 3] = (1 / scale - 1) / 2
    return np.asarray(affine @ move)


def read(path: Path, config: Config) -> tuple[VolumeItem, Measurement]:
    """The problem of a NIfTI file; with `domain.truth=true` it is the reference that is simulated from.

    Raises:
        InputError: for a damaged file, values that are not finite, an ambiguous axis, another forward model.
    """
    import nibabel

    settings: Mapping[str, Any] = config["operator"]
    if settings["kernel"] != "slices":
        raise InputError(f"{path.name} is a volume, for operator=thick_slices; slice it for other operators")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        image = nibabel.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:
        raise InputError(
            f"{path.name} cannot be read as NIfTI ({type(error).__name__}); the file is damaged"
        ) from None
    data = data[..., 0] if data.ndim == 4 and data.shape[3] == 1 else data
    if data.ndim != 3 or min(data.shape) < 2:
        raise InputError(f"{path.name} has axes of {data.shape}; expected a volume of three")
    if not np.isfinite(data).all():
        raise InputError(f"{path.name} holds values that are NaN or infinite; repair or mask them")
    unit = float(np.percentile(data, 99.5))
    if not unit > 0 or float(data.min()) < -0.05 * unit:
        raise InputError(
            f"{path.name} has values from {float(data.min()):.4g} to {float(data.max()):.4g}; a magnitude "
            "image is needed"
        )
    truth, scale = bool(config["domain"]["truth"]), int(settings["scale"])
    zooms = np.asarray(image.header.get_zooms()[:3], dtype=float)
    axis = thick_axis(settings["axis"], zooms, path.name)
    plane, across = (one for one in range(3) if one != axis)
    if data.shape[plane] > data.shape[across]:
        plane, across = across, plane  # fewer planes, each wider
    order = (plane, axis, across)
    stack = np.ascontiguousarray(np.transpose(data, order)) / unit
    reference = None
    if truth:
        stack = stack[:, : stack.shape[1] // scale * scale]
        reference = stack
    height = stack.shape[1] if truth else stack.shape[1] * scale
    rows, columns, kind = matrices({**settings, "axis": "y"}, height, stack.shape[2])
    operator = Separable(rows, columns, 1, kind=kind).stacked(len(stack))
    given = config["noise"]["sigma"] if config["noise"]["name"] in ("auto", "gaussian") else None
    if config["noise"]["name"] not in ("auto", "gaussian"):
        raise InputError(f"volumes take Gaussian noise and noise={config['noise']['name']} was given")
    sigma = float(given) if given is not None else ASSUMED
    y = torch.from_numpy(stack)[:, None]
    if truth:
        clean = operator(y[None])[0]
        y = GaussianNoise(sigma).sample(clean, keyed_stream(int(config["seed"]), 1))
    affine = np.asarray(image.affine, dtype=float)
    thick = zooms[axis] * (scale if truth else 1)
    notes = {
        "data": "simulated from a volume of thin slices" if truth else "thick slices as they are",
        "forward model": operator.kind,
        "thick axis": f"{axis} of the file, {len(stack)} planes that contain it",
        "slice spacing": f"{thick:.4g} mm to {thick / scale:.4g} mm",
        "noise": f"std {sigma:.3g} of the 99.5th percentile" + (" (assumed)" if given is None else ""),
    }
    warnings = ["The prior knows planes of the orientation it was trained on; these contain the slice axis."]
    if truth:
        warnings.append("The data are simulated from a volume; the forward model and the noise are ours.")
    name = path.name.split(".")[0]
    item = VolumeItem(
        name,
        operator,
        unit,
        order,
        affine if truth else finer_affine(affine, axis, scale),
        reference,
        bool(config["domain"]["crossed"]),
        tuple(warnings),
        notes,
    )
    return item, Measurement(operator, GaussianNoise(sigma), y)


def summarise(item: VolumeItem, posterior: Posterior, baselines: Estimates) -> Summary:
    """PSNR of every method and the coverage of the spread, where the truth is known."""
    if item.reference is None:
        return Summary(convention=CONVENTION, warnings=item.warnings)
    reference = item.reference
    inside = reference > FOREGROUND
    rows: dict[str, Tensor] = {TITLES[name]: value for name, value in baselines.items()}
    rows |= {"one sample": posterior.samples[0], "posterior mean": posterior.mean}
    table = {}
    for name, value in rows.items():
        image = value[:, 0].numpy()
        table[name] = {
            "psnr": psnr(reference, image),
            "psnr_foreground": psnr(reference[inside], image[inside]),
            **plane_psnr(reference, image, inside),
        }
    facts: dict[str, Any] = {}
    count = len(posterior.samples)
    if count > 1:
        std = posterior.std[:, 0].numpy() * (1 + 1 / count) ** 0.5
        facts.update(coverage(reference, posterior.mean[:, 0].numpy(), std, inside))
        facts["coverage mask"] = "foreground: above a tenth of the 99.5th percentile"
    return Summary(table, facts, CONVENTION, item.warnings)


def write(item: VolumeItem, posterior: Posterior, folder: Path) -> None:
    """Mean, std and samples as NIfTI in the file's axes and values."""
    volumes = {"mean": posterior.mean}
    if len(posterior.samples) > 1:
        volumes["std"] = posterior.std
    volumes |= {f"sample_{number:02d}": sample for number, sample in enumerate(posterior.samples)}
    for name, value in volumes.items():
        volume = item.file_order(item.unit * value[:, 0].numpy())
        write_nifti(folder / f"{name}.nii.gz", np.moveaxis(volume, 2, 0), item.affine)


def figures(problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> list[Figure]:
    """Three planes of every method, of the errors and of the spread."""
    item: VolumeItem = problem.context
    shown = (
        {"thick slices": baselines["nearest"], TITLES["consistent"]: baselines["consistent"]}
        if baselines
        else {}
    )
    shown["posterior mean"] = posterior.mean
    shown["one sample"] = posterior.samples[0]
    images = {name: value[:, 0].numpy() for name, value in shown.items()}
    if item.reference is not None:
        images["reference"] = item.reference
    pages = [("planes", "Three planes", images, 1.0, "gray", "Planes through the middle, one window.")]
    if item.reference is not None:
        errors = {name: 5 * np.abs(image - item.reference) for name, image in images.items()}
        del errors["reference"]
        pages.append(("errors", "Errors", errors, 1.0, "magma", "Absolute errors, times five."))
    if len(posterior.samples) > 1:
        spread = {"std": posterior.std[:, 0].numpy()}
        top = max(float(np.percentile(spread["std"], 99.7)), 1e-12)
        pages.append(
            ("std", "Posterior std", spread, top, "magma", f"Spread of the samples, 0 to {top:.2g}.")
        )
    found = []
    for name, title, one, top, colours, caption in pages:
        path = save(planes_figure(one, top, colours), folder / f"{problem.id}_{name}.png")
        found.append(Figure(title, path, caption))
    return found
