"""What a report says of particle filters."""

from __future__ import annotations

import math
from typing import Any

from invdiff.posterior import Posterior

SELECTS = 4.0  # variance of a log-weight increment above which weights select more than they correct
FEW = 0.2  # ESS / N from which, and two particles, the weights leave enough, however wide they are


def filter_facts(posterior: Posterior) -> dict[str, Any]:
    """Evidence, effective sample size and spread of the filters; empty for samplers without weights."""
    filters = posterior.info.get("filters") or []
    if not filters:
        return {}
    logs = [float(one["log_evidence"]) for one in filters]
    mean = sum(logs) / len(logs)
    facts: dict[str, Any] = {
        "log p(y) (mean of the filters' evidence)": round(posterior.log_evidence or mean, 3),
        "filters": len(filters),
        "smallest ESS / N": f"{min(one['ess'][0] for one in filters):.3g}",
        "largest variance of a log-weight increment": f"{max(_wide(filters)):.3g}",
        "share of first particles with descendants": f"{min(one['founders'] for one in filters):.3g}",
    }
    if len(logs) > 1:
        spread = math.sqrt(sum((value - mean) ** 2 for value in logs) / (len(logs) - 1))
        facts["spread of log p(y) over the filters"] = round(spread, 3)
    return facts


def filter_warnings(posterior: Posterior) -> tuple[str, ...]:
    """A sentence where the weights cannot be doing what weights are for.

    A wide increment alone is not that: weights that only rule particles out can be of any width.
    """
    filters = posterior.info.get("filters") or []
    if not filters or max(_wide(filters)) <= SELECTS:
        return ()
    if all(one["ess"][0] * one["particles"] >= max(2, FEW * one["particles"]) for one in filters):
        return ()
    return (
        "The log-weights change by a variance above 4 at a step: they select particles and do not make the "
        "samples follow the posterior. Compare replicate runs, and do not read the evidence.",
    )


def _wide(filters: list[dict[str, Any]]) -> list[float]:
    return [
        math.inf if math.isnan(value) else value
        for value in (float(one["increment_variance"]) for one in filters)
    ]
