"""The pictures of a registration's report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import Figure
from invdiff.imaging import page_of, save
from invdiff_deformation import flow
from invdiff_deformation.item import Item
from invdiff_deformation.jacobian import jacobian
from invdiff_deformation.judge import Drawn, warped_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWS = 8
LINES = 24  # of the drawn grid, along the longer side
COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#8250df", "#bf8700")


class View:
    """A plane of the grid as it is shown: which axes, at which voxel of the third.

    NIfTI planes are turned so that the first axis runs to the right and the second up; pictures stay as they
    are.
    """

    def __init__(self, item: Item, axis: int | None, at: int = 0) -> None:
        self.item, self.axis, self.at = item, axis, at
        kept = [a for a in range(item.grid.dimensions) if a != axis]
        self.rows = item.fixed.rows
        self.vertical, self.horizontal = kept if self.rows else kept[::-1]
        self.spacing = item.grid.spacing

    def plane(self, values: np.ndarray) -> np.ndarray:
        """[vertical, horizontal] of a map on the grid."""
        flat = values if self.axis is None else values.take(self.at, self.axis)
        return flat if self.rows else flat.T

    @property
    def ratio(self) -> float:
        """Height over width of a voxel as shown."""
        return self.spacing[self.vertical] / self.spacing[self.horizontal]

    @property
    def tall(self) -> float:
        """Height over width of the plane."""
        shape = self.item.grid.shape
        return self.ratio * shape[self.vertical] / shape[self.horizontal]

    def show(
        self, axes: Axes, values: np.ndarray, title: str, low: float, high: float, colours: str = "gray"
    ) -> None:
        """A map on its window."""
        shown = axes.imshow(
            self.plane(values),
            cmap=colours,
            vmin=low,
            vmax=high,
            aspect=self.ratio,
            origin="upper" if self.rows else "lower",
            interpolation="nearest",
        )
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
        if colours != "gray":
            bar = axes.figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.02)
            bar.ax.tick_params(labelsize=7)

    def grid_lines(self, axes: Axes, u: Float[Tensor, "d *grid"], colour: str = "#0969da") -> None:
        """Lines of the fixed grid as phi moves them, over a picture of the moving image."""
        where = (flow.identity(self.item.grid.shape) + u).numpy()
        vertical, horizontal = self.plane(where[self.vertical]), self.plane(where[self.horizontal])
        limits = axes.get_xlim(), axes.get_ylim()
        step = max(1, max(vertical.shape) // LINES)
        for k in range(0, vertical.shape[0], step):
            axes.plot(horizontal[k], vertical[k], color=colour, linewidth=0.5)
        for k in range(0, vertical.shape[1], step):
            axes.plot(horizontal[:, k], vertical[:, k], color=colour, linewidth=0.5)
        axes.set_xlim(*limits[0])
        axes.set_ylim(*limits[1])

    def contours(
        self, axes: Axes, labels: np.ndarray, colour: str | None, width: float, alpha: float = 1.0
    ) -> None:
        """Boundaries of labels."""
        plane = self.plane(labels)
        for number, label in enumerate(one for one in np.unique(plane) if one > 0):
            chosen = colour or COLOURS[number % len(COLOURS)]
            axes.contour(plane == label, levels=[0.5], colors=[chosen], linewidths=width, alpha=alpha)


def views(item: Item, spread: Float[np.ndarray, "*grid"]) -> list[View]:
    """The plane, or three planes of a volume through its largest spread."""
    if item.grid.dimensions == 2:
        return [View(item, None)]
    centre = np.unravel_index(int(np.where(item.inside, spread, -1).argmax()), spread.shape)
    return [View(item, axis, int(centre[axis])) for axis in (2, 1, 0)]


def draw_figures(drawn: Drawn, folder: Path) -> list[Figure]:
    """Images and their difference; grid, Jacobian and spread; boundaries of draws; points."""
    item, u, representative, spread = drawn.item, drawn.u, drawn.representative, drawn.std
    planes = views(item, spread)
    figures = []

    def page(columns: int) -> tuple[object, np.ndarray]:
        heights = [2.5 * view.tall + 0.3 for view in planes]
        made = page_of(2.75 * columns, sum(heights))
        return made, np.atleast_2d(made.subplots(len(planes), columns, squeeze=False, height_ratios=heights))

    if item.moving is not None:
        fixed = item.shown.fixed.numpy()
        still = item.shown.warped(torch.zeros_like(u[:1]))[0].numpy()
        warped = item.shown.warped(representative[None])[0].numpy()
        top = max(float(np.percentile(np.abs(still - fixed), 99.5)), 1e-6)
        made, axes = page(5)
        for row, view in zip(axes, planes, strict=True):
            for axis, (title, values) in zip(
                row, (("fixed", fixed), ("moving", still), ("moving, warped", warped)), strict=False
            ):
                view.show(axis, values, title, 0, 1)
            view.show(row[3], still - fixed, "difference before", -top, top, "RdBu_r")
            view.show(row[4], warped - fixed, "and after", -top, top, "RdBu_r")
        path = save(made, folder / f"{item.name}_images.png")  # type: ignore[arg-type]
        caption = "Warped by the representative deformation, exp of the posterior mean velocity."
        figures.append(Figure("Images", path, caption))

    made, axes = page(3)
    below = item.fixed.values if item.moving is None else still
    low, high = (float(v) for v in np.percentile(below, (0.5, 99.5)))
    growth = np.log(np.clip(jacobian(representative[None])[0].numpy(), 1e-2, None))
    reach = max(float(np.percentile(np.abs(growth), 99.5)), 0.05)
    unit = "mm" if item.grid.known else "voxels"
    for row, view in zip(axes, planes, strict=True):
        view.show(row[0], below, "grid of the fixed image, moved", low, high)
        view.grid_lines(row[0], representative)
        view.show(row[1], growth, "log det J", -reach, reach, "RdBu_r")
        view.show(row[2], spread, f"std of u, {unit}", 0, max(float(spread.max()), 1e-6), "magma")
    path = save(made, folder / f"{item.name}_deformation.png")  # type: ignore[arg-type]
    caption = "Blue shrinks from fixed to moving, red grows. Bright std: the data leave the place open."
    figures.append(Figure("Deformation and its spread", path, caption))

    if item.labels is not None:
        made, axes = page(2)
        before = warped_labels(item, torch.zeros_like(u[0]))
        base, some = item.shown.fixed.numpy(), drawn.labels[:DRAWS]
        for row, view in zip(axes, planes, strict=True):
            view.show(row[0], base, "labels before", 0, 1)
            view.contours(row[0], item.labels[0], "white", 1.2)
            view.contours(row[0], before, None, 1.0)
            view.show(row[1], base, f"labels warped by {len(some)} draws", 0, 1)
            view.contours(row[1], item.labels[0], "white", 1.2)
            for one in some:
                view.contours(row[1], one, None, 0.7, 0.6)
        path = save(made, folder / f"{item.name}_labels.png")  # type: ignore[arg-type]
        caption = (
            "White: boundaries in the fixed image. Colours: those of the moving image, before and after."
        )
        figures.append(Figure("Boundaries", path, caption))
    if item.judged is not None:
        figures.append(_points_figure(item, u, folder))
    return figures


def _points_figure(item: Item, u: Float[Tensor, "samples d *grid"], folder: Path) -> Figure:
    """Seen against predicted displacement, one panel an axis."""
    judged = item.judged
    assert judged is not None
    seen = judged.vectors @ item.frame()
    drawn = item.predicted(u, judged)
    d = seen.shape[1]
    page = page_of(2.8 * d, 2.8)
    axes = np.atleast_1d(page.subplots(1, d))
    for k, axis in enumerate(axes):
        middle, spread = drawn[:, :, k].mean(axis=0), drawn[:, :, k].std(axis=0)
        bars = 1.645 * np.sqrt(spread**2 + judged.std**2)
        axis.errorbar(seen[:, k], middle, bars, fmt=".", color="#0969da", elinewidth=0.6, markersize=3)
        ends = [float(min(seen[:, k].min(), middle.min())), float(max(seen[:, k].max(), middle.max()))]
        axis.plot(ends, ends, color="#1b1f24", linewidth=0.7)
        axis.set_xlabel(f"seen, axis {k + 1}, mm", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("predicted, 90 % interval", fontsize=8)
    what = "held-out points" if item.held_out is not None else "the posterior's own points"
    path = save(page, folder / f"{item.name}_points.png")
    return Figure("Points", path, f"Displacement of {what}, with noise of the points in the interval.")
