"""The pictures of an MR report, all magnitudes on one window."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from invdiff import Estimates, Figure, Posterior, Problem
from invdiff.imaging import acquisition_figure, canvas, save, show

if TYPE_CHECKING:
    from invdiff_mri.domain import Item


def draw_figures(problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> list[Figure]:
    """Measurement and baselines; posterior mean, std and samples; error where the truth is known."""
    from invdiff_mri.domain import TITLES, magnitudes

    item: Item = problem.context[0]
    mean, std, samples = magnitudes(item, posterior)
    top = float(np.percentile(mean, 99.7)) * 1.05
    classical = {name: np.abs(item.image(value[None])[0]) for name, value in baselines.items()}
    mask = item.prepared.measurement.operator.mask.numpy()  # type: ignore[attr-defined]
    kspace = problem.measurement.y.square().sum(dim=(0, 1)).sqrt().numpy()
    aspect = mean.shape[0] / mean.shape[1]
    figures = []

    page, axes = canvas(2 + len(classical), aspect)
    show(axes[0], mask.astype(float), "sampling mask", 1.0)
    axes[0].text(
        0.5,
        -0.02,
        "y: readout, x: phase encode",
        transform=axes[0].transAxes,
        ha="center",
        va="top",
        fontsize=7,
    )
    log = np.log10(np.maximum(kspace, 1e-12))
    floor = np.log10(max(float(kspace.max()), 1e-12)) - 4
    shown = np.where(mask, np.clip((log - floor) / 4, 0, 1), 0)
    show(axes[1], shown, "measured k-space (log)", 1.0)
    for axis, (name, image) in zip(axes[2:], classical.items(), strict=True):
        show(axis, image, TITLES.get(name, name), top)
    path = save(page, folder / f"{problem.id}_measurement.png")
    caption = "What was measured, and the classical reconstructions from it."
    figures.append(Figure("Measurement and classical reconstructions", path, caption))

    reference = item.reference
    page, axes = canvas(4, aspect)
    show(axes[0], mean, "posterior mean", top)
    spread = max(float(np.percentile(std, 99.7)), 1e-12)
    if len(samples) > 1:
        show(axes[1], std, f"posterior std (0 to {100 * spread / top:.0f} % of window)", spread, "magma")
    else:
        axes[1].set_axis_off()
    if reference is not None:
        show(axes[2], reference, "reference", top)
        shown = item.comparable(posterior.mean[None])[0]
        show(axes[3], 5 * np.abs(shown - reference), "|error| of the mean, ×5", top, "magma")
    else:
        axes[2].set_axis_off()
        axes[3].set_axis_off()
    path = save(page, folder / f"{problem.id}_posterior.png")
    if posterior.claim == "point":
        caption = "This sampler is a point estimator: its std is not an uncertainty."
    else:
        caption = "Mean and spread of the samples; bright std means that the data leave it open."
    figures.append(Figure("Posterior", path, caption))

    count = min(3, len(samples))
    errors = classical if reference is not None else {}
    page, axes = canvas(max(count + len(errors), 2), aspect)
    for axis, image in zip(axes, samples[:count], strict=False):
        show(axis, image, "sample", top)
    if reference is not None:
        compared = {name: item.comparable(value[None])[0] for name, value in baselines.items()}
        for axis, (name, image) in zip(axes[count:], compared.items(), strict=False):
            title = f"|error| of {TITLES.get(name, name)}, ×5"
            show(axis, 5 * np.abs(image - reference), title, top, "magma")
    for axis in axes[count + len(errors) :]:
        axis.set_axis_off()
    path = save(page, folder / f"{problem.id}_samples.png")
    caption = "Independent samples: where they differ, the scan does not decide."
    figures.append(Figure("Samples", path, caption))
    if problem.acquisition is not None:
        figures.append(acquisition_figure(problem, folder, "phase-encode lines"))
    return figures
