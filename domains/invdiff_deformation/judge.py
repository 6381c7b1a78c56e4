"""What deformations are worth: a row of metrics each, and what the draws say of their own spread."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff import Posterior
from invdiff_deformation import flow, metrics
from invdiff_deformation.item import Item
from invdiff_deformation.jacobian import jacobian

LARGEST = 40  # labels that are looked at one by one


@dataclass(frozen=True, eq=False)
class Drawn:
    """The deformations of a posterior, each made once.

    Attributes:
        item: what they register.
        posterior: its samples.
    """

    item: Item
    posterior: Posterior

    @cached_property
    def states(self) -> Float[Tensor, "samples *event"]:
        """The samples, `spread` times as far from their mean, no coordinate beyond the prior's std of 1."""
        samples, mean = self.posterior.samples, self.posterior.mean
        if self.item.spread == 1 or len(samples) < 2:
            return samples
        factor = samples.std(dim=0).clamp_min(1e-6).reciprocal().clamp(1.0, self.item.spread)
        return mean + factor * (samples - mean)

    @cached_property
    def u(self) -> Float[Tensor, "samples d *grid"]:
        """Displacements of the samples, in voxels."""
        return torch.cat([self.item.transform.displacement(z[None]) for z in self.states])

    @cached_property
    def representative(self) -> Float[Tensor, "d *grid"]:
        """exp of the mean velocity: a diffeomorphism, which the mean of u need not be."""
        return self.item.transform.displacement(self.posterior.mean[None])[0]

    @cached_property
    def std(self) -> Float[np.ndarray, "*grid"]:
        """Root of the trace of the covariance of u, in mm; zero for one sample."""
        if len(self.u) < 2:
            return np.zeros(self.item.grid.shape)
        h = self.u.new_tensor(self.item.grid.spacing).reshape(1, -1, *([1] * self.item.grid.dimensions))
        spread: np.ndarray = (self.u * h).var(dim=0).sum(dim=0).sqrt().numpy()
        return spread

    @cached_property
    def labels(self) -> Int[np.ndarray, "samples *grid"]:
        """The moving labels under every sample."""
        return np.stack([warped_labels(self.item, one) for one in self.u])


@dataclass
class Case:
    """An item with its registration, as the domain keeps it from one call to the next.

    Attributes:
        item: what is registered.
        mode: of the posterior; None where it is known in closed form.
    """

    item: Item
    mode: Float[Tensor, "*event"] | None
    _last: Drawn | None = field(default=None, repr=False)

    def drawn(self, posterior: Posterior) -> Drawn:
        """The deformations of a posterior; of the same one they are not made again."""
        if self._last is None or self._last.posterior is not posterior:
            self._last = Drawn(self.item, posterior)
        return self._last


def warped_labels(item: Item, u: Float[Tensor, "d *grid"]) -> Int[np.ndarray, "*grid"]:
    """The moving label map under a displacement, by the nearest voxel."""
    assert item.labels is not None
    labels = torch.from_numpy(item.labels[1].astype(np.float32))[None, None]
    return flow.warp(labels, u[None], to_moving=item.carried, mode="nearest")[0, 0].numpy().astype(np.int64)


def row_of(item: Item, u: Float[Tensor, "d *grid"]) -> dict[str, float]:
    """The metrics of one displacement."""
    row: dict[str, float] = {}
    if item.moving is not None:
        fixed, warped = item.shown.fixed.numpy(), item.shown.warped(u[None])[0].numpy()
        row["residual"] = float(np.sqrt(((warped - fixed)[item.inside] ** 2).mean()))
        row["ncc"] = metrics.ncc(fixed, warped, item.inside)
    if item.labels is not None:
        each = metrics.dice(item.labels[0], warped_labels(item, u))
        row["dice"] = float(np.mean(list(each.values()) or [math.nan]))
    if item.judged is not None:
        error = item.predicted(u[None], item.judged)[0] - item.judged.vectors @ item.frame()
        row["tre_mm"] = float(np.linalg.norm(error, axis=1).mean())
    if item.truth is not None:
        error = (u.numpy() - item.truth) * _spacing(item)
        row["error_mm"] = float(np.linalg.norm(error, axis=0)[item.inside].mean())
    row.update(metrics.field_figures(u, item.grid.spacing))
    return row


def _spacing(item: Item) -> Float[np.ndarray, "d *ones"]:
    return np.asarray(item.grid.spacing).reshape(-1, *([1] * item.grid.dimensions))


def facts_of(drawn: Drawn) -> dict[str, Any]:
    """Spread, coverage where something is known, sizes of labels."""
    item, u, spread = drawn.item, drawn.u, drawn.std
    facts: dict[str, Any] = {}
    inside = spread[item.inside]
    facts["std of u in mm, mean and largest"] = f"{inside.mean():.3g}, {inside.max():.3g}"
    if len(u) < 2:
        return facts
    folded = [100 * float((jacobian(one[None]) <= 0).double().mean()) for one in u]
    facts["folded % of the samples, largest"] = round(max(folded), 4)
    if item.truth is not None:
        truth, draws = item.truth * _spacing(item), u.numpy() * _spacing(item)
        everywhere = np.broadcast_to(item.inside, truth.shape)
        facts |= _covered("truth", truth[everywhere], draws[:, everywhere])
        error = np.linalg.norm(draws.mean(axis=0) - truth, axis=0)[item.inside]
        facts["correlation of std and error"] = float(np.corrcoef(error, inside)[0, 1])
    if item.judged is not None:
        seen, found = item.judged.vectors @ item.frame(), item.predicted(u, item.judged)
        what = "held-out points" if item.held_out is not None else "points, the posterior's own data"
        extra = float(np.median(item.judged.std))
        facts |= _covered(what, seen.ravel(), found.reshape(len(u), -1), extra)
    if item.labels is not None:
        facts |= sizes_of_labels(drawn) | boundary_facts(drawn)
    return facts


def _covered(what: str, truth: np.ndarray, draws: np.ndarray, extra: float = 0.0) -> dict[str, float]:
    found = metrics.coverage_of_draws(truth, draws, extra=extra)
    return {f"{what} {name}": round(value, 4) for name, value in found.items()}


def sizes_of_labels(drawn: Drawn, most: int = 5) -> dict[str, str]:
    """The size of the first labels in the fixed image, and its range over the draws."""
    assert drawn.item.labels is not None
    fixed, moving = drawn.item.labels
    facts = {}
    for label in [int(one) for one in np.intersect1d(fixed, moving) if one > 0][:most]:
        size = drawn.item.grid.voxel * (drawn.labels == label).reshape(len(drawn.u), -1).sum(axis=1)
        low, high = np.quantile(size, (0.05, 0.95))
        true = drawn.item.grid.voxel * float((fixed == label).sum())
        facts[f"size of label {label}"] = f"{true:.4g} (90 % of the draws {low:.4g} to {high:.4g})"
    return facts


def boundary_draws(drawn: Drawn) -> Float[np.ndarray, "samples voxels"]:
    """Signed distances in mm of phi(x) to the moving surface, x on the fixed one; 0 in a perfect world."""
    item = drawn.item
    assert item.labels is not None and item.moving is not None
    fixed, moving = item.labels
    found = [np.zeros((len(drawn.u), 0))]
    for label in [int(one) for one in np.intersect1d(fixed, moving) if one > 0][:LARGEST]:
        edge = metrics.surface(fixed == label) & item.inside
        distance = metrics.signed_distance(moving == label, item.moving.grid.spacing)
        where = torch.from_numpy(np.argwhere(edge).T.copy()).float() + drawn.u[:, :, torch.from_numpy(edge)]
        values = flow.sample_at(
            torch.from_numpy(distance).float()[None, None], flow.carried(where, item.carried)
        )
        found.append(values[:, 0].numpy())
    return np.concatenate(found, axis=1)


def boundary_facts(drawn: Drawn) -> dict[str, float]:
    """Coverage and error of boundaries, see `boundary_draws`.

    A surface voxel's centre lies up to a voxel inside the boundary: half of one, give or take a uniform law's
    std; `contour_std` is what an observer's hand adds.
    """
    draws = boundary_draws(drawn)
    if not draws.shape[1]:
        return {}
    h = float(np.mean(drawn.item.grid.spacing))
    extra = math.hypot(h / math.sqrt(12), drawn.item.contour_std)
    error = np.abs(draws.mean(axis=0) + h / 2)
    return {
        **_covered("boundaries", np.full(draws.shape[1], -h / 2), draws, extra),
        "boundary error in mm, mean": round(float(error.mean()), 4),
        "correlation of boundary error and std": float(np.corrcoef(error, draws.std(axis=0))[0, 1]),
    }
