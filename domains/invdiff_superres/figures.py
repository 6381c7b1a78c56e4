"""The pictures of a super-resolution report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from invdiff import Estimates, Figure, Posterior, Problem
from invdiff.imaging import canvas, save, show
from invdiff_superres.baselines import TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from invdiff_superres.item import Item


def draw_figures(problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> list[Figure]:
    """Data, best classical, mean, samples, std, reference, error; the same where the std is largest."""
    item: Item = problem.context
    mean, std, samples = item.maps(posterior)
    classical = item.image(baselines["consistent"]) if baselines else None
    panels: list[tuple[str, np.ndarray]] = [("data, nearest", _enlarged(item))]
    if classical is not None:
        panels.append((TITLES["consistent"], classical))
    panels.append(("posterior mean", mean))
    panels += [(f"sample {number + 1}", sample) for number, sample in enumerate(samples[:2])]
    if item.reference is not None:
        panels.append(("reference", item.reference))
    whole = (slice(None), slice(None))
    figures = []
    aspect = mean.shape[-2] / mean.shape[-1]
    page, axes = canvas(len(panels), aspect)
    for axis, (name, image) in zip(axes, panels, strict=True):
        _picture(axis, image, whole, name)
    caption = "Data, the best classical picture, the posterior mean and draws from the posterior."
    figures.append(Figure("Result", save(page, folder / f"{problem.id}_result.png"), caption))

    spread = max(float(np.percentile(std, 99.7)), 1e-12)
    maps = [(f"posterior std (0 to {255 * spread:.0f} grey levels)", std.mean(axis=0), spread)]
    if item.reference is not None:
        maps.append(("|error| of the mean, same window", np.abs(mean - item.reference).mean(axis=0), spread))
        if classical is not None:
            error = np.abs(classical - item.reference).mean(axis=0)
            maps.append((f"|error| of {TITLES['consistent']}", error, spread))
    page, axes = canvas(max(len(maps), 2), aspect)
    for axis, (name, values, top) in zip(axes, maps, strict=False):
        show(axis, values, name, top, "magma")
    for axis in axes[len(maps) :]:
        axis.set_axis_off()
    if posterior.claim == "point" or len(samples) < 2:
        caption = "No spread: one sample, or a point estimator, says nothing about uncertainty."
    else:
        caption = "Mean over channels. Bright std means that the data leave it open."
    figures.append(Figure("Spread and error", save(page, folder / f"{problem.id}_std.png"), caption))

    window = _brightest(std.mean(axis=0), min(48, *mean.shape[-2:]))
    page, axes = canvas(len(panels))
    for axis, (name, image) in zip(axes, panels, strict=True):
        _picture(axis, image, window, name)
    caption = "The window of 48 pixels in which the samples differ most."
    figures.append(Figure("Where it is open", save(page, folder / f"{problem.id}_zoom.png"), caption))
    return figures


def _enlarged(item: Item) -> np.ndarray:
    tall, wide = item.scale
    return np.repeat(np.repeat(item.picture.values, tall, axis=1), wide, axis=2)


def _picture(axis: Axes, image: np.ndarray, window: tuple[slice, slice], name: str) -> None:
    shown = np.clip(image[:, window[0], window[1]], 0, 1)
    if len(shown) == 1:
        show(axis, shown[0], name, 1.0)
        return
    axis.imshow(np.moveaxis(shown, 0, 2), interpolation="nearest")
    axis.set_title(name, fontsize=10)
    axis.set_axis_off()


def _brightest(values: np.ndarray, side: int) -> tuple[slice, slice]:
    """The square of that side with the largest mean."""
    total = np.pad(values.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return slice(int(top), int(top) + side), slice(int(left), int(left) + side)
