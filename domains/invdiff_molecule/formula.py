"""The molecular formula, which is linear in the packed state, and how to decide a graph that has it.

    n_e = sum over tokens c of element e, sum_i X_ic        H = sum_ic v_c X_ic - 2 sum_{i<j} A_ij
    q = sum_ic q_c X_ic      v_c valence, q_c charge of token c

Integers are exact data; sigma_y is a tempering level, and whether a molecule has the formula is always
checked after decoding. The H row is right as long as hypervalent atoms have tokens of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invdiff import MASK, InputError, LinearOperator, Operator
from invdiff_molecule.chemistry import Vocabulary, decode, read_formula
from invdiff_molecule.state import graphs_of

if TYPE_CHECKING:
    from invdiff import Measurement
    from invdiff_molecule.layout import Layout
    from invdiff_molecule.masked import MaskedGraphPrior

SWEEPS = 30  # of the balancing of the counts
REACH = 8.0  # largest |theta| of the tilt of the bonds


class Formula(LinearOperator):
    """Counts of every element, hydrogens, and the net charge where the prior knows charges.

    Args:
        vocabulary: the prior's atoms.
        most: N.
    """

    def __init__(self, vocabulary: Vocabulary, most: int) -> None:
        self.vocabulary, self.most = vocabulary, most
        self.event_shape = (most, len(vocabulary) + most)
        tokens = vocabulary.tokens
        self.elements = tuple(dict.fromkeys(token.element for token in tokens))
        self.valences = torch.from_numpy(vocabulary.valences).float()
        charges = torch.tensor([float(token.charge) for token in tokens])
        rows = [
            torch.tensor([float(token.element == element) for token in tokens]) for element in self.elements
        ]
        rows.append(self.valences)
        self.charged = bool(charges.any())
        if self.charged:
            rows.append(charges)
        self.table = torch.stack(rows)
        self.upper = torch.triu(torch.ones(most, most), 1)

    def forward(self, x: Float[Tensor, "batch N C"]) -> Float[Tensor, "batch rows"]:
        kinds = len(self.vocabulary)
        rows = x[..., :kinds].sum(-2) @ self.table.to(x).mT
        bonds = (x[..., kinds:] * self.upper.to(x)).sum((-1, -2))
        place = torch.arange(rows.shape[-1], device=x.device) == len(self.elements)
        return rows - 2 * bonds[..., None] * place

    def adjoint(self, y: Float[Tensor, "batch rows"]) -> Float[Tensor, "batch N C"]:
        nodes = (y @ self.table.to(y))[..., None, :].expand(*y.shape[:-1], self.most, -1)
        edges = -2 * y[..., len(self.elements), None, None] * self.upper.to(y)
        return torch.cat([nodes, edges], dim=-1)

    def data(self, text: str) -> Float[Tensor, "rows"]:
        """y of `C7H9NO`.

        Raises:
            InputError: for elements or charges that the prior does not know, too many atoms, or impossible
                hydrogens.
        """
        counts = read_formula(text)
        hydrogens, charge = counts.pop("H", 0), counts.pop("charge", 0)
        y = torch.zeros(len(self.table))
        for element, number in counts.items():
            if element not in self.elements:
                raise InputError(f"{text} holds {element}; this prior knows {self.vocabulary}")
            y[self.elements.index(element)] = number
        if charge and not self.charged:
            raise InputError(f"{text} has a charge; this prior knows {self.vocabulary}")
        heavy = int(y.sum())
        if not 1 <= heavy <= self.most:
            raise InputError(
                f"{text} has {heavy} heavy atoms; this prior knows molecules of 1 to {self.most}"
            )
        valences = [self._valences(element) for element in self.elements]
        most = sum(int(n) * max(known) for n, known in zip(y, valences, strict=False)) - 2 * (heavy - 1)
        if hydrogens > most:
            raise InputError(
                f"{text} has {hydrogens} hydrogens; a molecule of these atoms has {most} at most"
            )
        usual = sum(int(n) * known[0] for n, known in zip(y, valences, strict=False))
        if (usual + charge - hydrogens) % 2:
            raise InputError(f"{text} has an odd sum of valences: no closed-shell molecule has this formula")
        y[len(self.elements)] = hydrogens
        if self.charged:
            y[-1] = charge
        return y

    def _valences(self, element: str) -> list[int]:
        """Of the tokens of an element, the neutral one first."""
        tokens = [token for token in self.vocabulary.tokens if token.element == element]
        tokens.sort(key=lambda token: (token.charge != 0, token.valence))
        return [token.valence for token in tokens]

    def proposal(self, prior: MaskedGraphPrior, measurement: Measurement) -> FormulaProposal:
        """Atoms first, by what is left of the counts; then bonds, tilted to what is left of their orders."""
        rows = len(self.elements)
        y = measurement.y.cpu()[: rows + 1].double()
        return FormulaProposal(prior.layout, y, self.table[:rows].double(), self.valences.double())


class OneMolecule(Operator):
    """The formula, and one datum more: 1 where the graph is one molecule that sanitises."""

    differentiable: ClassVar[bool] = False

    def __init__(self, formula: Formula) -> None:
        self.formula, self.event_shape = formula, formula.event_shape

    def forward(self, x: Float[Tensor, "batch N C"]) -> Float[Tensor, "batch rows"]:
        vocabulary = self.formula.vocabulary
        graphs = graphs_of(x, len(vocabulary))
        one = [float(decode(graph, vocabulary).valid_connected) for graph in graphs]
        return torch.cat([self.formula(x), x.new_tensor(one)[:, None]], dim=1)

    def data(self, text: str) -> Float[Tensor, "rows"]:
        """y of a formula."""
        return torch.cat([self.formula.data(text), torch.ones(1)])

    def proposal(self, prior: MaskedGraphPrior, measurement: Measurement) -> FormulaProposal:
        """That of the formula."""
        return self.formula.proposal(prior, measurement)


class FormulaProposal:
    """q of the formula: exact counts by construction, the total bond order by an exponential tilt.

    The matrix (undecided atoms x elements) of probabilities is balanced to row sums 1 and column sums the
    counts that are left, and the next atom is drawn from its row; which of an element's tokens it is, from
    the prior. Net charge is left to the weights. Hydrogens fix the total bond order B = (sum of valences -
    H) / 2 of the decided atoms: each pair's law is multiplied by exp(theta order), theta such that the
    expected order of what is undecided is what is left of B.
    """

    def __init__(
        self,
        layout: Layout,
        y: Float[Tensor, "rows"],
        elements: Float[Tensor, "elements tokens"],
        valences: Float[Tensor, "tokens"],
    ) -> None:
        self.layout, self.elements, self.valences = layout, elements, valences
        self.counts, self.hydrogens = y[:-1], float(y[-1])

    def sites(self, tokens: Int[Tensor, "batch sites"]) -> Bool[Tensor, "batch sites"]:
        """Atoms, and pairs where no atom is masked."""
        atoms = torch.arange(self.layout.sites) < self.layout.most
        undecided = (tokens[:, : self.layout.most] == MASK).any(dim=1, keepdim=True)
        return (tokens == MASK) & (atoms == undecided)

    def law(
        self,
        tokens: Int[Tensor, "batch sites"],
        site: Int[Tensor, "batch"],
        log_p: Float[Tensor, "batch sites vocabulary"],
    ) -> Float[Tensor, "batch vocabulary"]:
        out = torch.full((len(tokens), self.layout.vocabulary), -torch.inf, dtype=torch.float64)
        atom = site < self.layout.most
        if bool(atom.any()):
            out[atom, : self.layout.kinds] = self.atoms(tokens[atom], site[atom], log_p[atom])
        if not bool(atom.all()):
            pair = ~atom
            out[pair, :4] = self.bonds(tokens[pair], site[pair], log_p[pair])
        return out

    def atoms(
        self,
        tokens: Int[Tensor, "batch sites"],
        site: Int[Tensor, "batch"],
        log_p: Float[Tensor, "batch sites vocabulary"],
    ) -> Float[Tensor, "batch tokens"]:
        """Log of the balanced row of the atom."""
        most, kinds = self.layout.most, self.layout.kinds
        atoms = tokens[:, :most]
        left = (self.counts - self.used(atoms) @ self.elements.mT).clamp_min(0)
        laws = log_p[:, :most, :kinds].exp()
        table = (laws @ self.elements.mT).clamp_min(1e-9) * (atoms == MASK)[..., None]
        for _ in range(SWEEPS):
            table = table * (left / table.sum(1).clamp_min(1e-12))[:, None]
            table = table / table.sum(2, keepdim=True).clamp_min(1e-12)
        rows = torch.arange(len(site))
        row = table[rows, site] * (left > 0)
        # Where nothing is left of the counts every token may come, and the weights see it.
        row = torch.where(row.sum(1, keepdim=True) > 0, row, torch.ones_like(row))
        own = laws[rows, site].clamp_min(1e-30)
        within = own / ((own @ self.elements.mT) @ self.elements)
        chosen = (row @ self.elements) * within
        return (chosen / chosen.sum(1, keepdim=True)).log()

    def total(self, atoms: Int[Tensor, "batch N"]) -> Float[Tensor, "batch"]:
        """B."""
        return (self.used(atoms) @ self.valences - self.hydrogens) / 2

    def used(self, atoms: Int[Tensor, "batch N"]) -> Float[Tensor, "batch tokens"]:
        """How many atoms of each token are decided."""
        onehot = torch.nn.functional.one_hot(atoms.clamp_min(0), self.layout.vocabulary)
        return (onehot[..., : self.layout.kinds] * (atoms != MASK)[..., None]).sum(1).double()

    def bonds(
        self,
        tokens: Int[Tensor, "batch sites"],
        site: Int[Tensor, "batch"],
        log_p: Float[Tensor, "batch sites vocabulary"],
    ) -> Float[Tensor, "batch orders"]:
        """Log of the tilted law of the pair."""
        most = self.layout.most
        pairs, laws = tokens[:, most:], log_p[:, most:, :4]
        orders = torch.arange(4, dtype=torch.float64)
        masked = pairs == MASK
        decided = torch.where(masked | (pairs == self.layout.absent), 0, pairs).sum(1).double()
        left = self.total(tokens[:, :most]) - decided
        low = torch.full((len(tokens),), -REACH, dtype=torch.float64)
        high = -low
        for _ in range(40):
            theta = (low + high) / 2
            tilted = (laws + theta[:, None, None] * orders).softmax(-1)
            expected = (torch.where(masked[..., None], tilted, 0.0) * orders).sum((1, 2))
            low = torch.where(expected < left, theta, low)
            high = torch.where(expected < left, high, theta)
        chosen = laws[torch.arange(len(site)), site - most]
        return (chosen + ((low + high) / 2)[:, None] * orders).log_softmax(-1)
