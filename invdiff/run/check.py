"""`invdiff check`: the contract of an operator or a prior, by its registered name."""

from __future__ import annotations

import torch

from invdiff.config import compose
from invdiff.errors import InputError
from invdiff.measurement.contract import Check, check_operator
from invdiff.measurement.operator import as_operator
from invdiff.prior.masked import MASK, MaskedPrior
from invdiff.prior.network import NetworkPrior
from invdiff.registry import load
from invdiff.run.solve import make_prior


def run_checks(target: str, name: str, overrides: list[str], shape: tuple[int, ...] | None) -> list[Check]:
    """The checks of `operator NAME` or `prior NAME`."""
    if target == "operator":
        config = compose([f"operator={name}", *overrides])
        build = load("operators", str(config["operator"]["name"]))
        operator = as_operator(build(config["operator"], shape))
        event = shape or operator.event_shape
        if event is None:
            raise InputError(f"operator {name!r} takes any shape; say which to check with --shape")
        return check_operator(operator, tuple(event))
    if target == "prior":
        return check_prior(compose([f"prior={name}", *overrides])["prior"], shape)
    raise InputError(f"cannot check a {target!r}; expected operator or prior")


def check_prior(settings: dict[str, object], shape: tuple[int, ...] | None) -> list[Check]:
    """Scale and range of a prior: does D behave as a denoiser of data of the card's std?

    At the highest level D must be near the mean of the prior, at the lowest near
    x; it must be deterministic, per sample, and differentiable. A prior that uses
    a part of its event alone says which (`free`, 1 there and 0 elsewhere).
    """
    prior = make_prior(settings)
    if isinstance(prior, MaskedPrior):
        return check_masked(prior)
    card = prior.card
    event = getattr(prior, "event_shape", None) or shape or (card.channels or 1, *(card.shape or (64, 64)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, *event), generator=generator)
    free = getattr(prior, "free", torch.ones(()))
    if card.condition:
        assert isinstance(prior, NetworkPrior)
        prior = prior.given(torch.full((1, *event), card.mean))
    low, high = max(card.sigma_range[0], 1e-3), min(card.sigma_range[1], 40.0)
    checks = []
    with torch.no_grad():
        small = free * (card.mean + card.std * x)
        out = prior.denoise(small, low)
        move = float((out - small).square().mean().sqrt()) / low
        checks.append(Check("stays at the lowest level", move, 3.0, f"moves {move:.2g} sigma at {low:g}"))
        out = prior.denoise(free * (card.mean + (high**2 + card.std**2) ** 0.5 * x), high)
        size = float((free * (out - card.mean)).square().mean().sqrt()) / max(card.std, 1e-12)
        note = f"D has {size:.2g} of the card's std at sigma {high:g}"
        checks.append(Check("returns to the mean at the highest", size, 3.0, note))
        again = prior.denoise(small, low)
        first = prior.denoise(small, low)
        checks.append(Check("deterministic", float((again - first).abs().max()), 0.0))
        alone = torch.cat([prior.denoise(row[None], card.std) for row in small])
        both = prior.denoise(small, card.std)
        difference = float((alone - both).abs().max()) / max(card.std, 1e-12)
        checks.append(Check("per sample", difference, 0.05, "batch of two against one at a time"))
    probe = small.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prior.denoise(probe, card.std).sum(), probe)
    finite = bool(torch.isfinite(gradient).all())
    checks.append(Check("differentiable", 0.0 if finite else 1.0, 0.0))
    return checks


def check_masked(prior: MaskedPrior) -> list[Check]:
    """Do the conditionals add up to one, per sample and always the same, and do sequences become events?"""
    generator = torch.Generator().manual_seed(0)
    tokens = prior.start(8, generator)
    masked = tokens == MASK
    laws = prior.log_conditionals(tokens)
    total = laws[masked].exp().sum(dim=1)
    alone = torch.cat([prior.log_conditionals(row[None]) for row in tokens])
    difference = (alone[masked].exp() - laws[masked].exp()).abs().max()
    again = (prior.log_conditionals(tokens)[masked].exp() - laws[masked].exp()).abs().max()
    complete = torch.where(masked, laws.argmax(dim=2), tokens)
    wrong = float(tuple(prior.embed(complete).shape[1:]) != tuple(prior.event_shape))
    return [
        Check("something is left to decide", 0.0 if bool(masked.any()) else 1.0, 0.0),
        Check("conditionals add up to one", float((total - 1).abs().max()), 1e-6),
        Check("deterministic", float(again), 0.0),
        Check("per sample", float(difference), 1e-4, "batch of eight against one at a time"),
        Check("embeds into its event shape", wrong, 0.0),
    ]
