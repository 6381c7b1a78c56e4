"""A volume of slices as one item: one unit for all of them, written and judged as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import Estimates, Figure, GaussianNoise, InputError, Posterior, Problem, StackedOperator, Summary
from invdiff.imaging import plane_psnr, planes_figure, psnr, save, write_nifti, write_npz
from invdiff_mri import metrics
from invdiff_mri.baselines import BaselineSettings, all_baselines

if TYPE_CHECKING:
    from invdiff_mri.domain import Item


@dataclass(frozen=True)
class Stack:
    """The slices of a volume, in order.

    Attributes:
        items: one a slice, all in one unit.
        slice_batch: slices of one network call; None: by their size.
    """

    items: tuple[Item, ...]
    slice_batch: int | None = None

    def magnitudes(self, x: Float[Tensor, "slice 2 y x"]) -> Float[np.ndarray, "slice y x"]:
        """|x| in scan units."""
        return np.stack([np.abs(item.image(x[z][None])[0]) for z, item in enumerate(self.items)])

    def comparable(self, x: Float[Tensor, "slice 2 y x"]) -> Float[np.ndarray, "slice y x"]:
        """What is held against the reference, see `Item.comparable`."""
        return np.stack([item.comparable(x[z][None])[0] for z, item in enumerate(self.items)])

    @property
    def reference(self) -> Float[np.ndarray, "slice y x"] | None:
        """Reference magnitudes, where they are known."""
        parts = [item.reference for item in self.items]
        return None if any(part is None for part in parts) else np.stack(parts)  # type: ignore[arg-type]


def stacked(problems: Sequence[Problem], name: str, slice_batch: int | None) -> Problem:
    """One problem of all slices; the unit is the upper quartile of the slices' own.

    Raises:
        InputError: for fewer than two slices, or a noise level that is to be inferred.
    """
    if len(problems) < 2:
        raise InputError(
            f"operator.volume=true needs two slices or more and {len(problems)} is chosen; give input.slices="
        )
    if any(type(problem.measurement.noise) is not GaussianNoise for problem in problems):
        raise InputError(
            "an unknown noise level is inferred for one slice at a time; leave out operator.volume"
        )
    items: list[Item] = [problem.context[0] for problem in problems]
    unit = float(np.percentile([item.prepared.scale for item in items], 75))
    noise = GaussianNoise(1 / unit)
    parts = []
    for item in items:
        before = item.prepared
        measurement = replace(before.measurement, noise=noise, y=before.measurement.y * (before.scale / unit))
        parts.append(replace(item, prepared=replace(before, measurement=measurement, scale=unit)))
    operator = StackedOperator([part.prepared.measurement.operator for part in parts])  # type: ignore[misc]
    y = torch.stack([part.prepared.measurement.y for part in parts])
    first = problems[0]
    notes = {
        **first.notes,
        "slices": len(problems),
        "data scale": f"{unit:.4g}, upper quartile of the slices'",
        "sigma_y in prior units": round(1 / unit, 5),
    }
    return Problem(
        id=name,
        measurement=replace(first.measurement, operator=operator, noise=noise, y=y),
        shape=(len(problems), *first.shape),
        context=(Stack(tuple(parts), slice_batch), first.context[1]),
        notes=notes,
    )


def baselines(stack: Stack, settings: BaselineSettings) -> Estimates:
    """The classical methods slice by slice."""
    parts = [all_baselines(item.prepared.measurement, settings) for item in stack.items]
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def summarise(stack: Stack, posterior: Posterior, estimates: Estimates) -> Summary:
    """PSNR and NMSE over the volume, the mean SSIM of its slices, PSNR by direction."""
    warnings = tuple(
        {f"The data are {item.scan.simulated}.": None for item in stack.items if item.scan.simulated}
    )
    reference = stack.reference
    if reference is None:
        return Summary(convention=metrics.CONVENTION, warnings=warnings)
    peak = float(reference.max())
    table = {}
    for name, x in {
        **estimates,
        "one sample": posterior.samples[0],
        "posterior mean": posterior.mean,
    }.items():
        image = stack.comparable(x)
        slices = [metrics.compare(v, w, peak) for v, w in zip(reference, image, strict=True)]
        table[name] = {
            "psnr": psnr(reference, image, peak),
            **plane_psnr(reference, image, reference > 0.1 * peak, peak),
            "ssim": float(np.mean([row["ssim"] for row in slices])),
            "nmse": float(((reference - image) ** 2).sum() / (reference**2).sum()),
        }
    return Summary(table, {}, metrics.CONVENTION, warnings)


def write(stack: Stack, posterior: Posterior, estimates: Estimates, folder: Path) -> None:
    """Mean, std and samples as NIfTI volumes, everything as npz."""
    affine = stack.items[0].scan.affine
    samples = np.stack([stack.magnitudes(sample) for sample in posterior.samples])
    mean = stack.magnitudes(posterior.mean)
    std = samples.std(axis=0, ddof=1) if len(samples) > 1 else np.zeros_like(mean)
    write_nifti(folder / "mean.nii.gz", mean, affine)
    write_nifti(folder / "std.nii.gz", std, affine)
    for number, sample in enumerate(samples):
        write_nifti(folder / f"sample_{number:02d}.nii.gz", sample, affine)
    arrays = {name: stack.magnitudes(value) for name, value in estimates.items()}
    mask = stack.items[0].prepared.measurement.operator.mask.numpy()  # type: ignore[attr-defined]
    write_npz(folder / "result.npz", mean=mean, std=std, samples=samples, mask=mask, **arrays)


def figures(
    problem: Problem, posterior: Posterior, estimates: Estimates, titles: dict[str, str], folder: Path
) -> list[Figure]:
    """Three planes of every method, and of its error where the truth is known."""
    stack: Stack = problem.context[0]
    images = {titles.get(name, name): stack.comparable(x) for name, x in estimates.items()}
    images["posterior mean"] = stack.comparable(posterior.mean)
    top = 1.05 * float(np.percentile(images["posterior mean"], 99.7))
    reference = stack.reference
    shown = images if reference is None else {**images, "reference": reference}
    page = planes_figure(shown, top)
    path = save(page, folder / f"{problem.id}_planes.png")
    out = [Figure("Three planes", path, "Planes through the middle, all on one window.")]
    if reference is not None:
        errors = {name: 5 * np.abs(image - reference) for name, image in images.items()}
        path = save(planes_figure(errors, top, "magma"), folder / f"{problem.id}_errors.png")
        out.append(Figure("Errors in three planes", path, "Absolute errors, times five, on the same window."))
    return out
