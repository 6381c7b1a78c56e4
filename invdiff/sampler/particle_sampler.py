"""A Feynman-Kac method as a sampler: filters that return some of their particles.

One filter of N particles returns `keep` of them, equally weighted. Samples of
one filter share ancestors and an evidence estimate; with keep = 1 the samples
are independent. Sample i comes from filter i // keep, whatever else is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, get_args, runtime_checkable

import torch

from invdiff.errors import InputError, unknown_name
from invdiff.measurement.measurement import Measurement
from invdiff.prior.prior import Prior
from invdiff.sampler import feynman_kac, path_moves
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.keys import ParticleNoise, stream
from invdiff.sampler.loop import Draws, Progress, Wrapper, require_finite
from invdiff.sampler.particles import Resampling
from invdiff.sampler.weighting.target import Target

SHARED, FILTER = 1, 2  # ends of the keys of the streams


@runtime_checkable
class Method(Protocol):
    """Settings that make a Feynman-Kac model of a problem."""

    @property
    def name(self) -> str: ...

    @property
    def claim(self) -> Claim: ...

    @property
    def steps(self) -> int: ...

    def model(self, target: Target, generator: torch.Generator) -> feynman_kac.Model[Any]:
        """The model; `generator` is for work that all filters share (a pilot run)."""


@dataclass(frozen=True)
class ParticleSampler(Wrapper):
    """Attributes:
    method: what is simulated and how it is weighted.
    particles: N of each filter.
    keep: samples that each filter returns.
    threshold, resampling: see `feynman_kac.Settings`.
    resample_from, resample_to: shares of the moves between which resampling is allowed.
    moves, moves_window, moves_step, moves_proposal: see `path_moves.Settings`.
    ready: the model of a prepared problem.
    """

    method: Method
    particles: int = 128
    keep: int = 1
    threshold: float = 0.5
    resampling: str = "systematic"
    resample_from: float = 0.0
    resample_to: float = 1.0
    moves: int = 0
    moves_window: int = 4
    moves_step: float = 0.4
    moves_proposal: str = "pcn"
    ready: feynman_kac.Model[Any] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.particles:
            raise InputError(
                f"a filter of {self.particles} particles cannot return {self.keep} samples; "
                "keep lies between 1 and particles"
            )
        if not 0 <= self.resample_from < self.resample_to <= 1:
            raise InputError("a particle sampler needs 0 <= resample_from < resample_to <= 1")
        if self.resampling not in get_args(Resampling):
            raise unknown_name("resampling scheme", self.resampling, get_args(Resampling))
        if self.path_moves().proposal == "mala" and not getattr(self.method, "differentiable", False):
            raise InputError(
                f"the weights of sampler {self.name!r} have no derivative in the noise of its steps; set "
                "sampler.moves_proposal=pcn"
            )

    def path_moves(self) -> path_moves.Settings:
        """Of the moves after resampling.

        Raises:
            InputError: for numbers out of range or an unknown proposal.
        """
        return path_moves.Settings(self.moves, self.moves_window, self.moves_step, self.moves_proposal)

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def claim(self) -> Claim:
        return self.method.claim

    @property
    def wrapped(self) -> Method:
        return self.method

    @property
    def needs_gradient(self) -> bool:
        return super().needs_gradient or (self.moves > 0 and self.moves_proposal == "mala")

    @property
    def reach(self) -> float:
        """Information of the data, in nats, up to which the shipped settings are claimed to suffice.

        A population that forgets the prior to learn I nats from the data needs about exp(I) particles,
        less what twist and guidance save (Chatterjee & Diaconis 2018).
        """
        return float(getattr(self.method, "reach", 0))

    @property
    def composes(self) -> bool:
        """Whether the method weighs compositions of priors correctly."""
        return bool(getattr(self.method, "composes", False))

    @property
    def steps(self) -> int:
        return self.method.steps

    def prepare(
        self,
        prior: Prior,
        measurement: Measurement,
        shape: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> ParticleSampler:
        """The sampler with its model, whose shared work (a pilot) is done once a problem."""
        target = Target(prior, measurement, shape, device, dtype)
        model = self.method.model(target, stream(0, SHARED))
        if self.moves:
            options = path_moves.Settings(self.moves, self.moves_window, self.moves_step, self.moves_proposal)
            model = path_moves.with_moves(model, options, self.name)
        return replace(self, ready=model)

    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        shape: tuple[int, ...],
        noise: ParticleNoise,
        progress: Progress | None = None,
    ) -> Draws:
        model = self.ready
        if model is None:
            model = self.prepare(prior, measurement, shape, noise.device, noise.dtype).ready
        assert model is not None
        window = (round(self.resample_from * model.steps), round(self.resample_to * model.steps))
        settings = feynman_kac.Settings(self.particles, self.threshold, self.resampling, window)
        rejuvenate = getattr(model, "rejuvenate", None)
        rows: dict[int, torch.Tensor] = {}
        statistics = []
        groups = sorted({number // self.keep for number in noise.particles})
        for done, group in enumerate(groups):
            generator = stream(noise.seed, noise.item, group, FILTER)

            def tell(k: int, steps: int, done: int = done) -> None:
                if progress is not None:
                    progress((done * steps + k) // len(groups), steps)

            filtered = feynman_kac.run(model, settings, generator, rejuvenate, progress=tell)
            final = filtered.drawn(self.keep, generator)
            if isinstance(final, path_moves.Path):
                final = final.particles
            state = getattr(model, "state", None)
            x = state(final) if state else final if isinstance(final, torch.Tensor) else final.x
            rows.update(enumerate(x.reshape(-1, *shape), group * self.keep))
            if getattr(model, "weighted", True):
                statistics.append(filtered.statistics)
        x = torch.stack([rows[number] for number in noise.particles])
        require_finite(x, self.name)
        return Draws(x, tuple(statistics))
