"""The bundled molecule priors, and how graph priors are drawn from alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import Config, FilterSettings, FirstHitting, InputError, Prior, run_filter
from invdiff_molecule.diffusion import GraphDiffusion, GraphModel
from invdiff_molecule.edm import GraphEdmPrior, load_edm
from invdiff_molecule.gdss import GdssPrior
from invdiff_molecule.levels import GraphDiffusionPrior
from invdiff_molecule.masked import ComposedGraphPrior, MaskedGraphPrior, load_masked

WEIGHTS = Path(__file__).resolve().parent / "weights"
GraphPrior: TypeAlias = MaskedGraphPrior | GraphDiffusionPrior


def qm9_masked(settings: Mapping[str, Any]) -> MaskedGraphPrior:
    """Up to nine heavy atoms of C, N, O, F; see weights/qm9_masked.md."""
    return load_masked({**settings, "path": WEIGHTS / "qm9_masked.safetensors"})


def qm9_conditional(settings: Mapping[str, Any]) -> MaskedGraphPrior:
    """The same molecules given logP, TPSA, QED or SA score, or none; see weights/qm9_conditional.md."""
    return load_masked({**settings, "path": WEIGHTS / "qm9_conditional.safetensors"})


def qm9_edm(settings: Mapping[str, Any]) -> GraphEdmPrior:
    """The same molecules as noisy graphs, for samplers of levels; see weights/qm9_edm.md."""
    return load_edm({**settings, "path": WEIGHTS / "qm9_edm.safetensors"})


def zinc_masked(settings: Mapping[str, Any]) -> MaskedGraphPrior:
    """Drug-like molecules of up to 38 heavy atoms, with charges; see weights/zinc_masked.md."""
    return load_masked({**settings, "path": WEIGHTS / "zinc_masked.safetensors"})


def community_masked(settings: Mapping[str, Any]) -> MaskedGraphPrior:
    """Graphs of two communities; see weights/community_masked.md."""
    return load_masked({**settings, "path": WEIGHTS / "community_masked.safetensors"})


def of_graphs(prior: Prior) -> GraphPrior:
    """The prior, if it is one of generic graphs.

    Raises:
        InputError: for any other.
    """
    if not isinstance(prior, MaskedGraphPrior | GraphDiffusionPrior) or len(prior.vocabulary_of_atoms):
        raise InputError(
            f"prior {prior.card.name!r} is no prior of generic graphs; use prior=community_masked"
        )
    return prior


def of_molecules(prior: Prior) -> GraphPrior:
    """The prior, if it is one of molecules.

    Raises:
        InputError: for any other.
    """
    if not isinstance(prior, MaskedGraphPrior | GraphDiffusionPrior) or not len(prior.vocabulary_of_atoms):
        raise InputError(f"prior {prior.card.name!r} is no prior of molecules; use prior=qm9_masked")
    return prior


def under_levels(prior: GraphPrior, config: Config, size: int | None) -> bool:
    """Whether the prior runs under a sampler of the core's noise levels.

    Raises:
        InputError: where it does and cannot: no number of nodes, or levels of their own for nodes and edges.
    """
    sampler = str(config["sampler"]["name"])
    if not isinstance(prior, GraphDiffusionPrior) or sampler == "graph_diffusion":
        return False
    prior.require_one_level()
    if size is None:
        setting = "domain.heavy_atoms" if prior.names else "operator.nodes"
        raise InputError(
            f"sampler {sampler!r} needs to know how many nodes there are; set {setting}, or use "
            "sampler=graph_diffusion"
        )
    return True


def draws_alone(prior: GraphPrior, count: int, generator: torch.Generator) -> Float[Tensor, "count N C"]:
    """Packed states of the prior without any data; a diffusion prior by the settings shipped for it.

    Of a composition they are drawn by a filter of four times as many particles.
    """
    model: FirstHitting | GraphModel
    if isinstance(prior, MaskedGraphPrior):
        model = FirstHitting(prior, lambda tokens: torch.zeros(len(tokens)), completions=0)
    else:
        published = isinstance(prior, GdssPrior)
        plain = GraphDiffusion(corrector=False, reuse=False, noise="exact", temperature=1.0)
        model = GraphModel(GraphDiffusion() if published else plain, prior)
    if isinstance(prior, ComposedGraphPrior):
        assert isinstance(model, FirstHitting)
        return model.state(run_filter(model, FilterSettings(4 * count), generator).drawn(count, generator))
    drawn, _ = model.start(count, generator)
    for k in range(model.steps):
        drawn, _ = model.move(k, drawn, generator)  # type: ignore[arg-type]
    return model.state(drawn)  # type: ignore[arg-type]
