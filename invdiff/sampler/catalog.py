"""Samplers by name: settings from a YAML to the pieces of the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar, get_args

from invdiff.errors import InputError
from invdiff.prior.prior import PriorCard
from invdiff.registry import construct
from invdiff.sampler import schedule as schedules
from invdiff.sampler.daps import DAPS
from invdiff.sampler.diffusion_mbir import DiffusionMBIR
from invdiff.sampler.first_hitting import MaskedDiffusion
from invdiff.sampler.guidance.conditional import Conditional
from invdiff.sampler.guidance.dps import DPS, LikelihoodGradient
from invdiff.sampler.guidance.guidance import Guidance
from invdiff.sampler.guidance.moment_matching import MomentMatching
from invdiff.sampler.guidance.pigdm import PiGDM
from invdiff.sampler.guidance.proximal import DDS, DiffPIR, Proximal
from invdiff.sampler.guidance.stsl import STSL
from invdiff.sampler.integrator import ExponentialMultistep, named
from invdiff.sampler.loop import DiffusionSampler, End, Sampler
from invdiff.sampler.particle_sampler import ParticleSampler
from invdiff.sampler.plug_and_play import PlugAndPlay
from invdiff.sampler.red_diff import REDdiff
from invdiff.sampler.split_gibbs import SplitGibbs
from invdiff.sampler.split_langevin import SplitLangevin
from invdiff.sampler.tempered import Tempered
from invdiff.sampler.weighting.ddsmc import DDSMC
from invdiff.sampler.weighting.ensemble import Ensemble
from invdiff.sampler.weighting.lookahead import Lookahead
from invdiff.sampler.weighting.mcgdiff import MCGDiff
from invdiff.sampler.weighting.moment_twisted import MomentTwisted
from invdiff.sampler.weighting.steering import Steering
from invdiff.sampler.weighting.twisted import Twisted

T = TypeVar("T")
Builder = Callable[[Mapping[str, Any], PriorCard], Sampler]

ENDS: dict[str, End] = {end: end for end in get_args(End)}


@dataclass(frozen=True)
class Levels:
    """What a schedule is made of; see `schedule`."""

    schedule: str = "karras"
    steps: int = 50
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0
    levels: Any = None


def make_schedule(settings: Mapping[str, Any], card: PriorCard) -> schedules.Schedule:
    """The levels of `settings`, within what the prior was trained at; its own where it knows no others."""
    given = construct(Levels, settings, set(settings), f"sampler {settings.get('name')!r}")
    steps, high, low = given.steps, given.sigma_max, given.sigma_min
    # A network without normalisation can return anything beyond the levels it was trained at.
    high = min(high, card.sigma_range[1]) if low < card.sigma_range[1] else high
    if given.schedule == "karras":
        levels = schedules.karras(steps, high, low, given.rho)
    elif given.schedule == "loguniform":
        levels = schedules.loguniform(steps, high, low)
    elif given.schedule == "vp_linear":
        levels = schedules.vp_linear(steps)
    elif given.schedule == "explicit":
        levels = schedules.explicit(given.levels or ())
    else:
        raise InputError(
            f"unknown schedule {given.schedule!r} (known: karras, loguniform, vp_linear, explicit)"
        )
    if card.levels is None:
        return levels
    from invdiff.prior.network import snap

    return snap(levels, card.levels)


@dataclass(frozen=True)
class Steps:
    """What an integrator is made of: a name, and eta or churn over it."""

    integrator: str = "ddim"
    eta: float | None = None
    churn: Literal["exact", "published"] = "exact"


# What the loop reads besides the fields of a method.
LOOP_KEYS = {"name", "end", *(field.name for kind in (Levels, Steps) for field in fields(kind))}


def make_integrator(settings: Mapping[str, Any]) -> ExponentialMultistep:
    """The integrator of `settings`."""
    given = construct(Steps, settings, set(settings), f"sampler {settings.get('name')!r}")
    return replace(named(given.integrator, given.eta), churn=given.churn)


def guided(kind: type[Any]) -> Builder:
    """The builder of the loop around one guidance method."""

    def build(settings: Mapping[str, Any], card: PriorCard) -> Sampler:
        guidance: Guidance = construct(kind, settings, LOOP_KEYS, f"sampler {settings.get('name')!r}")
        if (end := str(settings.get("end", "mean"))) not in ENDS:
            raise InputError(f"sampler.end is {end!r}; expected {' or '.join(ENDS)}")
        schedule, integrator = make_schedule(settings, card), make_integrator(settings)
        return DiffusionSampler(schedule, guidance, integrator, end=ENDS[end])

    return build


def levelled(kind: type[Any]) -> Builder:
    """The builder of a sampler that takes a schedule itself."""

    def build(settings: Mapping[str, Any], card: PriorCard) -> Sampler:
        rest = {key: value for key, value in settings.items() if key != "schedule"}
        made = construct(
            kind,
            {**rest, "schedule": make_schedule(settings, card)},
            {"name", "steps", "sigma_max", "sigma_min", "rho", "levels"},
            f"sampler {settings.get('name')!r}",
        )
        sampler: Sampler = made
        return sampler

    return build


def filtered(kind: type[Any]) -> Builder:
    """The builder of a particle method."""
    engine = {field.name for field in fields(ParticleSampler)} - {"method", "ready"}

    def build(settings: Mapping[str, Any], card: PriorCard) -> Sampler:
        method = construct(
            kind,
            {key: tuple(value) if key == "levels" and value else value for key, value in settings.items()},
            {"name", *engine},
            f"sampler {settings.get('name')!r}",
        )
        given = {key: settings[key] for key in engine if key in settings}
        return construct(
            ParticleSampler, {"method": method, **given}, set(), f"sampler {settings.get('name')!r}"
        )

    return build


dds = guided(DDS)
dps = guided(DPS)
likelihood_gradient = guided(LikelihoodGradient)
pigdm = guided(PiGDM)
diffpir = guided(DiffPIR)
proximal = guided(Proximal)
moment_matching = guided(MomentMatching)
stsl = guided(STSL)
conditional = guided(Conditional)
plug_and_play = levelled(PlugAndPlay)
diffusion_mbir = levelled(DiffusionMBIR)
split_langevin = levelled(SplitLangevin)
split_gibbs = levelled(SplitGibbs)
daps = levelled(DAPS)
red_diff = levelled(REDdiff)
moment_twisted = filtered(MomentTwisted)
ddsmc = filtered(DDSMC)
mcgdiff = filtered(MCGDiff)
twisted = filtered(Twisted)
ensemble = filtered(Ensemble)
steering = filtered(Steering)
lookahead = filtered(Lookahead)
tempered = filtered(Tempered)
first_hitting = filtered(MaskedDiffusion)
