"""Search over starting noises (Ma et al., arXiv 2501.09732): an optimiser, not a sampler.

A deterministic sampler is a function of its start x_T. Candidates z ~ N(0, I) give
x_T = m + sqrt(sigma^2 + v) z, and a verifier V scores what comes out:

    random      the best of N
    zero_order  the best becomes the pivot, neighbours z' = (z + l u) / sqrt(1 + l^2) compete with it
    paths       N partial trajectories to sigma_a, each noised again to sigma_b > sigma_a M times, denoised
                past sigma_a and scored by V(D); the N best go on

The default verifier is log p(y | x). Whatever V is, it is exploited: what V does not see gets worse, the
spread of the results means nothing, and reports say so (claim `heuristic`). The neighbour rule keeps z
standard normal; the paper gives none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.prior.prior import Prior, PriorCard
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.loop import DiffusionSampler, Draws, Progress, require_finite
from invdiff.sampler.start import prior_marginal

Verifier = Callable[[Float[Tensor, "batch *event"], Measurement], Float[Tensor, "batch"]]
Kind: TypeAlias = Literal["random", "zero_order", "paths"]


def likelihood(x: Float[Tensor, "batch *event"], measurement: Measurement) -> Float[Tensor, "batch"]:
    """The default verifier: log p(y | x)."""
    with torch.no_grad():
        return measurement.log_likelihood(x)


def ensemble_of(*verifiers: Verifier) -> Verifier:
    """Several verifiers as one: the mean of the ranks that each gives."""

    def combined(x: Float[Tensor, "batch *event"], measurement: Measurement) -> Float[Tensor, "batch"]:
        ranks = [one(x, measurement).argsort().argsort().double() for one in verifiers]
        return torch.stack(ranks).mean(dim=0)

    return combined


@dataclass(frozen=True)
class GivenStart:
    """Starts from given standard noises z instead of fresh ones."""

    z: Float[Tensor, "batch *event"]

    def __call__(
        self, card: PriorCard, shape: tuple[int, ...], sigma: float, noise: ParticleNoise
    ) -> Float[Tensor, "particles *event"]:
        return prior_marginal(card, sigma, self.z)


@dataclass(frozen=True)
class NoiseSearch:
    """A search around a deterministic sampler of the loop (eta = 0).

    Attributes:
        sampler: the loop whose start is searched.
        kind: random, zero_order or paths.
        candidates: N of each round.
        rounds: of zero_order and paths.
        radius: l of the neighbours.
        resume: index of the level sigma_a, as a share of the schedule, that paths go down to first.
        verifier: V; larger is better.
    """

    sampler: DiffusionSampler
    kind: Kind = "random"
    candidates: int = 8
    rounds: int = 3
    radius: float = 0.3
    resume: float = 0.4
    verifier: Verifier = likelihood
    name: ClassVar[str] = "noise_search"
    claim: ClassVar[Claim] = "heuristic"

    def __post_init__(self) -> None:
        if self.sampler.integrator.eta > 0:
            raise InputError(
                "a search over starts needs a deterministic sampler; set eta=0 (integrator ddim or 2m)"
            )
        if self.kind not in ("random", "zero_order", "paths"):
            raise InputError(f"noise_search knows random, zero_order and paths; found {self.kind!r}")
        if self.candidates < 2 or self.rounds < 1 or not 0 < self.resume < 1:
            raise InputError("noise_search needs candidates >= 2, rounds >= 1 and resume between 0 and 1")

    @property
    def needs_linear(self) -> bool:
        return self.sampler.needs_linear

    @property
    def steps(self) -> int:
        rounds = 1 if self.kind == "random" else self.rounds
        return rounds

    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        shape: tuple[int, ...],
        noise: ParticleNoise,
        progress: Progress | None = None,
    ) -> Draws:
        rows = []
        for number in noise.particles:
            own = ParticleNoise(noise.seed, [number], item=noise.item, device=noise.device, dtype=noise.dtype)
            rows.append(self.search(prior, measurement, shape, own, progress))
        x = torch.cat(rows)
        require_finite(x, self.name)
        return Draws(x)

    def search(
        self,
        prior: Prior,
        measurement: Measurement,
        shape: tuple[int, ...],
        noise: ParticleNoise,
        progress: Progress | None,
    ) -> Float[Tensor, "one *event"]:
        """The best result of one search."""

        def fresh(count: int) -> Tensor:
            return torch.cat([noise.normal(shape) for _ in range(count)])

        def run(z: Tensor) -> tuple[Tensor, Tensor]:
            many = replace(self.sampler, start=GivenStart(z))
            silent = ParticleNoise(0, range(len(z)), device=noise.device, dtype=noise.dtype)
            x = many(prior, measurement, shape, silent).x
            return x, self.verifier(x, measurement)

        if self.kind == "paths":
            return self.paths(prior, measurement, shape, fresh, progress)
        z = fresh(self.candidates)
        x, score = run(z)
        for done in range(self.rounds - 1 if self.kind == "zero_order" else 0):
            best = int(score.argmax())
            kept = (z[best : best + 1], x[best : best + 1], score[best : best + 1])
            near = (kept[0] + self.radius * fresh(self.candidates)) / math.sqrt(1 + self.radius**2)
            found, value = run(near)
            z, x, score = (torch.cat(pair) for pair in zip(kept, (near, found, value), strict=True))
            if progress is not None:
                progress(done + 1, self.rounds)
        best = int(score.argmax())
        return x[best : best + 1]

    def paths(
        self,
        prior: Prior,
        measurement: Measurement,
        shape: tuple[int, ...],
        fresh: Callable[[int], Tensor],
        progress: Progress | None,
    ) -> Float[Tensor, "one *event"]:
        """Search over paths: N kept states at sigma_a, noised to sigma_b and denoised again, M each."""
        levels = self.sampler.schedule
        low = max(1, round(self.resume * (len(levels) - 1)))
        high = max(0, low - max(1, len(levels) // 8))
        keep, many = max(1, self.candidates // 4), max(2, self.candidates // max(1, self.candidates // 4))

        def down(x: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
            """The states at level `last` and D there."""
            state = self.sampler.integrator.start(x, levels[first])
            denoised = x
            for a, b in itertools.pairwise([*levels[first : last + 1], 0.0]):
                guided = self.sampler.guidance(prior, measurement, state.x, a, b)
                denoised = guided.denoised
                if b == 0.0:
                    break
                state = self.sampler.integrator.step(state, denoised, b, no_noise, guided.direction)
                if guided.impulse is not None:
                    state.x.add_(guided.impulse)
            return state.x, denoised

        x = prior_marginal(prior.card, levels[0], fresh(self.candidates))
        x, denoised = down(x, 0, low)
        for done in range(self.rounds):
            order = self.verifier(denoised, measurement).argsort(descending=True)[:keep]
            x = x[order].repeat_interleave(many, dim=0)
            spread = math.sqrt(levels[high] ** 2 - levels[low] ** 2)
            noised = x + spread * fresh(len(x))
            x, denoised = down(noised, high, low)
            if progress is not None:
                progress(done + 1, self.rounds)
        order = self.verifier(denoised, measurement).argsort(descending=True)[:keep]
        _, final = down(x[order], low, len(levels) - 1)
        best = int(self.verifier(final, measurement).argmax())
        return final[best : best + 1]


def no_noise(shape: tuple[int, ...]) -> Tensor:
    """Deterministic steps draw nothing."""
    raise AssertionError("a deterministic sampler asked for noise")
