"""The bundled molecule priors, and how graph priors are drawn from alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import FirstHitting, InputError, Prior
from invdiff_molecule.diffusion import GraphDiffusion, GraphModel
from invdiff_molecule.gdss import GdssPrior
from invdiff_molecule.masked import MaskedGraphPrior, load_masked

WEIGHTS = Path(__file__).resolve().parent / "weights"
GraphPrior: TypeAlias = MaskedGraphPrior | GdssPrior


def qm9_masked(settings: Mapping[str, Any]) -> MaskedGraphPrior:
    """Up to nine heavy atoms of C, N, O, F; see weights/qm9_masked.md."""
    return load_masked({**settings, "path": WEIGHTS / "qm9_masked.safetensors"})


def of_molecules(prior: Prior) -> GraphPrior:
    """The prior, if it is one of molecules.

    Raises:
        InputError: for any other.
    """
    if not isinstance(prior, MaskedGraphPrior | GdssPrior) or not len(prior.vocabulary_of_atoms):
        raise InputError(f"prior {prior.card.name!r} is no prior of molecules; use prior=qm9_masked")
    return prior


def draws_alone(prior: GraphPrior, count: int, generator: torch.Generator) -> Float[Tensor, "count N C"]:
    """Packed states of the prior without any data; a diffusion prior by its sampler's shipped settings."""
    model: FirstHitting | GraphModel
    if isinstance(prior, MaskedGraphPrior):
        model = FirstHitting(prior, lambda tokens: torch.zeros(len(tokens)), completions=0)
    else:
        model = GraphModel(GraphDiffusion(), prior)
    drawn, _ = model.start(count, generator)
    for k in range(model.steps):
        drawn, _ = model.move(k, drawn, generator)  # type: ignore[arg-type]
    return model.state(drawn)  # type: ignore[arg-type]
