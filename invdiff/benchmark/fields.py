"""Linear measurements of periodic fields, and coordinates in which they are diagonal beside a spectrum."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.operator import LinearOperator
from invdiff.prior.gaussian import Transform, hartley


@dataclass(frozen=True)
class Coordinates:
    """Independent real coordinates c = `to`(x) of a field, x = `back`(c), measured as a c + sigma_y e.

    Attributes:
        to, back: the transforms.
        variance: of each coordinate under the prior, for every channel.
        gain: a; 0 where nothing is measured.
        data: the measured coordinates of y.
    """

    to: Transform
    back: Transform
    variance: Float[Tensor, "y x"]
    gain: Float[Tensor, "y x"]
    data: Transform


def frequencies(side: int) -> tuple[Float[Tensor, "side 1"], Float[Tensor, "1 side"]]:
    """Rows and columns of k in cycles per field of view."""
    k = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    return k[:, None], k[None, :]


def radius(side: int) -> Float[Tensor, "side side"]:
    """|k| in cycles per field of view."""
    ky, kx = frequencies(side)
    return (ky**2 + kx**2).sqrt()


def power_spectrum(side: int, corner: float = 3.0) -> Float[Tensor, "side side"]:
    """S(k) ~ (1 + |k|^2 / corner^2)^(-3/2) with mean 1, so that every pixel has variance 1."""
    spectrum = (1 + radius(side) ** 2 / corner**2) ** -1.5
    normalised: Tensor = spectrum / spectrum.mean()
    return normalised


def column_mask(side: int, acceleration: int, seed: int) -> Float[Tensor, "side side"]:
    """Random k-space columns; the central 8 % are always measured at 4x, 4 % at 8x."""
    generator = torch.Generator().manual_seed(seed)
    center = max(2, round(0.32 / acceleration * side))
    keep = torch.zeros(side)
    order = torch.fft.fftfreq(side, 1 / side).abs().argsort()
    keep[order[:center]] = 1
    rest = order[center:]
    more = max(0, side // acceleration - center)
    keep[rest[torch.randperm(len(rest), generator=generator)[:more]]] = 1
    return keep.double().expand(side, side).clone()


def slice_mask(side: int, views: int) -> Float[Tensor, "side side"]:
    """Modes within half a sample of the radial lines at `views` equal angles, closed under k -> -k.

    By the Fourier slice theorem they are what parallel projections at those angles measure.
    """
    ky, kx = frequencies(side)
    angle = math.pi / views * torch.arange(views, dtype=torch.float64)[:, None, None]
    near = ((ky * angle.cos() - kx * angle.sin()).abs() <= 0.5).any(dim=0)
    return (near | mirrored(near)).double()


def mirrored(c: Tensor) -> Tensor:
    """c(-k), modulo the field of view."""
    return torch.roll(c.flip(-2, -1), (1, 1), (-2, -1))


def blur_gain(side: int, width: float) -> Float[Tensor, "side side"]:
    """Transfer function of a periodic Gaussian blur of std `width` pixels."""
    return torch.exp(-2 * (math.pi * width * radius(side) / side) ** 2)


def to_fourier(x: Float[Tensor, "batch 2 y x"]) -> Float[Tensor, "batch 2 y x"]:
    """The orthonormal DFT of a complex field held as two channels."""
    return _pair(torch.fft.fft2(torch.complex(x[:, 0], x[:, 1]), norm="ortho"))


def from_fourier(c: Float[Tensor, "batch 2 y x"]) -> Float[Tensor, "batch 2 y x"]:
    """Its inverse and adjoint."""
    return _pair(torch.fft.ifft2(torch.complex(c[:, 0], c[:, 1]), norm="ortho"))


def _pair(values: Tensor) -> Tensor:
    return torch.stack([values.real, values.imag], dim=1)


class DiagonalInModes(LinearOperator):
    """`y = a(k) (T x)(k)` for T the DFT of a complex field or the Hartley transform of a real one."""

    def __init__(self, gain: Float[Tensor, "y x"], complex_field: bool) -> None:
        self.gain, self.complex_field = gain, complex_field
        self.channels = 2 if complex_field else 1
        self.event_shape = (self.channels, *gain.shape)

    def modes(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """T x."""
        return to_fourier(x) if self.complex_field else hartley(x)

    def image(self, c: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """T^-1 c."""
        return from_fourier(c) if self.complex_field else hartley(c)

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        return self.gain.to(x) * self.modes(x)

    def adjoint(self, y: Float[Tensor, "batch *data"]) -> Float[Tensor, "batch *event"]:
        return self.image(self.gain.to(y) * y)

    def resolvent(self, rhs: Float[Tensor, "batch *event"], gamma: float) -> Float[Tensor, "batch *event"]:
        return self.image(self.modes(rhs) / (1 + gamma * self.gain.to(rhs) ** 2))

    def data_size(self, y: Float[Tensor, "*data"]) -> int:
        return int((self.gain > 0).sum()) * self.channels

    def coordinates(self, spectrum: Float[Tensor, "y x"]) -> Coordinates:
        """The modes."""
        return Coordinates(self.modes, self.image, spectrum, self.gain, lambda y: y)

    def modal_variance(self, spectrum: Float[Tensor, "y x"], noise: float) -> Float[Tensor, "y x"]:
        """Posterior variance of each mode, S noise / (a^2 S + noise)."""
        return spectrum * noise / (self.gain**2 * spectrum + noise)


class SuperResolution(LinearOperator):
    """Every `factor`-th pixel, in both directions, of a real field under an even periodic blur.

    Args:
        gain: h(k), even; its sides are multiples of `factor`.
        factor: s.
    """

    def __init__(self, gain: Float[Tensor, "y x"], factor: int) -> None:
        if any(side % factor for side in gain.shape):
            raise InputError(f"a field of {tuple(gain.shape)} cannot be decimated by {factor}")
        self.gain, self.factor = gain, factor
        self.event_shape = (1, *gain.shape)

    def blurred(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """h * x, which is its own adjoint."""
        return hartley(self.gain.to(x) * hartley(x))

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        return self.blurred(x)[..., :: self.factor, :: self.factor]

    def adjoint(self, y: Float[Tensor, "batch *data"]) -> Float[Tensor, "batch *event"]:
        wide = y.new_zeros((len(y), 1, *self.gain.shape))
        wide[..., :: self.factor, :: self.factor] = y
        return self.blurred(wide)

    def resolvent(self, rhs: Float[Tensor, "batch *event"], gamma: float) -> Float[Tensor, "batch *event"]:
        """1 - gamma A^T (1 + gamma A A^T)^-1 A, where A A^T is diagonal in the modes of y."""
        square = (self.fold(self.gain.to(rhs)) / self.factor).square().sum((0, 2))
        inner = hartley(hartley(self.forward(rhs)) / (1 + gamma * square))
        return rhs - gamma * self.adjoint(inner)

    def fold(self, c: Float[Tensor, "*batch y x"]) -> Float[Tensor, "*batch a q b r"]:
        """Modes k = q + (side / s) a by alias (a, b) and low-resolution mode (q, r)."""
        (rows, columns), s = self.gain.shape, self.factor
        return c.reshape(*c.shape[:-2], s, rows // s, s, columns // s)

    def unfold(self, c: Float[Tensor, "*batch a q b r"]) -> Float[Tensor, "*batch y x"]:
        """Its inverse."""
        return c.reshape(*c.shape[:-4], *self.gain.shape)

    def coordinates(self, spectrum: Float[Tensor, "y x"]) -> Coordinates:
        """c = R S^(-1/2) H x, of variance 1, with y(q) = -|v| c at the strongest alias of q only.

        v_j = sqrt(S_j) h_j / s, and R = 1 - 2 u u^T / |u|^2 with u = v / |v| + e, e the strongest alias: the
        reflection among the aliases of q (Householder) that takes v / |v| to -e.
        """
        root = spectrum.sqrt()
        loading = self.fold(root * self.gain / self.factor)
        length = loading.square().sum((0, 2), keepdim=True).sqrt()
        strongest = self.strongest(loading)
        normal = loading / length + strongest
        scale = 2 / normal.square().sum((0, 2), keepdim=True)

        def reflected(c: Tensor) -> Tensor:
            folded = self.fold(c)
            along = (folded * normal).sum((-4, -2), keepdim=True)
            return self.unfold(folded - scale * along * normal)

        return Coordinates(
            lambda x: reflected(hartley(x) / root),
            lambda c: hartley(root * reflected(c)),
            torch.ones_like(spectrum),
            self.unfold(-length * strongest),
            lambda y: hartley(y).repeat(
                1, self.factor, self.factor
            ),  # the mode (q, r) at each of its aliases
        )

    def strongest(self, loading: Float[Tensor, "a q b r"]) -> Float[Tensor, "a q b r"]:
        """1 at the largest of the aliases of every low-resolution mode, the first of equals."""
        flat = loading.permute(0, 2, 1, 3).flatten(0, 1)
        chosen = torch.zeros_like(flat).scatter(0, flat.argmax(dim=0, keepdim=True), 1.0)
        return chosen.reshape(self.factor, self.factor, *flat.shape[1:]).permute(0, 2, 1, 3)

    def modal_variance(self, spectrum: Float[Tensor, "y x"], noise: float) -> Float[Tensor, "y x"]:
        """Posterior variance of each mode, S - (S h / s)^2 / V with V(q) = sum_j h^2 S / s^2 + noise."""
        cross = self.fold(spectrum * self.gain / self.factor)
        total = (cross * self.fold(self.gain / self.factor)).sum((0, 2), keepdim=True) + noise
        return spectrum - self.unfold(cross**2 / total)


class Landmarks(LinearOperator):
    """A periodic velocity field (two channels) at points between its pixels, by bilinear interpolation.

    Args:
        points: positions in pixels.
        side: pixels of a side.
    """

    def __init__(self, points: Float[Tensor, "points 2"], side: int) -> None:
        self.event_shape = (2, side, side)
        low = points.floor()
        near, share = low.long(), points - low
        self.rows = torch.zeros(len(points), side, side, dtype=torch.float64)
        number = torch.arange(len(points))
        for dy, dx in itertools.product((0, 1), (0, 1)):
            weight = (share[:, 0] - (1 - dy)).abs() * (share[:, 1] - (1 - dx)).abs()
            at = (number, (near[:, 0] + dy) % side, (near[:, 1] + dx) % side)
            self.rows.index_put_(at, weight.double(), accumulate=True)

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch 2 points"]:
        return x.flatten(2) @ self.rows.to(x).flatten(1).mT

    def adjoint(self, y: Float[Tensor, "batch 2 points"]) -> Float[Tensor, "batch *event"]:
        return (y @ self.rows.to(y).flatten(1)).reshape(len(y), 2, *self.rows.shape[1:])

    def loading(self, spectrum: Float[Tensor, "y x"]) -> Float[Tensor, "points modes"]:
        """R on white modes."""
        rows: Tensor = hartley(self.rows) * spectrum.sqrt()
        return rows.flatten(1)

    def coordinates(self, spectrum: Float[Tensor, "y x"]) -> Coordinates:
        """c = V^T S^(-1/2) H x, of variance 1, with U^T y = s c, where U s V^T are the rows on white modes.

        What is measured is put where |k| is smallest, so that the radial bands take it first.
        """
        left, values, right = torch.linalg.svd(self.loading(spectrum), full_matrices=True)
        root, shape = spectrum.sqrt(), spectrum.shape
        place = radius(shape[0]).flatten().argsort(stable=True)
        seen = place[: len(values)]
        gain, basis = torch.zeros(len(right), dtype=torch.float64), torch.empty_like(right)
        gain[seen], basis[place] = values, right

        def data(y: Tensor) -> Tensor:
            out = y.new_zeros(2, len(right))
            out[:, seen] = y @ left
            return out.reshape(2, *shape)

        return Coordinates(
            lambda x: ((hartley(x) / root).flatten(-2) @ basis.mT).reshape(x.shape),
            lambda c: hartley(root * (c.flatten(-2) @ basis).reshape(c.shape)),
            torch.ones_like(spectrum),
            gain.reshape(shape),
            data,
        )

    def modal_variance(self, spectrum: Float[Tensor, "y x"], noise: float) -> Float[Tensor, "y x"]:
        """Posterior variance of each mode, S - diag(S R^T (R S R^T + noise)^-1 R S)."""
        rows = self.loading(spectrum)
        total = rows @ rows.mT + noise * torch.eye(len(rows), dtype=torch.float64)
        explained: Tensor = (rows * torch.linalg.solve(total, rows)).sum(0)
        left: Tensor = spectrum * (1 - explained.reshape(spectrum.shape))
        return left
