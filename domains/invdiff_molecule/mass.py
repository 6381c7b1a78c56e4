"""The monoisotopic mass to a few parts per million: all formulas that have it, and graphs of one of them.

    m = sum_e m_e n_e + m_H H          a target N(m, (ppm 1e-6 m)^2)

A width of a thousandth of a dalton is a needle for a potential, so the formulas within `REACH` widths are
enumerated, and a proposal stays among them: atoms that some of them can still go on with, then bonds by the
tilt of the formula that the atoms have. The weights say which formula it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from rdkit import Chem
from torch import Tensor

from invdiff import MASK, InputError, Measurement
from invdiff_molecule.chemistry import Vocabulary
from invdiff_molecule.formula import Formula, FormulaProposal
from invdiff_molecule.objective import Term, Values

if TYPE_CHECKING:
    from invdiff_molecule.layout import Layout
    from invdiff_molecule.masked import MaskedGraphPrior

REACH = 4.0
HYDROGEN = 1.00782503223
MOST = 50_000  # formulas


def mass_of(element: str) -> float:
    """Of the most common isotope, dalton."""
    return float(Chem.GetPeriodicTable().GetMostCommonIsotopeMass(element))


def formulas_within(
    mass: float, width: float, vocabulary: Vocabulary, most: int
) -> Int[Tensor, "formulas elements"]:
    """Counts of the elements of every neutral formula of up to `most` heavy atoms and this mass.

    Raises:
        InputError: where there are none, or too many to hold.
    """
    known = Formula(vocabulary, most)
    rows, left = np.zeros((1, len(known.elements)), dtype=np.int64), np.array([float(mass)])
    for place, element in enumerate(known.elements):
        one = mass_of(element)
        count = 1 + np.minimum(most - rows.sum(1), np.floor((left + width) / one).astype(np.int64))
        first = np.repeat(count.cumsum() - count, count)
        rows, left = rows.repeat(count, axis=0), left.repeat(count)
        rows[:, place] = np.arange(len(rows)) - first
        left = left - one * rows[:, place]
    hydrogens = np.rint(left / HYDROGEN).astype(np.int64)
    near = (np.abs(left - hydrogens * HYDROGEN) <= width) & (hydrogens >= 0) & (rows.sum(1) > 0)
    found = []
    for row, hydrogen in zip(rows[near].tolist(), hydrogens[near].tolist(), strict=True):
        parts = [*zip(known.elements, row, strict=True), ("H", hydrogen)]
        try:
            known.data("".join(f"{element}{number}" for element, number in parts if number))
        except InputError:
            continue
        found.append(row)
        if len(found) > MOST:
            raise InputError(f"more than {MOST} formulas have a mass of {mass:g} within {width:g}")
    if not found:
        raise InputError(
            f"no neutral formula of up to {most} atoms of {vocabulary} has a mass of {mass:g} within "
            f"{width:.4g}"
        )
    return torch.tensor(found)


class MassValues(Values):
    """The mass of the decoded molecule, with a proposal that has it.

    Args:
        term: target and width.
        formulas: those that are near enough.
        vocabulary, most: of the prior.
    """

    def __init__(
        self, term: Term, formulas: Int[Tensor, "formulas elements"], vocabulary: Vocabulary, most: int
    ) -> None:
        super().__init__([term], vocabulary, most)
        self.mass, self.formulas, self.formula = term.target, formulas, Formula(vocabulary, most)

    def proposal(self, prior: MaskedGraphPrior, measurement: Measurement) -> MassProposal:
        """Atoms of a formula that has the mass, then its bonds."""
        return MassProposal(prior.layout, self.formula, self.formulas.double(), self.mass)


class MassProposal(FormulaProposal):
    """q of a mass: that of a formula, which one being open until the last atom.

    A formula f of the right number of atoms weighs prod_e mean(p_e)^r_e / r_e!, r what is left of its counts
    and mean(p) the mean law of the undecided atoms; the next element is drawn from
    sum_f w_f (r_e p_e / mean(p_e), normalised).
    """

    def __init__(
        self, layout: Layout, formula: Formula, formulas: Float[Tensor, "formulas elements"], mass: float
    ) -> None:
        self.layout, self.formulas, self.mass = layout, formulas, mass
        rows = len(formula.elements)
        self.elements, self.valences = formula.table[:rows].double(), formula.valences.double()
        self.masses = torch.tensor([mass_of(element) for element in formula.elements]).double()

    def atoms(self, tokens: Tensor, site: Tensor, log_p: Tensor) -> Tensor:
        """Log of the law of the atom."""
        most, kinds = self.layout.most, self.layout.kinds
        atoms = tokens[:, :most]
        laws = log_p[:, :most, :kinds].exp()
        by_element = laws @ self.elements.mT
        undecided = (atoms == MASK)[..., None]
        mean = ((by_element * undecided).sum(1) / undecided.sum(1)).clamp_min(1e-9)
        left = self.formulas - (self.used(atoms) @ self.elements.mT)[:, None]
        fits = (left >= 0).all(2) & (left.sum(2) == undecided.sum(1))
        logs = (left.clamp_min(0) * mean.log()[:, None] - (left.clamp_min(0) + 1).lgamma()).sum(2)
        # Where no formula is left (another one was known) every token may come, and the weights see it.
        logs = torch.where(fits.any(1, keepdim=True), torch.where(fits, logs, -torch.inf), 0.0)
        rows = torch.arange(len(site))
        own = laws[rows, site].clamp_min(1e-30)
        ratio = left.clamp_min(0) * ((own @ self.elements.mT) / mean)[:, None]
        ratio = ratio / ratio.sum(2, keepdim=True).clamp_min(1e-300)
        row = (logs.softmax(1)[..., None] * ratio).sum(1)
        row = torch.where(fits.any(1, keepdim=True), row, torch.ones_like(row))
        within = own / ((own @ self.elements.mT) @ self.elements)
        chosen = (row @ self.elements) * within
        return (chosen / chosen.sum(1, keepdim=True)).log()

    def total(self, atoms: Int[Tensor, "batch N"]) -> Float[Tensor, "batch"]:
        """B of the formula that the atoms have."""
        used = self.used(atoms)
        hydrogens = ((self.mass - used @ self.elements.mT @ self.masses) / HYDROGEN).round()
        return (used @ self.valences - hydrogens) / 2
