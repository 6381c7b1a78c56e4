"""The loop: start, then (guide, step) down the levels, to samples of p(x | y)."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.prior.masked import MaskedPrior
from invdiff.prior.prior import Prior, PriorCard
from invdiff.sampler.feynman_kac import FilterStatistics
from invdiff.sampler.guidance.guidance import Claim, Guidance, Guided
from invdiff.sampler.integrator import ExponentialMultistep, Normal
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.likelihood import posterior_draw
from invdiff.sampler.schedule import Schedule
from invdiff.sampler.start import PriorDraw

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Draws:
    """What a sampler returns.

    Attributes:
        x: equally weighted samples.
        filters: for particle methods, the statistics of every filter that was run.
    """

    x: Float[Tensor, "particles *event"]
    filters: tuple[FilterStatistics, ...] = ()


@runtime_checkable
class Start(Protocol):
    """Draws the state at the first level."""

    def __call__(
        self, card: PriorCard, shape: tuple[int, ...], sigma: float, noise: ParticleNoise
    ) -> Float[Tensor, "particles *event"]: ...


@runtime_checkable
class Sampler(Protocol):
    """Draws samples of p(x | y), each from its own stream of random numbers.

    Attributes:
        name: its name in reports.
        claim: what the samples are worth, see `Guidance`.
        steps: progress units of one call.
    """

    @property
    def name(self) -> str: ...

    @property
    def claim(self) -> Claim: ...

    @property
    def steps(self) -> int: ...

    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        shape: tuple[int, ...],
        noise: ParticleNoise,
        progress: Progress | None = None,
    ) -> Draws: ...


class Wrapper(ABC):
    """A sampler around a method takes the operators and the noise that the method takes."""

    @property
    @abstractmethod
    def wrapped(self) -> object:
        """The method inside."""

    @property
    def needs_linear(self) -> bool:
        return needs_linear(self.wrapped)

    @property
    def needs_gaussian(self) -> bool:
        return needs_gaussian(self.wrapped)

    @property
    def needs_gradient(self) -> bool:
        return needs_gradient(self.wrapped)


End: TypeAlias = Literal["mean", "draw"]


@dataclass(frozen=True)
class DiffusionSampler(Wrapper):
    """Guided reverse diffusion: the one loop, with its four pieces.

    Attributes:
        schedule: decreasing levels; the step from the last one goes to 0.
        guidance: D -> E[x0 | x, y].
        integrator: how a step is taken.
        start: the state at the first level.
        end: what the last level s returns. `mean`: the guided D, which leaves the variance at s out of the
            samples. `draw`: a draw of N(z; D, r^2 I) N(y; A z, sigma_y^2 I) with the prior's own r^2 at s,
            by perturb-and-solve: samples whose misfit is that of the noise. Linear operators, Gaussian noise.
    """

    schedule: Schedule
    guidance: Guidance
    integrator: ExponentialMultistep = field(default_factory=ExponentialMultistep)
    start: Start = field(default_factory=PriorDraw)
    end: End = "mean"

    @property
    def needs_linear(self) -> bool:
        return self.end == "draw" or super().needs_linear

    @property
    def needs_gaussian(self) -> bool:
        return self.end == "draw" or super().needs_gaussian

    @property
    def name(self) -> str:
        return self.guidance.name

    @property
    def claim(self) -> Claim:
        return getattr(self.start, "claim", self.guidance.claim)

    @property
    def wrapped(self) -> Guidance:
        return self.guidance

    @property
    def steps(self) -> int:
        return len(self.schedule)

    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        shape: tuple[int, ...],
        noise: ParticleNoise,
        progress: Progress | None = None,
    ) -> Draws:
        start = self.start(prior.card, shape, self.schedule[0], noise)

        def denoise(x: Tensor, sigma: float, sigma_next: float) -> Guided:
            return self.guidance(prior, measurement, x, sigma, sigma_next)

        levels = (*self.schedule, 0.0) if self.end == "mean" else self.schedule
        x = descend(denoise, start, levels, self.integrator, noise.normal, progress)
        if self.end == "draw":
            r2 = prior.card.conditional_variance(levels[-1])
            with torch.no_grad():
                x = prior.denoise(x, levels[-1])
            x = posterior_draw(measurement, x, r2, noise, 30, 1e-4, self.name)
            if progress is not None:
                progress(len(levels), len(levels))
        require_finite(x, self.name)
        return Draws(x)


def descend(
    denoise: Callable[[Tensor, float, float], Guided],
    x: Float[Tensor, "batch *event"],
    levels: Sequence[float],
    integrator: ExponentialMultistep,
    normal: Normal,
    progress: Progress | None = None,
) -> Float[Tensor, "batch *event"]:
    """x from `levels[0]` down to `levels[-1]`; `denoise(x, sigma, sigma_next)` gives the (guided) D."""
    state = integrator.start(x, levels[0])
    for k, (sigma, sigma_next) in enumerate(itertools.pairwise(levels)):
        guided = denoise(state.x, sigma, sigma_next)
        state = integrator.step(state, guided.denoised, sigma_next, normal, guided.direction)
        if guided.impulse is not None and sigma_next > 0:
            state.x.add_(guided.impulse)
        if progress is not None:
            progress(k + 1, len(levels) - 1)
    return state.x


@torch.no_grad()
def reverse(
    prior: Prior,
    x: Float[Tensor, "batch *event"],
    levels: Sequence[float],
    integrator: ExponentialMultistep,
    normal: Normal,
) -> Float[Tensor, "batch *event"]:
    """x from `levels[0]` down to `levels[-1]` by the prior alone."""
    return descend(lambda x, sigma, _: Guided(prior.denoise(x, sigma)), x, levels, integrator, normal)


def require_finite(x: Float[Tensor, "batch *event"], sampler: str) -> None:
    """Raise where a sampler's result is not finite; it is never repaired."""
    if not bool(torch.isfinite(x).all()):
        bad = [i for i, row in enumerate(x) if not bool(torch.isfinite(row).all())]
        raise FloatingPointError(
            f"sampler {sampler!r} returned values that are not finite for particles {bad[:8]}; "
            "lower its step length or its first noise level"
        )


def needs_linear(method: object) -> bool:
    """Whether a method refuses nonlinear operators; it does unless it says otherwise."""
    return bool(getattr(method, "needs_linear", True))


def needs_gaussian(method: object) -> bool:
    """Whether a method refuses noise that is not Gaussian; it does unless it says otherwise."""
    return bool(getattr(method, "needs_gaussian", True))


def needs_gradient(method: object) -> bool:
    """Whether a method differentiates the forward model; it does unless it says otherwise."""
    return bool(getattr(method, "needs_gradient", True))


def require_supported(
    sampler: Sampler, measurement: Measurement, shape: tuple[int, ...] | None = None
) -> None:
    """Refuse an operator, a noise or an event shape that the sampler does not take.

    Raises:
        InputError: in one sentence, with what to use instead.
    """
    try:
        if needs_linear(sampler):
            measurement.linear(sampler.name)
        if needs_gaussian(sampler):
            measurement.gaussian(sampler.name)
    except InputError as error:
        raise InputError(f"{error}{_freed_by_mean(sampler, measurement)}") from None
    if needs_gradient(sampler) and not measurement.operator.differentiable:
        raise InputError(
            f"sampler {sampler.name!r} needs the derivative of the forward model and "
            f"{type(measurement.operator).__name__} has none; use sampler=steering or lookahead"
        )
    if shape is not None and getattr(sampler, "needs_stack", False) and (len(shape) != 4 or shape[0] < 2):
        raise InputError(
            f"sampler {sampler.name!r} couples the slices of a volume and this item has shape {shape}; "
            "use operator.volume=true with two slices or more, or another sampler"
        )


def _freed_by_mean(sampler: Sampler, measurement: Measurement) -> str:
    """What to set where a sampler would take the measurement but for its `end`; empty where it would not."""
    if not isinstance(sampler, DiffusionSampler) or sampler.end == "mean":
        return ""
    try:
        require_supported(replace(sampler, end="mean"), measurement)
    except InputError:
        return ""
    return "; its guidance takes this measurement where sampler.end=mean"


def require_prior(sampler: Sampler, prior: Prior) -> None:
    """Refuse a prior that the sampler does not run on: what its method's `require` says, else tokens.

    Raises:
        InputError: in one sentence, with what to use instead.
    """
    method: object = sampler
    while (inner := getattr(method, "wrapped", None)) is not None:
        method = inner
    demand = getattr(method, "require", None)
    if demand is not None:
        demand(prior)
    elif isinstance(prior, MaskedPrior):
        raise InputError(
            f"prior {prior.card.name!r} is of tokens and has no noise levels, and sampler {sampler.name!r} "
            "needs them; use sampler=first_hitting"
        )


def whole_groups(batch: int, sampler: Sampler) -> int:
    """`batch` rounded up to whole groups of samples that one filter returns (see `particle_sampler`)."""
    group = int(getattr(sampler, "keep", 1))
    return -(-batch // group) * group


def prepared(
    sampler: Sampler,
    prior: Prior,
    measurement: Measurement,
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Sampler:
    """The sampler with what all samples of a problem share, computed once where it has any.

    Raises:
        InputError: for an operator, a noise or a prior that it does not take.
    """
    require_supported(sampler, measurement, shape)
    require_prior(sampler, prior)
    prepare = getattr(sampler, "prepare", None)
    if prepare is None:
        return sampler
    ready: Sampler = prepare(prior, measurement.to(device), shape, torch.device(device), dtype)
    return ready


def draw(
    sampler: Sampler,
    prior: Prior,
    measurement: Measurement,
    shape: tuple[int, ...],
    *,
    particles: Sequence[int],
    seed: int = 0,
    item: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Draws:
    """Samples of the given particle numbers; a number's sample is the same in any batch."""
    noise = ParticleNoise(seed, particles, item=item, device=device, dtype=dtype)
    return sampler(prior, measurement.to(device), shape, noise, progress)
