"""What a registration needs to be solved, written and judged, and how it is made from images and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from invdiff import GaussianNoise, GaussianPrior, InputError, Measurement, Noise, compose, load_plugin
from invdiff_deformation import flow, metrics
from invdiff_deformation.formats import Image, Points
from invdiff_deformation.grid import Grid, between
from invdiff_deformation.likelihoods import Joined, Scored, TemperedNoise
from invdiff_deformation.operators import (
    Displacements,
    Images,
    Labels,
    LocalCorrelation,
    MutualInformation,
    Observed,
    Term,
    Transform,
    Weighted,
    observed,
)
from invdiff_deformation.regions import Surface, Volume
from invdiff_deformation.register import COARSE, FIRST, Residual, blurred, coarse_to_fine, residual_of

SIMILARITIES = ("mse", "lncc", "mi")
Piece = tuple[Term, Noise, Tensor]


@dataclass(frozen=True)
class Item:
    """One pair of images, or one fixed grid with points.

    Attributes:
        name: file-system safe.
        fixed: the image whose grid the deformation lives on.
        moving: the image that is deformed; None where points alone are given.
        transform: states to deformations.
        prior: N(0, I) over the states, with which modes are found.
        to_moving: fixed to moving voxels.
        inside: fixed voxels that count.
        seen: moving mask.
        labels: fixed and moving label maps on their images' grids.
        points: landmarks or displacements that the posterior is conditioned on.
        held_out: points that only judge.
        truth: known displacement in voxels, of phantoms.
        options: of the operator.
        spread: how many times as far from their mean the samples are taken to lie, see `judge.Drawn`.
        contour_std: std in mm of where an observer draws a boundary, in the coverage of boundaries.
        output_frame: LPS or RAS, of the vectors in displacement files.
        notes: for the report.
    """

    name: str
    fixed: Image
    moving: Image | None
    transform: Transform
    prior: GaussianPrior
    inside: Bool[np.ndarray, "*grid"]
    options: Mapping[str, Any]
    to_moving: Float[np.ndarray, "d dplus1"] | None = None
    seen: Float[np.ndarray, "*moving"] | None = None
    labels: tuple[Int[np.ndarray, "*grid"], Int[np.ndarray, "*moving"]] | None = None
    points: Points | None = None
    held_out: Points | None = None
    truth: Float[np.ndarray, "d *grid"] | None = None
    spread: float = 1.0
    contour_std: float = 0.0
    output_frame: str = "LPS"
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        """Of the fixed image."""
        return self.fixed.grid

    @cached_property
    def scaled(self) -> tuple[Float[np.ndarray, "*grid"], Float[np.ndarray, "*moving"]]:
        """Both images with their .5th and 99.5th percentile at 0 and 1.

        Under `mse`, unless `normalise` is set, the fixed image's percentiles scale both.
        """
        assert self.moving is not None
        low, high = self.fixed.range
        own = self.moving.range
        if self.options["similarity"] == "mse" and not self.options["normalise"]:
            own = (low, high)
        fixed = (self.fixed.values - low) / (high - low)
        return fixed, (self.moving.values - own[0]) / max(own[1] - own[0], 1e-30)

    @cached_property
    def carried(self) -> Tensor | None:
        """`to_moving` as a tensor; None where it is the identity."""
        if self.to_moving is None:
            return None
        still = np.concatenate([np.eye(self.grid.dimensions), np.zeros((self.grid.dimensions, 1))], axis=1)
        same = np.allclose(self.to_moving, still, atol=1e-9)
        assert self.moving is not None
        if same and self.moving.grid.shape == self.grid.shape:
            return None
        return torch.from_numpy(self.to_moving)

    @cached_property
    def shown(self) -> Images:
        """Both images as they are, for what is judged, drawn and written."""
        fixed, moving = (torch.from_numpy(part.astype(np.float32)) for part in self.scaled)
        inside = torch.from_numpy(self.inside)
        return Images(moving, fixed, inside, self.carried, padding=str(self.options["padding"]))

    @property
    def imaged(self) -> bool:
        """Whether the images are compared, and are not only drawn."""
        return self.moving is not None and self.options["name"] == "register"

    @property
    def judged(self) -> Points | None:
        """The points that judge a deformation: held-out ones where there are any."""
        return self.held_out or self.points

    def images(self, blur: float) -> Images:
        """The comparison of both images after a blur, by the similarity asked for."""
        fixed, moving = self.scaled
        seen = None if self.seen is None else torch.from_numpy(self.seen.astype(np.float32))
        options, beta = self.options, float(self.options["beta"] or 1.0)
        common: dict[str, Any] = {
            "moving": blurred(moving, blur),
            "fixed": blurred(fixed, blur),
            "inside": torch.from_numpy(self.inside),
            "to_moving": self.carried,
            "seen": seen,
            "padding": str(options["padding"]),
        }
        if options["similarity"] == "lncc":
            return LocalCorrelation(**common, window=int(options["window"]), beta=beta)
        if options["similarity"] == "mi":
            return MutualInformation(**common, bins=int(options["bins"]), beta=beta)
        return Images(**common)

    def pieces(self, blur: float, sigma: float, beta: float) -> list[Piece]:
        """Everything that was observed: term, noise and data."""
        found: list[Piece] = []
        if self.imaged:
            term = self.images(blur)
            if self.options["similarity"] == "mse":
                found.append((term, TemperedNoise.of(sigma, beta), term.fixed[term.inside]))
            else:
                size = 1 if self.options["similarity"] == "mi" else int(self.inside.sum())
                found.append((term, Scored(), torch.zeros(size)))
        if self.options["labels"] and self.labels is not None:
            values = np.unique(np.concatenate([part.ravel() for part in self.labels]))
            fixed, moving = (torch.from_numpy(np.searchsorted(values, part)) for part in self.labels)
            error, weight = float(self.options["label_error"]), float(self.options["label_beta"])
            inside = torch.from_numpy(self.inside)
            term_of = Labels(moving, fixed, len(values), inside, self.carried, error, weight)
            found.append((term_of, Scored(), torch.zeros(int(self.inside.sum()))))
        if (self.options["surfaces"] or self.options["volumes"]) and self.labels is not None:
            found.extend(self._regions())
        if self.points is not None:
            found.append((self._displacements(self.points), GaussianNoise(1.0), self._seen(self.points)))
        return found

    def _regions(self) -> list[Piece]:
        """Surfaces and volumes of the labels that both maps have."""
        assert self.labels is not None and self.moving is not None
        fixed, moving = self.labels
        half, found = float(np.mean(self.grid.spacing)) / 2, list[Piece]()
        for label in [int(one) for one in np.intersect1d(fixed, moving) if one > 0]:
            inside, there = fixed == label, moving == label
            if self.options["surfaces"]:
                distance = torch.from_numpy(metrics.signed_distance(there, self.moving.grid.spacing)).float()
                points = torch.from_numpy(np.argwhere(metrics.surface(inside) & self.inside))
                term = Surface(distance, points, float(self.options["surface_std"]), half, self.carried)
                found.append((term, GaussianNoise(1.0), torch.zeros(len(points))))
            if self.options["volumes"]:
                std = float(self.options["volume_std"])
                ratio = there.sum() * self.moving.grid.voxel / (inside.sum() * self.grid.voxel)
                y = torch.full((1,), float(np.log(ratio)) / std)
                found.append((Volume(torch.from_numpy(inside), std), GaussianNoise(1.0), y))
        return found

    def frame(self) -> Float[np.ndarray, "3 d"]:
        """Directions that vectors are measured along: of the world in volumes, of the axes in planes."""
        if self.grid.dimensions == 3:
            return np.eye(3)
        turned: np.ndarray = self.grid.affine[:3, :2] / np.asarray(self.grid.spacing)
        return turned

    def _displacements(self, points: Points) -> Displacements:
        to_mm = self.frame().T @ self.grid.affine[:3, : self.grid.dimensions]
        whitening = (
            torch.eye(self.grid.dimensions, dtype=torch.float64) / torch.from_numpy(points.std)[:, None, None]
        )
        return Displacements(torch.from_numpy(points.fixed), torch.from_numpy(to_mm), whitening)

    def _seen(self, points: Points) -> Float[Tensor, "data"]:
        along = points.vectors @ self.frame()
        return torch.from_numpy((along / points.std[:, None]).astype(np.float32)).flatten()

    def predicted(self, u: Float[Tensor, "batch d *grid"], points: Points) -> Float[np.ndarray, "batch n d"]:
        """u at points in mm, along `frame`."""
        where = torch.from_numpy(points.fixed).to(u).mT[None].expand(len(u), -1, -1)
        turn = torch.from_numpy(self.frame().T @ self.grid.affine[:3, : self.grid.dimensions]).to(u)
        found: np.ndarray = torch.einsum("ij,bjn->bni", turn, flow.sample_at(u, where)).numpy()
        return found

    @property
    def blur(self) -> float:
        """Std in voxels of what both images are seen through."""
        return float(self.options["blur"])

    def measurement(self, sigma: float, beta: float, blur: float | None = None) -> Measurement:
        """Operator, noise and data; at a coarser blur than the one that counts where asked."""
        pieces = self.pieces(self.blur if blur is None else blur, sigma, beta)
        operator = observed(self.transform, [term for term, _, _ in pieces])
        y = torch.cat([data for _, _, data in pieces])
        if len(pieces) == 1:
            return Measurement(operator, pieces[0][1], y)
        return Measurement(operator, Joined([(noise, len(data)) for _, noise, data in pieces]), y)

    def gaussian(self, sigma: float, beta: float, state: Float[Tensor, "*event"]) -> Measurement:
        """Gaussian data with the curvature that the likelihood has at a state (Gauss-Newton), of std 1.

        Raises:
            InputError: for mutual information and label maps, which have none in closed form here.
        """
        u = self.transform.displacement(state[None])
        terms, data = [], []
        for term, noise, values in self.pieces(self.blur, sigma, beta):
            if isinstance(noise, GaussianNoise):
                terms.append(Weighted(term, 1 / noise.sigma))
            elif isinstance(term, LocalCorrelation):
                terms.append(term.gaussian(u))
            else:
                raise InputError(
                    "sampler.sweeps=0 needs the curvature of the likelihood, which is known for "
                    "similarity=mse and lncc and for points; set sampler.sweeps above 0"
                )
            data.append(torch.zeros(len(values)))
        return Measurement(Observed(self.transform, terms), GaussianNoise(1.0), torch.cat(data))

    def mode(
        self, sigma: float, beta: float, start: Float[Tensor, "*event"] | None = None
    ) -> Float[Tensor, "*event"]:
        """The registration by the posterior's mode: from coarse to fine, or from a start."""
        blurs = [] if start is not None else [blur for blur in COARSE if blur > self.blur]
        steps = [self.measurement(sigma, beta, blur) for blur in blurs]
        seen = self.transform.coordinates.seen
        return coarse_to_fine(self.prior, [*steps, self.measurement(sigma, beta)], start, seen)

    def residual(self, state: Float[Tensor, "*event"]) -> Residual:
        """What the similarity leaves of the fixed image, as it is seen, after the deformation of a state."""
        left = self.images(self.blur).left(self.transform.displacement(state[None]))[0]
        return residual_of(left.numpy(), self.inside)


def begun(item: Item) -> tuple[Item, Measurement, Tensor | None]:
    """The measurement of an item, its noise estimated where it is not given, and the mode.

    sigma is the root mean square residual after a first registration, beta one over its correlation area;
    both are model choices, not scanner noise, and are printed. Where everything is linear no mode is needed.
    """
    options, notes = item.options, dict(item.notes)
    given_sigma, given_beta = options["sigma"], options["beta"]
    if not item.imaged:
        measurement = item.measurement(1.0, 1.0)
        return item, measurement, None if measurement.operator.linear else item.mode(1.0, 1.0)
    sigma, beta = float(given_sigma or FIRST[0]), float(given_beta or FIRST[1])
    state = item.mode(sigma, beta)
    if given_beta is None or (given_sigma is None and options["similarity"] == "mse"):
        left = item.residual(state)
        sigma = float(given_sigma or max(left.std, 1e-4))
        beta = float(given_beta or 1 / left.area)
        item = replace(item, options={**options, "beta": beta})
        notes["residual"] = (
            f"std {left.std:.3g} of the fixed image's range (robust {left.robust:.3g}), over {left.area:.3g} "
            "voxels that vary together"
        )
        state = item.mode(sigma, beta, state)
    if options["similarity"] == "mse":
        notes["sigma, beta"] = f"{sigma:.3g}, {beta:.3g}" + (
            "" if beta == 1 else ": a tempered posterior, voxels weigh as independent residuals would"
        )
    else:
        tempered = f"{options['similarity']} is a profile likelihood, "
        tempered += "tempered by it" if beta < 1 else "every voxel counts once: the spread is too small"
        notes["beta"] = f"{beta:.3g}: {tempered}"
    item = replace(item, notes=notes)
    measurement = item.measurement(sigma, beta)
    measurement.operator.gaussian = lambda: item.gaussian(sigma, beta, state)  # type: ignore[attr-defined]
    return item, measurement, state


def registered(
    fixed: Real[np.ndarray, "*grid"],
    moving: Real[np.ndarray, "*grid"],
    grid: Grid,
    labels: tuple[Int[np.ndarray, "*grid"], Int[np.ndarray, "*grid"]] | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Item, Measurement, Tensor | None]:
    """`begun` of two arrays on one grid, with the settings of the deformation domain."""
    config = compose(["domain=deformation", *overrides])
    prior: Any = load_plugin("priors", str(config["prior"]["name"]))(config["prior"])
    coordinates = prior.coordinates(grid)
    item = Item(
        name="pair",
        fixed=Image("fixed", fixed.astype(np.float32), grid),
        moving=Image("moving", moving.astype(np.float32), grid),
        transform=Transform(coordinates),
        prior=coordinates.prior,
        inside=np.ones(grid.shape, dtype=bool),
        options=config["operator"],
        to_moving=between(grid, grid),
        labels=labels,
        spread=float(config["domain"]["spread"]),
        contour_std=float(config["domain"]["contour_std"]),
    )
    return begun(item)
