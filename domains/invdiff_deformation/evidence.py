"""Lengths, amplitudes and noise of a velocity prior from points, by their evidence in closed form.

    log p(y) = sum over components of  log N(y; 0, K + s^2 I)
    K(x, x') = sum_l a_l^2 exp(-|x - x'|^2 / 2 l^2) + t^2 + (b / 100)^2 <x - c, x' - c>

for displacements u = v seen at points, with two scales l and l / 4 and an affine part (translation t,
linear b per 100 mm). A small grid is searched, and its best point becomes the prior: type-II maximum
likelihood, no held-out point is looked at. Far from the border the modes of `prior.Spectrum` have this
kernel.

Source: Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, ch. 5.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.stats import multivariate_normal

from invdiff import InputError
from invdiff_deformation.formats import Points
from invdiff_deformation.grid import Grid
from invdiff_deformation.prior import Spectrum

LENGTHS = (20.0, 40.0, 80.0, 160.0)  # mm
AMPLITUDES = (1.0, 2.0, 4.0, 8.0)
FINE = (0.0, 1.0, 2.0)  # amplitudes at a quarter of the length
NOISES = (0.5, 1.0, 2.0)
TRANSLATION, LINEAR = 40.0, 30.0  # mm, and mm per 100 mm: wide


@dataclass(frozen=True)
class Fitted:
    """The best point of the grid.

    Attributes:
        spectrum: lengths and amplitudes in mm, with the affine part.
        noise: std of a coordinate of a point, mm.
        log_evidence: there.
    """

    spectrum: Spectrum
    noise: float
    log_evidence: float


def log_evidence(covariance: Float[np.ndarray, "n n"], values: Float[np.ndarray, "n d"]) -> float:
    """Of independent columns of values under N(0, covariance)."""
    return float(multivariate_normal(cov=covariance).logpdf(values.T).sum())


def fit(points: Points, grid: Grid, base: Spectrum) -> Fitted:
    """The spectrum with the largest evidence for displacements at points.

    Args:
        points: where and what was seen.
        grid: of the fixed image; its spacing makes mm.
        base: everything else of the spectrum (boundary, left-out variance).

    Raises:
        InputError: for fewer points than an affine part needs.
    """
    d = grid.dimensions
    if len(points.std) <= d + 1:
        raise InputError(
            f"{len(points.std)} points are too few to fit a prior to; give more than {d + 1}, or "
            "operator.evidence=false"
        )
    where = (points.fixed - grid.centre) * np.asarray(grid.spacing)
    axes = grid.affine[:3, :d] / np.asarray(grid.spacing)
    values = points.vectors @ axes
    square = ((where[:, None] - where[None]) ** 2).sum(axis=2)
    affine = TRANSLATION**2 + (LINEAR / 100) ** 2 * (where @ where.T)
    eye = np.eye(len(where))
    best: Fitted | None = None
    for length, coarse, fine, noise in itertools.product(LENGTHS, AMPLITUDES, FINE, NOISES):
        kernel = coarse**2 * np.exp(-square / (2 * length**2))
        kernel = kernel + fine**2 * np.exp(-square / (2 * (length / 4) ** 2))
        found = log_evidence(kernel + affine + noise**2 * eye, values)
        if best is None or found > best.log_evidence:
            lengths = (length, length / 4) if fine else (length,)
            spectrum = replace(
                base,
                lengths=lengths,
                amplitudes=(coarse, fine) if fine else (coarse,),
                voxels=False,
                translation=TRANSLATION,
                linear=LINEAR,
            )
            best = Fitted(spectrum, noise, found)
    assert best is not None
    return best
