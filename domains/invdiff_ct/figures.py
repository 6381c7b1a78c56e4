"""The pictures of a CT report, all on one window."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from invdiff import Estimates, Figure, Posterior, Problem
from invdiff.imaging import acquisition_figure, canvas, planes_figure, save, show
from invdiff_ct.baselines import TITLES

if TYPE_CHECKING:
    from invdiff_ct.item import Item


def draw_figures(problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> list[Figure]:
    """Sinogram and baselines; posterior mean, std and samples; errors where the truth is known."""
    item: Item = problem.context[0]
    mean, std, samples = item.maps(posterior)
    window = item.prepared.window
    # Lungs and soft tissue both: x from 0 to .65 is -1000 to 300 HU.
    top = 0.65 if window is not None else float(np.percentile(mean[item.seen], 99.7)) * 1.05
    span = f"{window.low:g} to {window.low + top * window.width:g} HU" if window else "0 to 99.7 %"
    classical = {TITLES[name]: item.prepared.image(value) for name, value in baselines.items()}

    page, axes = canvas(1 + len(classical))
    lines = item.prepared.lines.numpy() * item.prepared.unit
    axes[0].imshow(lines, cmap="gray", aspect="auto", interpolation="nearest")
    axes[0].set_title("line integrals", fontsize=10)
    axes[0].set_xlabel("detector", fontsize=8)
    axes[0].set_ylabel("view", fontsize=8)
    axes[0].tick_params(labelsize=7)
    for axis, (name, image) in zip(axes[1:], classical.items(), strict=True):
        show(axis, image, name, top)
    path = save(page, folder / f"{problem.id}_measurement.png")
    caption = f"What was measured, and the classical reconstructions from it; window {span}."
    figures = [Figure("Measurement and classical reconstructions", path, caption)]

    page, axes = canvas(4)
    show(axes[0], mean, "posterior mean", top)
    spread = max(float(np.percentile(std, 99.7)), 1e-12)
    if len(samples) > 1:
        level = f"{spread * window.width:.0f} HU" if window else f"{100 * spread / top:.0f} % of window"
        show(axes[1], std, f"posterior std (0 to {level})", spread, "magma")
    else:
        axes[1].set_axis_off()
    if item.reference is not None:
        show(axes[2], item.reference, "reference", top)
        show(axes[3], 5 * np.abs(mean - item.reference), "|error| of the mean, ×5", top, "magma")
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
    errors = classical if item.reference is not None else {}
    page, axes = canvas(max(count + len(errors), 2))
    for axis, image in zip(axes, samples[:count], strict=False):
        show(axis, image, "sample", top)
    for axis, (name, image) in zip(axes[count:], errors.items(), strict=False):
        assert item.reference is not None
        show(axis, 5 * np.abs(image - item.reference), f"|error| of {name}, ×5", top, "magma")
    for axis in axes[count + len(errors) :]:
        axis.set_axis_off()
    path = save(page, folder / f"{problem.id}_samples.png")
    caption = "Independent samples: where they differ, the scan does not decide."
    figures.append(Figure("Samples", path, caption))
    if problem.acquisition is not None:
        figures.append(acquisition_figure(problem, folder, "views"))
    return figures


def draw_volume(problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> list[Figure]:
    """Three planes through the middle: every method, its error where the truth is known, the spread."""
    item: Item = problem.context[0]
    mean, std, _ = item.maps(posterior)
    top, window = 0.65, item.prepared.window
    span = f"{window.low:g} to {window.low + top * window.width:g} HU" if window else "0 to .65"
    images = {TITLES[name]: item.prepared.image(value) for name, value in baselines.items()}
    images["posterior mean"] = mean
    if item.reference is not None:
        images["reference"] = item.reference
    figures = []
    pages = [("planes", "Three planes", images, top, "gray", f"Planes through the middle; window {span}.")]
    if item.reference is not None:
        errors = {name: 5 * np.abs(image - item.reference) for name, image in images.items()}
        del errors["reference"]
        caption = "Absolute errors, times five, on the same window."
        pages.append(("errors", "Errors in three planes", errors, top, "magma", caption))
    if len(posterior.samples) > 1:
        spread = max(float(np.percentile(std, 99.7)), 1e-12)
        level = f"{spread * window.width:.0f} HU" if window else f"{spread:.3g}"
        caption = f"Spread of the samples, 0 to {level}."
        pages.append(("std", "Posterior std in three planes", {"std": std}, spread, "magma", caption))
    for name, title, shown, limit, colours, caption in pages:
        page = planes_figure(shown, limit, colours)
        figures.append(Figure(title, save(page, folder / f"{problem.id}_{name}.png"), caption))
    return figures
