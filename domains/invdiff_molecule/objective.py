"""Rewards and targets on decoded molecules as a forward model and its noise.

A(x) are the values of the terms on the molecule that x decodes to, NaN where it does not. Every term says in
which direction it goes,

    target      log-likelihood  -(value - target)^2 / 2 sigma^2
    maximise    (value - target) / sigma,  minimise the same with a minus: an exponential reward

and the terms add up: a product of experts. What is no molecule has the finite `floor`, so that a potential on
unfinished molecules stays positive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invdiff import MASK, InputError, Measurement, Operator, parts_of
from invdiff_molecule.chemistry import Vocabulary, decode
from invdiff_molecule.masked import MaskedGraphPrior
from invdiff_molecule.properties import Property, property_of
from invdiff_molecule.state import graphs_of

DIRECTIONS = ("target", "maximise", "minimise")
FLOOR = -20.0


@dataclass(frozen=True)
class Term:
    """One property and where it should go.

    Attributes:
        name: of the property, as reports print it.
        measured: the property.
        direction: target, maximise or minimise.
        target: the value that is wanted; of a direction, the value at which the reward is 0.
        sigma: width of a target; of a direction, the change of value that is worth one nat.
        tolerance: how far on the wrong side of `target` a hit may lie; infinite for a direction without one.
    """

    name: str
    measured: Property
    direction: str
    target: float
    sigma: float
    tolerance: float

    def hit(self, value: float) -> bool:
        """Whether a value is what was asked for; of a direction, at least as good as `target`."""
        if math.isnan(value):
            return False
        return self.short(value) <= self.tolerance

    def short(self, value: float) -> float:
        """How far a value is from what is wanted: its distance to a target, else the less the better."""
        gap = value - self.target
        return {"target": abs(gap), "maximise": -gap, "minimise": gap}[self.direction]

    def aim(self, mean: float, std: float) -> float:
        """Where the likelihood moves the mean of N(mean, std^2): at most three std."""
        if self.direction == "target":
            share = std**2 / (std**2 + self.sigma**2)
            return mean + share * (self.target - mean)
        step = min(std**2 / self.sigma, 3 * std)
        return mean + (step if self.direction == "maximise" else -step)

    @property
    def words(self) -> str:
        """The question in words."""
        if self.direction == "target":
            return f"{self.name} = {self.target:g} (sigma {self.sigma:g}, a hit within {self.tolerance:g})"
        hit = "" if math.isinf(self.tolerance) else f"; a hit from {self.target:g}"
        return f"{self.direction} {self.name} (one nat a {self.sigma:g}{hit})"


def term_of(settings: Mapping[str, Any]) -> Term:
    """A term of a configuration.

    Raises:
        InputError: for an unknown property or direction, a width that is not positive.
    """
    measured = property_of(settings)
    name = str(settings["name"])
    direction = str(settings.get("direction") or ("target" if settings.get("target") is not None else ""))
    if direction not in DIRECTIONS:
        raise InputError(
            f"property {name} needs operator.target=VALUE, or operator.direction=maximise or minimise; found "
            f"{direction or 'neither'}"
        )
    target, aimed = settings.get("target"), direction == "target"
    if target is None and aimed:
        raise InputError(f"property {name} needs operator.target")
    sigma = measured.sigma if settings.get("sigma") is None else float(settings["sigma"])
    if not sigma > 0:
        raise InputError(f"property {name}: sigma is {sigma}; it must be positive")
    tolerance = settings.get("tolerance")
    if tolerance is None:
        tolerance = 2 * sigma if aimed else math.inf if target is None else 0.0
    return Term(name, measured, direction, float(target or 0.0), sigma, float(tolerance))


def value_of(term: Term, molecule: Any, smiles: str) -> float:
    """The term's value.

    Raises:
        InputError: where the property raises or returns NaN, with the molecule.
    """
    try:
        value = float(term.measured.value(molecule))
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(
            f"property {term.name} failed on {smiles}: {what}; it must return a number"
        ) from None
    if math.isnan(value):
        raise InputError(f"property {term.name} returned NaN on {smiles}; a reward must be a number")
    return value


def consistent(terms: Sequence[Term]) -> None:
    """Refuse terms that contradict each other.

    Raises:
        InputError: for one property with two targets, or with opposite directions.
    """
    for number, one in enumerate(terms):
        for other in terms[:number]:
            if one.name != other.name or one.measured.words != other.measured.words:
                continue
            opposite = {one.direction, other.direction} == {"maximise", "minimise"}
            apart = abs(one.target - other.target) > one.tolerance + other.tolerance
            if opposite or (one.direction == other.direction == "target" and apart):
                raise InputError(f"{other.words} and {one.words} contradict each other; drop one")


def front(terms: Sequence[Term], rows: Sequence[Sequence[float]]) -> list[bool]:
    """Which rows of values no other row beats in one term and equals or beats in all: the Pareto set."""
    short = np.array([[term.short(value) for term, value in zip(terms, row, strict=True)] for row in rows])
    return [bool(~((short <= one).all(1) & (short < one).any(1)).any()) for one in short]


class Values(Operator):
    """The terms' values of the decoded molecule; NaN where there is none, or it is not connected."""

    differentiable: ClassVar[bool] = False

    def __init__(self, terms: Sequence[Term], vocabulary: Vocabulary, most: int) -> None:
        self.terms, self.vocabulary = tuple(terms), vocabulary
        self.event_shape = (most, len(vocabulary) + most)
        self._known: dict[str, tuple[float, ...]] = {}

    def of_molecule(self, molecule: Any, smiles: str) -> tuple[float, ...]:
        """Kept by canonical SMILES."""
        if smiles not in self._known:
            self._known[smiles] = tuple(value_of(term, molecule, smiles) for term in self.terms)
        return self._known[smiles]

    def forward(self, x: Float[Tensor, "batch N C"]) -> Float[Tensor, "batch terms"]:
        rows = []
        for graph in graphs_of(x, len(self.vocabulary)):
            found = decode(graph, self.vocabulary)
            usable = found.valid_connected and found.smiles is not None
            rows.append(
                self.of_molecule(found.molecule, str(found.smiles))
                if usable
                else (math.nan,) * len(self.terms)
            )
        return torch.tensor(rows, dtype=torch.float64, device=x.device)

    def proposal(self, prior: MaskedGraphPrior, measurement: Measurement) -> Aimed | None:
        """The conditional law of a prior that was trained given some of these properties; else None."""
        network = prior.network
        values = {
            term.name: term.aim(float(network.center[k]), float(network.scale[k]))
            for term in self.terms
            for k, name in enumerate(network.properties)
            if name == term.name
        }
        if not values or parts_of(prior) or prior.wanted is not None:
            return None  # a composition, or a prior that was given its properties, is what is asked for
        return Aimed(prior, prior.wishes(values))


class Aimed:
    """The prior's own law given properties as a proposal: learned, so weighed at its end alone."""

    learned = True

    def __init__(self, prior: MaskedGraphPrior, wanted: tuple[float, ...]) -> None:
        self.prior, self.wanted = prior, wanted

    def sites(self, tokens: Int[Tensor, "batch sites"]) -> Bool[Tensor, "batch sites"]:
        """Any masked one."""
        return tokens == MASK

    def law(
        self,
        tokens: Int[Tensor, "batch sites"],
        site: Int[Tensor, "batch"],
        log_p: Float[Tensor, "batch sites vocabulary"],
    ) -> Float[Tensor, "batch vocabulary"]:
        return self.prior.log_conditionals(tokens, self.wanted)[torch.arange(len(site)), site]


@dataclass(frozen=True)
class Experts:
    """The product of the terms' likelihoods, as a noise model of `Values`.

    Attributes:
        terms: in the order of the values.
        floor: log-likelihood of what is no molecule.
    """

    terms: tuple[Term, ...]
    floor: float = FLOOR

    def log_likelihood(
        self, clean: Float[Tensor, "batch terms"], y: Float[Tensor, "terms"], size: int
    ) -> Float[Tensor, "batch"]:
        """Not normalised in y: directions have no law of their data."""
        total = torch.zeros(len(clean), dtype=torch.float64, device=clean.device)
        for number, term in enumerate(self.terms):
            gap = (clean[:, number].double() - y[number].double()) / term.sigma
            total = total + {"target": -0.5 * gap.square(), "maximise": gap, "minimise": -gap}[term.direction]
        return torch.where(total.isnan(), self.floor, total)

    def variance(self) -> float:
        return self.terms[0].sigma ** 2

    def mean_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        """The value; of a direction, and of what is no molecule, that at which chi2 is 0 and large."""
        out = clean.clone()
        for number, term in enumerate(self.terms):
            column = out[..., number]
            if term.direction != "target":
                column.fill_(term.target)
            else:
                column[column.isnan()] = term.target + math.sqrt(2 * -self.floor) * term.sigma
        return out

    def variance_at(self, clean: Float[Tensor, "*data"]) -> Float[Tensor, "*data"]:
        return torch.tensor([term.sigma**2 for term in self.terms]).to(clean).expand(clean.shape)

    def check(self, y: Float[Tensor, "*data"]) -> None:
        """Any finite target is possible."""

    def sample(self, clean: Float[Tensor, "*data"], generator: torch.Generator) -> Float[Tensor, "*data"]:
        """Targets as they are: a question, not a measurement."""
        return clean
