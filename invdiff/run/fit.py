"""Does a prior fit the problem: shape and unit, before any work."""

from __future__ import annotations

import torch

from invdiff.domain import Problem
from invdiff.errors import InputError
from invdiff.measurement.noise import GaussianNoise
from invdiff.prior.masked import MaskedPrior
from invdiff.prior.prior import Prior


def check_prior(prior: Prior, problem: Problem) -> None:
    """Refuse a prior that does not run on the problem's shape."""
    event = getattr(prior, "event_shape", None)
    if event is not None:
        if tuple(event) != problem.shape:
            raise InputError(
                f"prior {prior.card.name!r} is of events {tuple(event)}, the problem of {problem.shape}"
            )
        return
    probe = torch.zeros(1, *problem.shape)
    try:
        with torch.no_grad():
            out = prior.denoise(probe, prior.card.std)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"prior {prior.card.name!r} does not take a state of shape {problem.shape}: {reason}"
        ) from None
    if out.shape != probe.shape:
        raise InputError(
            f"prior {prior.card.name!r} returns shape {tuple(out.shape[1:])} for {problem.shape}"
        )


def check_scale(prior: Prior, problem: Problem) -> None:
    """Compare the size of the data's own estimate with the prior's std.

    Raises:
        InputError: where they differ more than eightfold: a prior of another unit.
    """
    if isinstance(prior, MaskedPrior):
        return  # tokens have no unit
    operator = problem.measurement.operator
    adjoint = getattr(operator, "adjoint", None)
    if adjoint is None or not isinstance(problem.measurement.noise, GaussianNoise):
        return  # counts, magnitudes and the like are not in the unit of A(x)
    estimate = adjoint(problem.measurement.y[None])
    normal = adjoint(operator(estimate))
    step = float((estimate * estimate).sum() / (estimate * normal).sum().clamp_min(1e-30))
    size = float((step * estimate).square().mean().sqrt())
    ratio = size / max(prior.card.std, 1e-12)
    if ratio > 8 or ratio < 1 / 64:
        raise InputError(
            f"the data have a root mean square of {size:.3g} in the prior's unit and prior "
            f"{prior.card.name!r} was trained at {prior.card.std:.3g} ({prior.card.scale}); "
            "rescale the data or choose a prior of their scale"
        )
