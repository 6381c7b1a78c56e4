"""Search over starting noises (Ma et al., arXiv 2501.09732): an optimiser, not a sampler.

A deterministic sampler is a function of the standard noise z that its start is made of; for a draw from the
prior x_T = m + sqrt(sigma^2 + v) z. Candidates z ~ N(0, I) compete, and a verifier V scores what comes out:

    random      the best of N
    zero_order  the best becomes the pivot, neighbours z' = (z + l u) / sqrt(1 + l^2) compete with it
    paths       N partial trajectories to sigma_a, each noised again to sigma_b > sigma_a M times, denoised
                past sigma_a and scored by V(D); the N best go on

The default verifier is log p(y | x). Whatever V is, it is exploited: what V does not see gets worse, the
spread of the results means nothing, and reports say so (claim `heuristic`). The neighbour rule keeps z
standard normal; the paper gives none. Search over the noise of the steps instead is `rollover`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.prior.prior import Prior
from invdiff.sampler.guidance.guidance import Claim, Guided
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.loop import DiffusionSampler, Draws, Progress, Wrapper, descend, require_finite

Verifier = Callable[[Float[Tensor, "batch *event"], Measurement], Float[Tensor, "batch"]]
Kind: TypeAlias = Literal["random", "zero_order", "paths"]


def likelihood(x: Float[Tensor, "batch *event"], measurement: Measurement) -> Float[Tensor, "batch"]:
    """The default verifier: log p(y | x)."""
    with torch.no_grad():
        return measurement.log_likelihood(x)


@dataclass(frozen=True)
class MeanRank:
    """Several verifiers as one: the mean of the ranks that each gives, among the candidates of one call."""

    verifiers: tuple[Verifier, ...]

    def __call__(self, x: Float[Tensor, "batch *event"], measurement: Measurement) -> Float[Tensor, "batch"]:
        ranks = [one(x, measurement).argsort().argsort().double() for one in self.verifiers]
        return torch.stack(ranks).mean(dim=0)


def ensemble_of(*verifiers: Verifier) -> MeanRank:
    """Several verifiers as one, see `MeanRank`."""
    return MeanRank(verifiers)


def scores(
    verifier: Verifier, x: Float[Tensor, "batch *event"], measurement: Measurement
) -> Float[Tensor, "batch"]:
    """V of every candidate; -inf is a score, NaN an error."""
    found = verifier(x, measurement)
    if bool(found.isnan().any()):
        raise FloatingPointError("the verifier of a search returned NaN; give -inf for what must not win")
    return found


class GivenNoise(ParticleNoise):
    """The standard noise z of a deterministic sampler's start, given instead of drawn."""

    def __init__(self, z: Float[Tensor, "candidates *event"]) -> None:
        super().__init__(0, range(len(z)), device=z.device, dtype=z.dtype)
        self.z: Tensor | None = z

    def normal(self, shape: tuple[int, ...]) -> Float[Tensor, "particles *event"]:
        z, self.z = self.z, None
        assert z is not None and z.shape[1:] == shape, "a deterministic sampler asked for noise twice"
        return z


def one_by_one(noise: ParticleNoise) -> Iterator[ParticleNoise]:
    """The noise of every particle by itself: a search is one particle's affair."""
    for number, stream in zip(noise.particles, noise.streams, strict=True):
        alone = copy.copy(noise)
        alone.particles, alone.streams = (number,), [stream]
        yield alone


def shared(noise: ParticleNoise, count: int) -> ParticleNoise:
    """Noise for `count` candidates of one particle, drawn in turn from its stream."""
    many = copy.copy(noise)
    many.particles, many.streams = noise.particles * count, noise.streams * count
    return many


@dataclass(frozen=True)
class NoiseSearch(Wrapper):
    """A search around a deterministic sampler of the loop (eta = 0), whatever its start.

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
        if self.sampler.integrator.eta > 0 or self.sampler.end != "mean":
            raise InputError(
                "a search over starts needs a deterministic sampler; set eta=0 (integrator ddim or 2m) and "
                "end=mean"
            )
        if self.kind not in ("random", "zero_order", "paths"):
            raise InputError(f"noise_search knows random, zero_order and paths; found {self.kind!r}")
        if self.candidates < 2 or self.rounds < 1 or not 0 < self.resume < 1:
            raise InputError("noise_search needs candidates >= 2, rounds >= 1 and resume between 0 and 1")

    @property
    def wrapped(self) -> DiffusionSampler:
        return self.sampler

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
        search = self.paths if self.kind == "paths" else self.starts
        x = torch.cat([search(prior, measurement, shape, own, progress) for own in one_by_one(noise)])
        require_finite(x, self.name)
        return Draws(x)

    def starts(
        self,
        prior: Prior,
        measurement: Measurement,
        shape: tuple[int, ...],
        noise: ParticleNoise,
        progress: Progress | None,
    ) -> Float[Tensor, "one *event"]:
        """The best result of a search over z: random or zero_order."""
        fresh = shared(noise, self.candidates)

        def run(z: Tensor) -> Tensor:
            return self.sampler(prior, measurement, shape, GivenNoise(z)).x

        z = fresh.normal(shape)
        x = run(z)
        for done in range(self.rounds - 1 if self.kind == "zero_order" else 0):
            best = int(scores(self.verifier, x, measurement).argmax())
            pivot, kept = z[best : best + 1], x[best : best + 1]
            near = (pivot + self.radius * fresh.normal(shape)) / math.sqrt(1 + self.radius**2)
            z, x = torch.cat([pivot, near]), torch.cat([kept, run(near)])
            if progress is not None:
                progress(done + 1, self.rounds)
        best = int(scores(self.verifier, x, measurement).argmax())
        return x[best : best + 1]

    def paths(
        self,
        prior: Prior,
        measurement: Measurement,
        shape: tuple[int, ...],
        noise: ParticleNoise,
        progress: Progress | None,
    ) -> Float[Tensor, "one *event"]:
        """Search over paths: N kept states at sigma_a, noised to sigma_b and denoised again, M each."""
        levels = (*self.sampler.schedule, 0.0)
        low = max(1, round(self.resume * (len(levels) - 2)))
        high = max(0, low - max(1, (len(levels) - 1) // 8))
        keep, many = max(1, self.candidates // 4), max(2, self.candidates // max(1, self.candidates // 4))
        spread = math.sqrt(levels[high] ** 2 - levels[low] ** 2)

        def guide(x: Tensor, sigma: float, sigma_next: float) -> Guided:
            return self.sampler.guidance(prior, measurement, x, sigma, sigma_next)

        def down(x: Tensor, first: int, last: int) -> Tensor:
            return descend(guide, x, levels[first : last + 1], self.sampler.integrator, no_noise)

        def leading(x: Tensor) -> Tensor:
            """The N states whose D is best."""
            value = scores(self.verifier, guide(x, levels[low], 0.0).denoised, measurement)
            return x[value.argsort(descending=True)[:keep]]

        x = self.sampler.start(prior.card, shape, levels[0], shared(noise, self.candidates))
        x = leading(down(x, 0, low))
        for done in range(self.rounds):
            x = x.repeat_interleave(many, dim=0)
            x = leading(down(x + spread * shared(noise, len(x)).normal(shape), high, low))
            if progress is not None:
                progress(done + 1, self.rounds)
        final = down(x, low, len(levels) - 1)
        best = int(scores(self.verifier, final, measurement).argmax())
        return final[best : best + 1]


def no_noise(shape: tuple[int, ...]) -> Tensor:
    """Deterministic steps draw nothing."""
    raise AssertionError("a deterministic sampler asked for noise")
