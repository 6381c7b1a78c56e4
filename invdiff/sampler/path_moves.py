"""Markov moves after resampling: preconditioned Crank-Nicolson on the noise of the last steps of a path.

Resampling copies particles; the moves spread the copies again. A move of the filter is a function of one
standard normal xi, so the last m steps of a path are its origin and (xi_1, .., xi_m), whose target is

    N(0, I)  prod_j G_j(xi)            G_j: the weight increments of the filter, proposal ratios included

The proposal of Cotter et al. (arXiv 1202.0709) keeps N(0, I), so that only the weights enter:

    xi' = sqrt(1 - beta^2) xi + beta zeta   accepted with probability min(1, prod G_j(xi') / prod G_j(xi))

The target of the filter is left as it is: evidence and expectations stay unbiased. A move costs as many
network calls a particle as the window has steps. (Langevin moves with an acceptance step would need
log p_sigma, which a denoiser does not give.)

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
    """

    moves: int = 0
    window: int = 4
    step: float = 0.4

    def __post_init__(self) -> None:
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
        keep = math.sqrt(1 - self.settings.step**2)
        for _ in range(self.settings.moves if path.noises else 0):
            count, noises, gain = len(path.gain), [], torch.zeros_like(path.gain)
            particles = path.origin
            for j, xi in enumerate(path.noises, k - len(path.noises)):
                noises.append(keep * xi + self.settings.step * self.inner.noise(count, generator))
                particles, increment = self.inner.driven(j, particles, noises[-1])
                gain = gain + increment
            chance = torch.rand(count, generator=generator, dtype=torch.float64).log().to(gain.device)
            accepted = chance < gain - path.gain
            proposed = Path(particles, path.origin, tuple(noises), gain)
            path = feynman_kac.choose(accepted, proposed, path)
        return path


def with_moves(model: feynman_kac.Model[Any], settings: Settings, method: str) -> PathModel[Any]:
    """The model with its moves.

    Raises:
        InputError: where a move of the model is more than one standard normal.
    """
    if not isinstance(model, Driven):
        raise InputError(f"sampler {method!r} has no path moves; set sampler.moves=0")
    return PathModel(model, settings)
