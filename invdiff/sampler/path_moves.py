"""Markov moves after resampling: Crank-Nicolson or Langevin on the noise of the last steps of a path.

Resampling copies particles; the moves spread the copies again. A move of the filter is a function of one
standard normal xi, so the last m steps of a path are its origin and (xi_1, .., xi_m), whose target is

    pi(xi) = N(xi; 0, I)  prod_j G_j(xi)      G_j: the weight increments, proposal ratios included

The proposals are those of Cotter et al. (arXiv 1202.0709), with a = sqrt(1 - beta^2) and zeta ~ N(0, I):

    pcn    xi' = a xi + beta zeta             keeps N(0, I): accepted with min(1, prod G(xi') / prod G(xi))
    mala   xi' = a xi + (1 - a) g(xi) + beta zeta,    g = grad log prod G
           accepted with min(1, pi(xi') q(xi | xi') / (pi(xi) q(xi' | xi))),  q its own Gaussian density

The target of the filter is left as it is: evidence and expectations stay unbiased. A move costs as many
network calls a particle as the window has steps; `mala` as many vector-Jacobian products more, and a method
whose increments autograd sees through (`steering`). (Langevin moves on x itself would need log p_sigma for
their acceptance, which a denoiser does not give.)

Measured on a Gaussian posterior with filters of 16 from the prior's proposal: std of the mean .108 without
moves, .093 with one, .089 with four; no gain in well-filled filters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.sampler import feynman_kac

P = TypeVar("P")
PROPOSALS = ("pcn", "mala")


@runtime_checkable
class Driven(Protocol[P]):
    """A Feynman-Kac model whose moves, all but the last, are functions of one standard normal."""

    @property
    def steps(self) -> int: ...

    def start(self, count: int, generator: torch.Generator) -> tuple[P, Float[Tensor, "n"]]: ...

    def move(self, k: int, particles: P, generator: torch.Generator) -> tuple[P, Float[Tensor, "n"]]: ...

    def noise(self, count: int, generator: torch.Generator) -> Float[Tensor, "n *event"]:
        """What drives one move."""

    def driven(self, k: int, particles: P, xi: Float[Tensor, "n *event"]) -> tuple[P, Float[Tensor, "n"]]:
        """`move` with its noise given."""


@dataclass(frozen=True)
class Settings:
    """Attributes:
    moves: after each resampling; 0 for none.
    window: most steps of the path that a move redraws.
    step: beta, above 0 and at most 1.
    proposal: pcn or mala.
    """

    moves: int = 0
    window: int = 4
    step: float = 0.4
    proposal: str = "pcn"

    def __post_init__(self) -> None:
        if self.proposal not in PROPOSALS:
            raise InputError(f"moves know the proposals {' and '.join(PROPOSALS)}; found {self.proposal!r}")
        if self.moves < 0 or self.window < 1 or not 0 < self.step <= 1:
            raise InputError("moves needs moves >= 0, window >= 1 and 0 < step <= 1")


@dataclass(frozen=True)
class Path(Generic[P]):
    """Particles with the last part of their paths.

    Attributes:
        particles: now.
        origin: `len(noises)` steps ago.
        noises: of the steps since.
        gain: log of the product of their increments.
    """

    particles: P
    origin: P
    noises: tuple[Float[Tensor, "n *event"], ...]
    gain: Float[Tensor, "n"]


@dataclass(frozen=True)
class PathModel(Generic[P]):
    """A driven model that remembers its paths; `rejuvenate` is for `feynman_kac.run`."""

    inner: Driven[P]
    settings: Settings

    @property
    def steps(self) -> int:
        return self.inner.steps

    def start(self, count: int, generator: torch.Generator) -> tuple[Path[P], Float[Tensor, "n"]]:
        particles, logs = self.inner.start(count, generator)
        return Path(particles, particles, (), torch.zeros_like(logs)), logs

    def move(self, k: int, path: Path[P], generator: torch.Generator) -> tuple[Path[P], Float[Tensor, "n"]]:
        if k == self.steps - 1:
            particles, increment = self.inner.move(k, path.particles, generator)
            return Path(particles, particles, (), torch.zeros_like(increment)), increment
        xi = self.inner.noise(len(path.gain), generator)
        particles, increment = self.inner.driven(k, path.particles, xi)
        if len(path.noises) >= self.settings.window:
            return Path(particles, path.particles, (xi,), increment), increment
        return Path(particles, path.origin, (*path.noises, xi), path.gain + increment), increment

    def rejuvenate(self, k: int, path: Path[P], generator: torch.Generator) -> Path[P]:
        """The moves before step k."""
        options, count = self.settings, len(path.gain)
        if not path.noises or not options.moves:
            return path
        keep, langevin = math.sqrt(1 - options.step**2), options.proposal == "mala"
        slopes = self.replayed(k, path, path.noises)[1] if langevin else ()
        for _ in range(options.moves):
            fresh = [self.inner.noise(count, generator) for _ in path.noises]
            noises = tuple(
                keep * xi + options.step * zeta for xi, zeta in zip(path.noises, fresh, strict=True)
            )
            if langevin:
                noises = tuple(xi + (1 - keep) * g for xi, g in zip(noises, slopes, strict=True))
            proposed, ahead = self.replayed(k, path, noises)
            odds = proposed.gain - path.gain
            if langevin:
                there = self.log_proposal(noises, path.noises, slopes)
                back = self.log_proposal(path.noises, noises, ahead)
                odds = odds + (back - there) + (length(path.noises) - length(noises)) / 2
            chance = torch.rand(count, generator=generator, dtype=torch.float64).log().to(odds.device)
            accepted = chance < odds
            path = feynman_kac.choose(accepted, proposed, path)
            if langevin:
                slopes = feynman_kac.choose(accepted, ahead, slopes)
        return path

    def replayed(
        self, k: int, path: Path[P], noises: tuple[Float[Tensor, "n *event"], ...]
    ) -> tuple[Path[P], tuple[Float[Tensor, "n *event"], ...]]:
        """The path that other noises make, and for `mala` the gradient of its gain."""
        langevin = self.settings.proposal == "mala"
        with torch.set_grad_enabled(langevin):
            leaves = tuple(xi.detach().requires_grad_(langevin) for xi in noises)
            particles, gain = path.origin, torch.zeros_like(path.gain)
            for j, xi in enumerate(leaves, k - len(leaves)):
                particles, increment = self.inner.driven(j, particles, xi)
                gain = gain + increment
            slopes = torch.autograd.grad(gain.sum(), leaves) if langevin else ()
        particles = feynman_kac.through(Tensor.detach, particles)
        return Path(particles, path.origin, noises, gain.detach()), slopes

    def log_proposal(
        self,
        to: tuple[Float[Tensor, "n *event"], ...],
        at: tuple[Float[Tensor, "n *event"], ...],
        slopes: tuple[Float[Tensor, "n *event"], ...],
    ) -> Float[Tensor, "n"]:
        """log q(to | at) of `mala`, less its constant."""
        keep = math.sqrt(1 - self.settings.step**2)
        parts = zip(to, at, slopes, strict=True)
        gaps = tuple(new - keep * old - (1 - keep) * slope for new, old, slope in parts)
        return -length(gaps) / (2 * self.settings.step**2)


def length(parts: tuple[Float[Tensor, "n *event"], ...]) -> Float[Tensor, "n"]:
    """Squared length over all steps, in double precision."""
    return torch.stack([part.double().reshape(len(part), -1).square().sum(1) for part in parts]).sum(0)


def with_moves(model: feynman_kac.Model[Any], settings: Settings, method: str) -> PathModel[Any]:
    """The model with its moves.

    Raises:
        InputError: where a move of the model is more than one standard normal.
    """
    if not isinstance(model, Driven):
        raise InputError(f"sampler {method!r} has no path moves; set sampler.moves=0")
    return PathModel(model, settings)
