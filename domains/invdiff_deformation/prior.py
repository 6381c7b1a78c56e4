"""A Gaussian prior over stationary velocities, in closed form.

    phi = exp(v),   v = m + B z,   z ~ N(0, I)

    Lambda(k) = sum_c (2 - 2 cos(pi k_c / n_c)) / h_c^2                h_c: spacing in mm
    S(k) = sum_l a_l^2 s_l(k) / mean_k s_l(k),   s_l(k) = exp(-l^2 Lambda(k) / 2),   a_l = eps l / (d sqrt(L))

Each component of v is, independently and in mm, a sum of cosines (DCT-II: the field is mirrored at the
border) with variances S(k). With amplitudes proportional to the lengths l every scale has the same strain:
eps is the nominal root mean square of the Frobenius norm of grad v. The grid mean of a component's variance
is sum_l a_l^2 exactly; near a mirrored border it is up to twice that per axis.

A state z holds the modes that carry all but `omitted` of the variance, whitened, then the affine part where
there is one (translation in mm, linear part in mm per 100 mm). In these coordinates the prior is N(0, I),
D(z; sigma) = z / (1 + sigma^2), every sampler of the core runs, and every linear observation has its
posterior in closed form.

Source: stationary velocities and scaling and squaring, Arsigny et al. 2006; scales as sums of Gaussian
kernels, Risser et al., IEEE TMI 2011.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.fft import idct, idst
from torch import Tensor

from invdiff import GaussianPrior, InputError, PriorCard
from invdiff_deformation.flow import squarings_for
from invdiff_deformation.grid import Grid

BOUNDARIES = ("reflect", "zero", "slip")
SPECTRA = ("gaussian", "sobolev")
OMITTED = {2: 2e-3, 3: 1e-2}
CONTROL = {2: 1, 3: 2}


@runtime_checkable
class Coordinates(Protocol):
    """How a state describes a velocity on a grid.

    Attributes:
        grid: of the fixed image.
        control: voxels of it from one value of the velocity to the next.
        event_shape: of a state.
        squarings: K of the exponential, fixed by the prior.
    """

    @property
    def grid(self) -> Grid: ...

    @property
    def control(self) -> int: ...

    @property
    def event_shape(self) -> tuple[int, ...]: ...

    @property
    def squarings(self) -> int: ...

    @property
    def seen(self) -> Float[Tensor, "*event"] | None:
        """Squares of v summed over the control grid for a unit of each coordinate, mm^2; None: alike."""

    def velocity(self, z: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch d *control"]:
        """v on the control grid, in its voxels; linear in z."""

    def matrix_at(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n d event"]:
        """v at points of the fixed grid, in its voxels, as a matrix on flat states."""


def coarser(grid: Grid, control: int) -> Grid:
    """Every `control`-th voxel along each axis, and one more where they do not reach the end."""
    if control == 1:
        return grid
    affine = grid.affine.copy()
    affine[:3, : grid.dimensions] *= control
    return Grid(tuple(-(-(n - 1) // control) + 1 for n in grid.shape), affine, grid.known)


def cosine_basis(size: int, count: int) -> Float[Tensor, "size count"]:
    """The first orthonormal DCT-II functions on `size` points."""
    return torch.from_numpy(idct(np.eye(size)[:, :count], norm="ortho", axis=0))


def sine_basis(size: int, count: int) -> Float[Tensor, "size count"]:
    """The first orthonormal DST-I functions: zero one step outside the grid."""
    return torch.from_numpy(idst(np.eye(size)[:, :count], type=1, norm="ortho", axis=0))


@dataclass(frozen=True)
class Spectrum:
    """Which velocities are plausible.

    Attributes:
        lengths: correlation lengths l, in mm, or in voxels (of the geometric mean spacing) where `voxels` is
            set.
        strain: eps.
        voxels: whether lengths are voxels.
        boundary: `reflect` (cosines), `zero` (sines), `slip` (sines along a component's own axis, cosines
            across: it may slide along the border and not through it).
        kind: `gaussian`, or `sobolev`: s_l = (1 + l^2 Lambda)^-2.
        omitted: share of the variance that the left-out modes may carry; None: 2e-3 in planes, 1e-2 in
            volumes.
        translation, linear: std of the affine part, in mm and in mm per 100 mm; 0: none. amplitudes: a_l in
        mm instead of those of `strain`. control: the velocity lives on every so-many-th voxel of each axis,
        and phi is interpolated from there;
            None: 1 in planes, 2 in volumes.
    """

    lengths: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0)
    strain: float = 0.57
    voxels: bool = True
    boundary: str = "reflect"
    kind: str = "gaussian"
    omitted: float | None = None
    translation: float = 0.0
    linear: float = 0.0
    amplitudes: tuple[float, ...] | None = None
    control: int | None = None

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) <= 0:
            raise InputError(f"prior.lengths is {list(self.lengths)}; expected lengths above zero")
        if not (self.strain > 0 and math.isfinite(self.strain)):
            raise InputError(f"prior.strain is {self.strain}; expected a number above zero, such as 0.57")
        if self.boundary not in BOUNDARIES or self.kind not in SPECTRA:
            raise InputError(
                f"prior.boundary is {self.boundary!r} and prior.kind {self.kind!r}; expected one of "
                f"{', '.join(BOUNDARIES)}, and {' or '.join(SPECTRA)}"
            )
        if self.omitted is not None and not 0 < self.omitted < 1:
            raise InputError(f"prior.omitted is {self.omitted}; expected a share between 0 and 1")
        if self.control is not None and self.control < 1:
            raise InputError(f"prior.control is {self.control}; expected a whole number from 1 on")
        if min(self.translation, self.linear) < 0:
            raise InputError("the affine part needs standard deviations that are not negative")
        if self.amplitudes is not None and (
            len(self.amplitudes) != len(self.lengths) or min(self.amplitudes) < 0 or max(self.amplitudes) <= 0
        ):
            raise InputError(
                f"prior.amplitudes is {list(self.amplitudes)}; expected one a length, none negative"
            )

    def lengths_mm(self, grid: Grid) -> tuple[float, ...]:
        """The correlation lengths in mm."""
        unit = grid.voxel ** (1 / grid.dimensions) if self.voxels else 1.0
        return tuple(unit * length for length in self.lengths)

    def amplitudes_mm(self, grid: Grid) -> tuple[float, ...]:
        """a_l: the std of a component of v at each scale, in mm."""
        if self.amplitudes is not None:
            return self.amplitudes
        share = self.strain / (grid.dimensions * math.sqrt(len(self.lengths)))
        return tuple(share * length for length in self.lengths_mm(grid))

    def variances(self, grid: Grid, eigenvalues: Float[Tensor, "*modes"]) -> Float[Tensor, "*modes"]:
        """S(k) in mm^2 for the eigenvalues Lambda(k) of all modes."""
        total = torch.zeros_like(eigenvalues)
        for length, amplitude in zip(self.lengths_mm(grid), self.amplitudes_mm(grid), strict=True):
            reach = length**2 * eigenvalues
            shape = torch.exp(-0.5 * reach) if self.kind == "gaussian" else (1 + reach) ** -2
            total += amplitude**2 * shape / shape.mean()
        return total


class Modes:
    """Coordinates z of a spectrum on a grid: whitened modes, then the affine part."""

    def __init__(self, spectrum: Spectrum, grid: Grid) -> None:
        self.control = CONTROL[grid.dimensions] if spectrum.control is None else spectrum.control
        if spectrum.voxels:
            spectrum = replace(spectrum, lengths=spectrum.lengths_mm(grid), voxels=False)
        self.fixed, self.spectrum = grid, spectrum
        self._grid = grid = coarser(grid, self.control)
        d, spacing = grid.dimensions, grid.spacing
        axes = [2 - 2 * torch.cos(math.pi * torch.arange(n, dtype=torch.float64) / n) for n in grid.shape]
        if spectrum.boundary != "reflect":
            # A sine has one half wave more than the cosine of its number; `slip` has one along one axis only,
            # and the difference is below one mode: the spectrum is that of the sines for all.
            axes = [
                2 - 2 * torch.cos(math.pi * torch.arange(1, n + 1, dtype=torch.float64) / (n + 1))
                for n in grid.shape
            ]
        eigenvalues = torch.zeros(grid.shape, dtype=torch.float64)
        for c, (values, h) in enumerate(zip(axes, spacing, strict=True)):
            eigenvalues += (values / h**2).reshape([-1 if a == c else 1 for a in range(d)])
        variances = spectrum.variances(grid, eigenvalues)
        order = variances.flatten().argsort(descending=True, stable=True)
        share = variances.flatten()[order].cumsum(0) / variances.sum()
        omitted = OMITTED[d] if spectrum.omitted is None else spectrum.omitted
        count = int((share < 1 - omitted).sum()) + 1
        chosen = torch.stack(torch.unravel_index(order[:count], grid.shape))
        self.box = tuple(int(n) + 1 for n in chosen.amax(dim=1))
        index = torch.zeros(count, dtype=torch.long)
        for n, k in zip(self.box, chosen, strict=True):
            index = index * n + k
        self.index: Int[Tensor, "modes"] = index
        self.std: Float[Tensor, "modes"] = variances.flatten()[order[:count]].sqrt()
        self.count = count
        self.affine = d + d * d if spectrum.translation or spectrum.linear else 0
        self._bases: dict[tuple[int, bool, torch.dtype, torch.device], Tensor] = {}

    @property
    def grid(self) -> Grid:
        return self.fixed

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self._grid.dimensions * self.count + self.affine,)

    @cached_property
    def marginal(self) -> float:
        """Root mean square over the grid of |v|, in voxels, without the affine part."""
        mean = float(self.std.square().sum()) / math.prod(self._grid.shape)
        return math.sqrt(sum(mean / h**2 for h in self._grid.spacing))

    @cached_property
    def seen(self) -> Float[Tensor, "event"]:
        """The same; modes are orthonormal."""
        grid, d = self._grid, self._grid.dimensions
        modes = self.std.square().repeat(d)
        if not self.affine:
            return modes.float()
        voxels = math.prod(grid.shape)
        squares = [voxels * ((n**2 - 1) / 12) * h**2 for n, h in zip(grid.shape, grid.spacing, strict=True)]
        offset = modes.new_full((d,), self.spectrum.translation**2 * voxels)
        matrix = modes.new_tensor(squares).repeat(d) * (self.spectrum.linear / 100) ** 2
        return torch.cat([modes, offset, matrix]).float()

    @cached_property
    def squarings(self) -> int:
        """K, see `flow.squarings_for`; the affine part by its size at the corner."""
        spectrum, grid = self.spectrum, self._grid
        reach = float(np.linalg.norm(np.asarray(grid.shape) * grid.spacing)) / 2
        far = math.hypot(spectrum.translation, spectrum.linear / 100 * reach) / min(grid.spacing)
        return squarings_for(math.hypot(self.marginal, far))

    def basis(self, axis: int, sine: bool, like: Tensor) -> Float[Tensor, "size count"]:
        """The functions along one axis, in the type of `like`."""
        key = (axis, sine, like.dtype, like.device)
        if key not in self._bases:
            make = sine_basis if sine else cosine_basis
            self._bases[key] = make(self._grid.shape[axis], self.box[axis]).to(like)
        return self._bases[key]

    def velocity(self, z: Float[Tensor, "batch event"]) -> Float[Tensor, "batch d *control"]:
        """v = B z in voxels of the control grid."""
        grid, d = self._grid, self._grid.dimensions
        modes = z[:, : d * self.count].reshape(len(z), d, self.count) * self.std.to(z)
        box = z.new_zeros((len(z), d, math.prod(self.box)))
        box = box.index_copy(2, self.index.to(z.device), modes).reshape(len(z), d, *self.box)
        boundary = self.spectrum.boundary
        if boundary == "slip":
            parts = [self._synthesis(box[:, c : c + 1], lambda a, c=c: a == c) for c in range(d)]
            v = torch.cat(parts, dim=1)
        else:
            v = self._synthesis(box, lambda a: boundary == "zero")
        if self.affine:
            v = v + self._affine(z[:, d * self.count :])
        return v / z.new_tensor(grid.spacing).reshape(1, d, *([1] * d))

    def _synthesis(self, box: Tensor, sine: Any) -> Tensor:
        for axis in range(self._grid.dimensions):
            basis = self.basis(axis, bool(sine(axis)), box)
            box = torch.movedim(torch.movedim(box, 2 + axis, -1) @ basis.mT, -1, 2 + axis)
        return box

    def _affine(self, z: Float[Tensor, "batch affine"]) -> Float[Tensor, "batch d *grid"]:
        grid, d = self._grid, self._grid.dimensions
        offset = self.spectrum.translation * z[:, :d]
        matrix = self.spectrum.linear / 100 * z[:, d:].reshape(len(z), d, d)
        axes = [
            (torch.arange(n, dtype=z.dtype, device=z.device) - (n - 1) / 2) * h
            for n, h in zip(grid.shape, grid.spacing, strict=True)
        ]
        where = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        turned = torch.einsum("bij,j...->bi...", matrix, where)
        return turned + offset.reshape(len(z), d, *([1] * d))

    def matrix_at(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n d event"]:
        """v at points of the fixed grid, in its voxels, as a matrix on states.

        Linear interpolation of a product of functions is the product of their linear interpolations, so no
        field is made.
        """
        grid, d = self._grid, self._grid.dimensions
        points = points.double()
        rows = points.new_ones((len(points), self.count))
        alone = self.spectrum.boundary
        factors: list[list[Tensor]] = []
        digits = torch.stack(torch.unravel_index(self.index, self.box))
        for axis in range(d):
            place = (points[:, axis] / self.control).clamp(0, grid.shape[axis] - 1)
            low = place.floor().long().clamp_max(max(grid.shape[axis] - 2, 0))
            share = (place - low)[:, None]
            both = []
            for sine in (False, True):
                basis = self.basis(axis, sine, points)
                upper = basis[(low + 1).clamp_max(grid.shape[axis] - 1)]
                both.append(torch.lerp(basis[low], upper, share)[:, digits[axis]])
            factors.append(both)
        found = points.new_zeros((len(points), d, self.event_shape[0]))
        for c in range(d):
            values = rows * self.std.to(points) / self.fixed.spacing[c]
            for axis in range(d):
                sine = alone == "zero" or (alone == "slip" and axis == c)
                values = values * factors[axis][int(sine)]
            found[:, c, c * self.count : (c + 1) * self.count] = values
        if self.affine:
            h = points.new_tensor(self.fixed.spacing)
            centre = (points.new_tensor(grid.shape) - 1) / 2 * self.control
            inside = points.new_tensor(grid.shape).sub(1).mul(self.control)
            where = (points.clamp_min(0).minimum(inside) - centre) * h
            first = d * self.count
            for c in range(d):
                found[:, c, first + c] = self.spectrum.translation / h[c]
                start = first + d + c * d
                found[:, c, start : start + d] = self.spectrum.linear / 100 * where / h[c]
        return found

    @property
    def prior(self) -> GaussianPrior:
        """N(0, I) over the states."""
        return GaussianPrior.diagonal(torch.zeros(self.event_shape), torch.ones(self.event_shape))


class VelocityPrior(GaussianPrior):
    """N(0, I) in the modes of a spectrum, for events of any size; `coordinates` binds it to a grid."""

    def __init__(self, spectrum: Spectrum) -> None:
        super().__init__(torch.zeros(()), torch.ones(()))
        self.spectrum = spectrum

    @property
    def card(self) -> PriorCard:
        spectrum = self.spectrum
        unit = "voxels" if spectrum.voxels else "mm"
        lengths = ", ".join(f"{length:g}" for length in spectrum.lengths)
        return PriorCard(
            name="velocity",
            scale=f"whitened modes of a velocity of lengths {lengths} {unit}, "
            f"strain {spectrum.strain:g}, boundary {spectrum.boundary}",
            std=1.0,
            sigma_range=(1e-3, 10.0),
            exact=True,
            data="closed form, no training data",
            limits="one stationary velocity; smooth everywhere, so no sliding organs, tears or new tissue",
        )

    def coordinates(self, grid: Grid) -> Modes:
        """The states on a grid."""
        return Modes(self.spectrum, grid)


def velocity(settings: Mapping[str, Any]) -> VelocityPrior:
    """Settings: the fields of `Spectrum`."""
    known = {**settings}
    known.pop("name", None)
    unknown = set(known) - set(Spectrum.__dataclass_fields__)
    if unknown:
        raise InputError(f"the velocity prior does not know {sorted(unknown)}")
    for key in ("lengths", "amplitudes"):
        if isinstance(known.get(key), Sequence):
            known[key] = tuple(float(value) for value in known[key])
    return VelocityPrior(Spectrum(**known))
