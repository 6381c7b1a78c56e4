"""Active subsampling: what to measure next, decided by particles that fit what was measured so far.

P particles x_i of the posterior given the data so far (the belief) predict every candidate,
m_i(l) = A_l x_i. A turn measures the candidates on which they disagree most (`disagreement`
has the scores).

The belief is one of two. `sampler`: fresh draws of a posterior sampler, every turn. `pass`: the
particles of one guided reverse diffusion, which measures on its way down, inside a window of noise
levels, and goes on with the new data (active diffusion subsampling, Nolan et al., arXiv
2406.14388). A pass costs less, but a particle already at a low level can no longer follow new data.

The choice depends on past data only, so it biases no posterior; the samples of a run are drawn
afterwards, by any sampler, given all that was measured. With exact particles of a Gaussian prior
`variance` is the greedy maximum-entropy design for candidates of one component (tested against the
closed form). That it is a good choice for an image is a heuristic claim, measured in
`benchmarks/design.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError, unknown_name
from invdiff.measurement.candidates import Layout, candidates_of, select
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import Operator
from invdiff.prior.prior import Prior
from invdiff.registry import construct
from invdiff.sampler.disagreement import mixture_entropy, pick, total_variance
from invdiff.sampler.guidance.guidance import Guidance, Guided
from invdiff.sampler.guidance.proximal import Proximal
from invdiff.sampler.instrument import FileExchange
from invdiff.sampler.integrator import ExponentialMultistep
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.loop import Sampler, descend, prepared
from invdiff.sampler.schedule import Schedule, loguniform
from invdiff.sampler.start import PriorDraw

Policy: TypeAlias = Literal["variance", "entropy", "random", "equispaced", "variable_density"]
Belief: TypeAlias = Literal["sampler", "pass"]
ACTIVE = ("variance", "entropy")
FIXED = ("random", "equispaced", "variable_density")
Source: TypeAlias = Callable[[Sequence[int]], Tensor]
"""The instrument: candidates to data of the full layout, right at those candidates."""

FIRST_PARTICLE = 1 << 30  # the belief's particles draw from other streams than a run's samples


def fixed_order(
    policy: Policy, count: int, budget: int, initial: Sequence[int], seed: int = 0, width: float = 0.2
) -> list[int]:
    """A policy that does not look at the data: `initial`, then candidates by chance or evenly.

    Args:
        policy: `random` (uniform), `equispaced` (evenly, a random offset), or `variable_density` (drawn with
            density exp(-d^2 / (2 (width count)^2)) of the distance d from the middle, no repeats).

    Raises:
        InputError: for a policy that is not one of these.
    """
    if policy not in FIXED:
        raise unknown_name("policy", policy, FIXED)
    random = np.random.default_rng([seed, 1])
    order = list(initial)
    rest = np.setdiff1d(np.arange(count), order)
    wanted = budget - len(order)
    if policy == "random":
        order += [int(i) for i in random.choice(rest, wanted, replace=False)]
    elif policy == "variable_density":
        distance = np.abs(rest - count // 2) / (width * count)
        density = np.exp(-0.5 * distance**2) + 1e-12
        order += [int(i) for i in random.choice(rest, wanted, replace=False, p=density / density.sum())]
    elif wanted > 0:
        places = (np.arange(wanted) + random.random()) * len(rest) / wanted
        order += [int(i) for i in rest[np.minimum(places.astype(int), len(rest) - 1)]]
    return order


@dataclass(frozen=True)
class Design:
    """How measurements are chosen.

    Attributes:
        policy: `variance` or `entropy` (active); `random`, `equispaced`, `variable_density` (fixed).
        belief: `sampler` or `pass`, see the module.
        particles: P.
        turns: turns of measuring; of a pass, at most one a level of the window.
        neighbours: width in candidates of the region around a pick that counts less in the same turn.
        schedule: noise levels of a pass, decreasing.
        window: of a pass, (high, low) levels between which it measures, evenly over the levels there.
        guidance: how a pass sees the data.
        seed: of the belief and the fixed policies.
    """

    policy: Policy = "variance"
    belief: Belief = "sampler"
    particles: int = 6
    turns: int = 6
    neighbours: float = 4.0
    schedule: Schedule = field(default_factory=lambda: loguniform(12, 5.0, 0.05))
    window: tuple[float, float] = (1.0, 0.05)
    guidance: Guidance = field(default_factory=Proximal)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.particles < 2 and self.policy in ACTIVE:
            raise InputError(f"design.particles is {self.particles}; two or more can disagree")
        if self.turns < 1 or self.neighbours < 0:
            raise InputError(
                f"design.turns is {self.turns} and design.neighbours {self.neighbours:g}; expected 1 or more "
                "and 0 or more"
            )
        if self.belief == "pass" and not self.inside():
            raise InputError(
                f"no noise level lies in design.window {self.window}; they go from {self.schedule[0]:g} to "
                f"{self.schedule[-1]:g}"
            )

    def inside(self) -> list[int]:
        """Indices of the levels in the window."""
        high, low = max(self.window), min(self.window)
        return [k for k, sigma in enumerate(self.schedule) if low * (1 - 1e-9) <= sigma <= high * (1 + 1e-9)]

    def counts(self, wanted: int) -> list[int]:
        """How many candidates every turn measures."""
        most = min(self.turns, len(self.inside())) if self.belief == "pass" else self.turns
        turns = min(wanted, most)
        return [wanted * (t + 1) // turns - wanted * t // turns for t in range(turns)] if turns else []

    def segments(self, turns: int) -> list[Schedule]:
        """The levels of a pass in as many parts, each with the level after it."""
        inside, whole = self.inside(), (*self.schedule, 0.0)
        ends = [inside[(2 * t + 1) * len(inside) // (2 * turns)] + 1 for t in range(turns)]
        return [whole[a : b + 1] for a, b in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class Turn:
    """One decision: what was chosen, at which noise level, by which score, in how many seconds.

    Attributes:
        seconds: of predicting, scoring and picking; the network's time to the next level is not in it.
        s2: width of the entropy's Gaussians; raised where the score saturated.
    """

    chosen: tuple[int, ...]
    scores: tuple[float, ...] = ()
    sigma: float | None = None
    s2: float | None = None
    raised: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Acquisition:
    """What was measured, in order; the first turn is the start, which no policy chose."""

    policy: str
    count: int
    turns: tuple[Turn, ...]

    @property
    def order(self) -> list[int]:
        """Candidates in the order of their measurement."""
        return [one for turn in self.turns for one in turn.chosen]

    def facts(self) -> dict[str, Any]:
        """Single figures for a report."""
        chosen = self.turns[1:]
        out: dict[str, Any] = {
            "policy": self.policy,
            "measured": f"{len(self.order)} of {self.count} candidates, {len(self.turns[0].chosen)} to begin",
        }
        if chosen and chosen[0].scores:
            out["turns"] = len(chosen)
            out["seconds per decision"] = float(np.median([turn.seconds for turn in chosen]))
            raised = sum(turn.raised for turn in chosen)
            if raised:
                out["entropy saturated"] = f"in {raised} of {len(chosen)} turns; its width was raised there"
        return out


def acquire(
    design: Design,
    prior: Prior,
    operator: Operator,
    sigma_y: float,
    shape: tuple[int, ...],
    source: Source,
    *,
    sampler: Sampler | None = None,
    initial: Sequence[int],
    budget: int,
    item: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Acquisition, Float[Tensor, "*data"]]:
    """Measure `budget` candidates of an operator, `initial` first; returns the record and the data.

    Args:
        operator: measures all candidates, see `measurement.candidates`.
        sigma_y: noise level of a datum.
        shape: event shape of x.
        source: the instrument, called once a turn.
        sampler: draws the belief of `belief="sampler"`.

    Raises:
        InputError: for an operator without candidates, a budget below the start or above their number,
            or data that are not finite or of another shape.
    """
    groups = candidates_of(operator)
    layout = Layout.of(groups)
    check_budget(budget, initial, layout.count)
    y = torch.zeros(groups.shape, dtype=dtype, device=device)

    def measure(chosen: Sequence[int]) -> None:
        fresh = source(chosen).to(y)
        if fresh.shape != y.shape:
            raise InputError(
                f"the source returned data of shape {tuple(fresh.shape)}; expected {tuple(y.shape)}"
            )
        here = torch.isin(groups, torch.tensor(list(chosen))).to(device)
        if not bool(torch.isfinite(fresh[here]).all()):
            raise InputError(f"the source returned values that are not finite for candidates {list(chosen)}")
        y[here] = fresh[here]

    turns = [Turn(tuple(int(i) for i in initial))]
    measure(turns[0].chosen)
    wanted = budget - len(initial)
    if design.policy in FIXED:
        rest = fixed_order(design.policy, layout.count, budget, initial, design.seed)[len(initial) :]
        if rest:
            measure(rest)
            turns.append(Turn(tuple(rest)))
        return Acquisition(design.policy, layout.count, tuple(turns)), y
    counts = design.counts(wanted)
    believe = _believing(design, prior, shape, sampler, len(counts), item, torch.device(device), dtype)
    for turn, count in enumerate(counts):
        order = [one for past in turns for one in past.chosen]
        part, data = select(operator, order, y)
        with torch.no_grad():
            x, sigma = believe(turn, Measurement(part, GaussianNoise(sigma_y), data))
            began = time.perf_counter()
            predictions = layout.arrange(operator(x)).cpu()
        s2 = width = sigma_y**2 + (prior.card.conditional_variance(sigma) if sigma else 0.0)
        if design.policy == "variance":
            score = total_variance(predictions)
        else:
            left = torch.ones(layout.count, dtype=torch.bool)
            left[order] = False
            score = torch.zeros(layout.count, dtype=torch.float64)
            score[left], width = mixture_entropy(predictions[:, left], s2)
        chosen, scores = pick(score, count, neighbours=design.neighbours, taken=order)
        seconds = time.perf_counter() - began
        turns.append(Turn(tuple(chosen), tuple(scores), sigma, width, width > s2, seconds))
        measure(chosen)
        if progress is not None:
            progress(turn + 1, len(counts))
    acquisition = Acquisition(design.policy, layout.count, tuple(turns))
    return acquisition, y


def _believing(
    design: Design,
    prior: Prior,
    shape: tuple[int, ...],
    sampler: Sampler | None,
    turns: int,
    item: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[int, Measurement], tuple[Tensor, float | None]]:
    """From a turn and the data so far to the particles, and the noise level of a pass."""

    def noise(first: int) -> ParticleNoise:
        numbers = range(FIRST_PARTICLE + first, FIRST_PARTICLE + first + design.particles)
        return ParticleNoise(design.seed, numbers, item=item, device=device, dtype=dtype)

    if design.belief == "sampler":
        if sampler is None:
            raise InputError("a design with belief=sampler needs a sampler; give one, or belief=pass")
        drawing = sampler

        def draws(turn: int, measurement: Measurement) -> tuple[Tensor, float | None]:
            ready = prepared(drawing, prior, measurement, shape, device, dtype)
            return ready(prior, measurement.to(device), shape, noise(turn * design.particles)).x, None

        return draws
    stream, segments = noise(0), design.segments(turns)
    integrator = ExponentialMultistep(order=1, eta=1.0)
    state = [PriorDraw()(prior.card, shape, segments[0][0], stream)]

    def down(turn: int, measurement: Measurement) -> tuple[Tensor, float | None]:
        answers: list[Tensor] = []

        def denoise(x: Tensor, sigma: float, sigma_next: float) -> Guided:
            guided = design.guidance(prior, measurement, x, sigma, sigma_next)
            answers[:] = [guided.denoised]
            return guided

        state[0] = descend(denoise, state[0], segments[turn], integrator, stream.normal)
        return answers[0], segments[turn][-2]

    return down


@dataclass(frozen=True)
class Plan:
    """What an operator's settings ask for.

    Attributes:
        count: candidates in all.
        initial: those that are measured to begin with.
        budget: how many are measured, the start included.
        design: how the others are chosen.
        exchange: folder of an instrument in another process; None where the input plays it.
        timeout: seconds to wait for one answer.
    """

    count: int
    initial: tuple[int, ...]
    budget: int
    design: Design
    exchange: Path | None = None
    timeout: float = 600.0

    @classmethod
    def of(cls, operator: Mapping[str, Any], count: int, initial: Sequence[int], seed: int) -> Plan:
        """From the operator's group of a configuration: `budget` and `design`.

        Raises:
            InputError: for a budget or a start that cannot be measured, or an unknown setting.
        """
        settings = dict(operator.get("design") or {})
        budget, exchange = int(operator["budget"]), exchange_folder(operator)
        check_budget(budget, initial, count)
        timeout = float(settings.get("timeout") or 600.0)
        return cls(count, tuple(initial), budget, make_design(settings, seed), exchange, timeout)

    def instrument(self, what: str, row: tuple[int, ...], dtype: str) -> FileExchange | None:
        """The instrument that is asked for candidates, `row` the shape of one; None where there is none."""
        if self.exchange is None:
            return None
        return FileExchange(self.exchange, what, row, dtype, self.timeout)


def exchange_folder(operator: Mapping[str, Any]) -> Path | None:
    """`operator.design.exchange`."""
    given = (operator.get("design") or {}).get("exchange")
    return None if given is None else Path(str(given))


def start_size(operator: Mapping[str, Any], default: int) -> int:
    """`operator.design.initial`, or `default` within the budget."""
    given = (operator.get("design") or {}).get("initial")
    return min(default, int(operator["budget"])) if given is None else int(given)


def check_budget(budget: int, initial: Sequence[int], count: int) -> None:
    """Refuse a budget that cannot be measured."""
    if budget > count:
        raise InputError(
            f"operator.budget is {budget} and there are {count} candidates; choose at most as many"
        )
    if len(set(initial)) != len(initial) or any(not 0 <= one < count for one in initial):
        raise InputError(f"the start holds candidates that are repeated or not among the {count}")
    if not initial or budget < len(initial):
        raise InputError(
            f"operator.budget is {budget} and the start alone measures {len(initial)}; "
            "raise the budget or lower design.initial"
        )


def centre_block(count: int, size: int) -> list[int]:
    """The `size` candidates around the middle one, count // 2."""
    first = count // 2 - size // 2
    return list(range(first, first + size))


def make_design(settings: Mapping[str, Any], seed: int) -> Design:
    """A design from the `design` group of an operator's settings.

    Raises:
        InputError: for an unknown setting or a value that no design takes.
    """
    used = {"initial", "exchange", "timeout"}
    for key, known in (("policy", get_args(Policy)), ("belief", get_args(Belief))):
        if settings.get(key, known[0]) not in known:
            raise unknown_name(key, str(settings[key]), known)
    named = {**settings, "seed": seed}
    steps, high, low = (
        named.pop(key, value) for key, value in (("steps", 12), ("sigma_max", 5.0), ("sigma_min", 0.05))
    )
    named["schedule"] = loguniform(int(steps), float(high), float(low))
    if named.get("window") is not None:
        named["window"] = tuple(float(value) for value in named["window"])
    return construct(Design, named, used, "operator.design")


def entropy_of_samples(samples: Float[Tensor, "samples *event"]) -> float:
    """Mean over components of the Gaussian entropy `.5 log(2 pi e var)` of the samples, in nats."""
    variance = samples.double().var(dim=0, unbiased=True).clamp_min(1e-30)
    return float(0.5 * (math.log(2 * math.pi * math.e) + variance.log().mean()))
