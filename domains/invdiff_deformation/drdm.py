"""DRDM: deformations of one image, drawn at random and then recovered towards what images look like.

    v      = sum over g = 64, 32, 16, 8 of  up( N(0, s^2) on g^d ) 64 / g            s = 4e-5 of a side
    v'     = v + w o (id + v),                                  w another such field, .08 of its size
    phi_t  = (id + v')^n_ddf(t),    psi_t = (id + v)^n_dvf(t),    I_t = I o phi_t
    n_ddf  = clamp(floor(2 t^1.3 / 3), 1, 200),     n_dvf = floor(t^.6)
    phi   <- phi o (id + F(I o phi, t))    for t = T' ... 1                           recovery

One velocity is composed with itself, so t is the time of a flow and not a number of draws; `independent`
draws a new velocity for every composition instead, and its psi_t is the last n_dvf(t) of them. Compositions
are done on a control grid of 64^d that spans two sides of the image, whose middle is the image. There a
displacement is a fraction of the side; of the image it is in voxels, channel c along axis c, as everywhere
in this pack. A control voxel is 2 n / 64 image voxels, and `upsample="consistent"` multiplies by that.
`"released"` multiplies the fraction by n / 64 and then by n, as the released code does: the same at 128,
twice too much at 256, and then no diffeomorphism.

A network that was trained to find psi_t's inverse from I_t alone (`recovery_network.py`) takes a part of the
deformation back, and leaves what it cannot tell from anatomy: a generator of deformations, for augmentation
and for pairs whose deformation is known. **It has no density, no likelihood and no score.** Guidance on it
has no target law, and a sampler started from its draws is not started from a prior: the claim is heuristic,
as a generator only.

Source: Zheng et al., Medical Image Analysis 110 (2026) 103987, arXiv 2407.07295; where the text and the
released code (jianqingzheng/def_diff_rec, Apache-2.0) differ, the code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from invdiff import InputError, PriorCard, keyed_stream, read_prior
from invdiff_deformation.flow import compose, identity, sample_at, warp
from invdiff_deformation.jacobian import folded_strict, jacobian
from invdiff_deformation.recovery_network import RecoveryNetwork, sides_of

WEIGHTS = Path(__file__).resolve().parent / "weights"
CARDIAC = WEIGHTS / "drdm_cardiac.safetensors"
STARTS, UPSAMPLES = ("level", "top"), ("consistent", "released")
CLAIM = "heuristic"
ASPECT = 1.25  # by which the proportions of an image may differ from those that were trained on
TOGETHER = 2**18  # pixels, as the network sees them, that are recovered in one batch
SCALES, SPAN, RELATIVE = 4, 2, 0.08  # grids of velocities, image sides on the control grid, size of w

Field: TypeAlias = Float[Tensor, "1 d *control"]


def flow_steps(t: int) -> int:
    """n_ddf(t), how often v' is composed."""
    return min(max(math.floor(2 * math.pow(t, 1.3) / 3), 1), 200)


def target_steps(t: int) -> int:
    """n_dvf(t), how often v is; 0 at t = 0."""
    return math.floor(math.pow(t, 0.6) + 1e-9)


@dataclass(frozen=True)
class Process:
    """The random deformations of every level.

    Attributes:
        dimensions: 2 or 3.
        v_scale: s, as a fraction of the side.
        upsample: `consistent` or `released`.
        independent: whether every composition has a velocity of its own.
        control: side of the control grid.
    """

    dimensions: int = 2
    v_scale: float = 4e-5
    upsample: str = "consistent"
    independent: bool = False
    control: int = 64

    def __post_init__(self) -> None:
        if self.upsample not in UPSAMPLES:
            raise InputError(f"upsample is {self.upsample!r}; expected {' or '.join(UPSAMPLES)}")

    def components(self, generator: torch.Generator) -> list[Float[Tensor, "d *grid"]]:
        """White fields on grids of 64, 32, 16 and 8, of std s 64 / g, before they are upsampled and added."""
        grids = [self.control // 2**k for k in range(SCALES)]
        return [
            torch.randn(self.dimensions, *[g] * self.dimensions, generator=generator)
            * (self.v_scale * self.control / g)
            for g in grids
        ]

    def velocity(self, generator: torch.Generator) -> Float[Tensor, "1 d *control"]:
        """v, as fractions of the side."""
        fields = [self._resized(field[None], self.control) for field in self.components(generator)]
        return torch.stack(fields).sum(0)

    def draw(
        self, t: int, shape: Sequence[int], generator: torch.Generator
    ) -> tuple[Float[Tensor, "d *grid"], Float[Tensor, "d *grid"]]:
        """phi_t and psi_t of an image of `shape`, in voxels."""
        whole, part = flow_steps(t), target_steps(t)
        make = self._chain if self.independent else self._flow
        phi, psi = make(whole, part, generator)
        return self.on_image(phi / self.control, shape)[0], self.on_image(psi / self.control, shape)[0]

    def on_image(
        self, field: Float[Tensor, "batch d *control"], shape: Sequence[int]
    ) -> Float[Tensor, "batch d *grid"]:
        """A displacement of the control grid, the middle half of which is the image, in image voxels."""
        wide = self._resized(field, *(SPAN * n for n in shape))
        for axis, n in enumerate(shape, start=2):
            wide = wide.narrow(axis, n // 2, n)
        factor = wide.new_tensor([SPAN if self.upsample == "consistent" else n / self.control for n in shape])
        return wide * sides_of(wide) * factor.reshape(-1, *[1] * len(shape))

    def _resized(self, field: Tensor, *shape: int) -> Tensor:
        size = shape if len(shape) > 1 else shape * self.dimensions
        mode = "bilinear" if self.dimensions == 2 else "trilinear"
        return F.interpolate(field, size=size, mode=mode, align_corners=False)

    def _pair(self, generator: torch.Generator) -> tuple[Field, Field]:
        """v' and v in voxels of the control grid."""
        v = self.velocity(generator) * self.control
        second = self.velocity(generator) * (self.control * RELATIVE)
        return compose(second, v), v

    def _flow(self, whole: int, part: int, generator: torch.Generator) -> tuple[Field, Field]:
        """`(id + v')^whole` and `(id + v)^part`, one composition after the other."""
        both, v = self._pair(generator)
        return _power(both, whole), _power(v, part)

    def _chain(self, whole: int, part: int, generator: torch.Generator) -> tuple[Field, Field]:
        """A chain of `whole` velocities of their own, and its last `part`."""
        phi = psi = torch.zeros(())
        for k in range(whole):
            both, v = self._pair(generator)
            if k == 0:
                phi, psi = torch.zeros_like(v), torch.zeros_like(v)
            phi = compose(phi, both)
            if k >= whole - part:
                psi = compose(psi, v)
        return phi, psi


def _power(v: Field, count: int) -> Field:
    """The displacement of `(id + v)^count`."""
    positions = identity(tuple(v.shape[2:]), v.dtype, v.device) + v
    u = torch.zeros_like(v)
    for _ in range(count):
        u = v + sample_at(u, positions)
    return u


def warped_image(
    image: Float[Tensor, "images channels *grid"], phi: Float[Tensor, "batch d *grid"]
) -> Float[Tensor, "batch channels *grid"]:
    """`I o phi` of as many images or of one: bicubic in two axes, trilinear in three, 0 outside."""
    mode = "bicubic" if phi.shape[1] == 2 else "bilinear"
    return warp(image.expand(len(phi), *image.shape[1:]), phi, padding="zeros", mode=mode)


def warped_labels(
    labels: Int[Tensor, "*grid"], phi: Float[Tensor, "batch d *grid"]
) -> Int[Tensor, "batch *grid"]:
    """The labels under the same phi: the largest of their linearly interpolated one-hot maps, 0 outside.

    One label at a time, so that many labels need no more memory than two.
    """
    best = torch.zeros(len(phi), *labels.shape, dtype=phi.dtype, device=phi.device)
    found = torch.zeros(best.shape, dtype=labels.dtype, device=labels.device)
    for value in labels.unique():
        there = (labels == value).to(phi).expand(len(phi), 1, *labels.shape)
        share = warp(there, phi, padding="zeros")[:, 0]
        found = torch.where(share > best, value, found)
        best = torch.maximum(share, best)
    return found


@dataclass(frozen=True)
class RandomDeformations:
    """Deformations of one image.

    Attributes:
        phi: their displacements in voxels, one a draw.
        draws: the number of every draw, which with the seed is all that it depends on.
    """

    phi: Float[Tensor, "draws d *grid"]
    draws: tuple[int, ...]

    @property
    def lengths(self) -> Float[Tensor, "draws *grid"]:
        """|u| in % of the side, each axis of its own."""
        return 100 * (self.phi / sides_of(self.phi)).square().sum(1).sqrt()

    @property
    def diversity(self) -> float:
        """Mean over pairs of draws of the rms of phi_i - phi_j, in % of the side; NaN for one draw."""
        scaled = 100 * self.phi / sides_of(self.phi)
        gaps = [
            float((a - b).square().sum(0).mean().sqrt())
            for k, a in enumerate(scaled)
            for b in scaled[k + 1 :]
        ]
        return sum(gaps) / len(gaps) if gaps else math.nan

    def statistics(self) -> dict[str, float]:
        """Of the draws together: sizes in % of the side, folding in % of the voxels, growth, diversity.

        `log_jacobian_sd` is the std of log det, the determinant clipped at 1e-3.
        """
        determinant, lengths = jacobian(self.phi), self.lengths
        return {
            "mean_displacement_%": float(lengths.mean()),
            "max_displacement_%": float(lengths.max()),
            "folded_central_%": 100 * float((determinant <= 0).double().mean()),
            "folded_strict_%": 100 * float(folded_strict(self.phi).double().mean()),
            "log_jacobian_sd": float(determinant.clamp_min(1e-3).log().std()),
            "diversity_%": self.diversity,
        }


@dataclass(frozen=True)
class Drdm:
    """The generator: a heuristic without density (`CLAIM`), for images like those of its card.

    Attributes:
        network: finds the inverse of the last part of a deformation.
        process: the deformations that it was trained on.
        card: what it was trained on; its `shape` is the size at which the network sees an image.
    """

    network: RecoveryNetwork
    process: Process
    card: PriorCard

    def require(self, shape: Sequence[int], level: int, start: str = "level") -> None:
        """Refuses what the network was not trained for.

        Raises:
            InputError: for another number of axes or image size, a level outside 1 .. T - 1, another start.
        """
        name = self.card.name
        if len(shape) != self.network.dimensions:
            raise InputError(
                f"prior {name!r} deforms images of {self.network.dimensions} axes and this one has "
                f"{len(shape)}; choose another prior"
            )
        known = self.card.shape or shape
        ratios = [n / m for n, m in zip(shape, known, strict=True)]
        if max(ratios) > ASPECT * min(ratios):
            raise InputError(
                f"prior {name!r} was trained for images of {_sides(known)} and this one is "
                f"{_sides(shape)}; crop it to sides in that proportion"
            )
        if not 1 <= level < self.network.steps:
            raise InputError(
                f"sampler.level is {level}; prior {name!r} knows the levels 1 to {self.network.steps - 1}"
            )
        if start not in STARTS:
            raise InputError(f"sampler.start is {start!r}; expected {' or '.join(STARTS)}")

    def random(self, shape: Sequence[int], level: int, seed: int, draws: Sequence[int]) -> RandomDeformations:
        """phi of `level` before any recovery; draw i depends on (seed, i) alone."""
        phi = [self.process.draw(level, shape, keyed_stream(seed, i))[0] for i in draws]
        return RandomDeformations(torch.stack(phi), tuple(draws))

    @torch.no_grad()
    def recovered(
        self,
        images: Float[Tensor, "images *grid"],
        phi: Float[Tensor, "batch d *grid"],
        level: int,
        start: str = "level",
    ) -> Float[Tensor, "batch d *grid"]:
        """phi of as many images or of one after recovery from `level` (of the top, from T - 1) down to 1.

        Every step warps the original image, so that interpolation blurs it once. The network sees it averaged
        to its own size, and its field, in fractions of the sides, is interpolated back. Deformations go
        through it together, as many as hold `TOGETHER` pixels, and none depends on the others.
        """
        whole = tuple(phi.shape[2:])
        size = tuple(self.card.shape or whole)
        linear = "bilinear" if len(size) == 2 else "trilinear"
        first = level if start == "level" else self.network.steps - 1
        count = max(1, TOGETHER // math.prod(size))
        still = images[:, None].expand(len(phi), 1, *whole)
        done = []
        for image, found in zip(still.split(count), phi.split(count), strict=True):
            for t in range(first, 0, -1):
                seen = F.interpolate(warped_image(image, found), size, mode="area")
                part = self.network(seen, torch.full((len(found),), t, device=found.device))
                u = F.interpolate(part, whole, mode=linear, align_corners=False) * sides_of(found)
                found = compose(found, u)
            done.append(found)
        return torch.cat(done)

    def sample(
        self,
        image: Float[Tensor, "*grid"],
        level: int,
        seed: int,
        draws: Sequence[int],
        start: str = "level",
    ) -> RandomDeformations:
        """Recovered deformations of an image in [0, 1], each for itself: to rounding, the same among others.

        Raises:
            InputError: see `require`.
        """
        self.require(tuple(image.shape), level, start)
        before = self.random(tuple(image.shape), level, seed, draws)
        return RandomDeformations(
            self.recovered(image[None], before.phi.to(image), level, start), before.draws
        )


def load_drdm(path: Path = CARDIAC) -> Drdm:
    """The generator from the file that training writes.

    Raises:
        InputError: for a file that holds another network, or a card or a process that do not fit it.
    """
    network, header, card = read_prior({"path": path})
    if not isinstance(network, RecoveryNetwork):
        kind = header["network"].get("name")
        raise InputError(f"{path.name} holds a network {kind!r}; expected one of deformations (drdm)")
    try:
        process = Process(dimensions=network.dimensions, **network.process)
    except TypeError as error:
        raise InputError(f"{path.name} has a process that is not known ({error})") from None
    if card.shape is None or len(card.shape) != network.dimensions:
        raise InputError(
            f"{path.name} is of {network.dimensions} axes and was trained on images of "
            f"{'no stated size' if card.shape is None else _sides(card.shape)}; the file is damaged"
        )
    flat = torch.channels_last if network.dimensions == 2 else torch.channels_last_3d
    return Drdm(network.to(memory_format=flat), process, card)


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)
