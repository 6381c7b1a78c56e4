"""Packed states, token layouts, the network, and the formula against laws that can be enumerated."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff import GaussianNoise, InputError, Measurement, PriorCard
from invdiff.measurement.contract import check_operator
from invdiff.prior.masked import MASK
from invdiff.sampler import feynman_kac
from invdiff.sampler.first_hitting import FirstHitting
from invdiff_molecule.chemistry import Vocabulary, canonical, decode, formula_of, read_formula, read_smiles
from invdiff_molecule.formula import Formula
from invdiff_molecule.layout import Layout
from invdiff_molecule.masked import MaskedGraphPrior
from invdiff_molecule.masked_network import MaskedGraphNetwork
from invdiff_molecule.network import STEPS, distances
from invdiff_molecule.state import graphs_of, nodes_of, of_graph, pack, permute, support, unpack
from tests.small_graphs import Small

QM9 = Vocabulary.of(["C", "N", "O", "F"])
SMILES = ["C", "CCO", "c1cc[nH]c1", "N#CC1CC1O", "CC(=O)NC(F)(F)F"]


def states(most=9):
    return torch.stack([of_graph(QM9.graph(read_smiles(one)), most, 4) for one in SMILES])


def test_states_pack_and_unpack():
    x = states()
    nodes, edges = unpack(x, 4)
    assert torch.equal(edges, edges.mT)
    assert torch.equal(pack(nodes, edges), x)
    assert nodes_of(x, 4).sum(1).tolist() == [1, 3, 5, 6, 8]
    free = support(torch.tensor([1, 3, 9]), 9, 4)
    assert free.sum((1, 2)).tolist() == [n * 4 + n * (n - 1) / 2 for n in (1, 3, 9)]
    assert float((x * (1 - support(nodes_of(x, 4).sum(1), 9, 4))).abs().max()) == 0


def test_decoding_does_not_see_the_numbering():
    x = states()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    before = [decode(graph, QM9).smiles for graph in graphs_of(x, 4)]
    after = [decode(graph, QM9).smiles for graph in graphs_of(permute(x, order, 4), 4)]
    assert before == after
    assert None not in before


def test_the_gradient_of_a_packed_edge_is_that_of_the_free_coordinate():
    x = states()[:1].clone().requires_grad_()
    weights = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    weights = weights + weights.mT
    (gradient,) = torch.autograd.grad((unpack(x, 4)[1] * weights).sum(), x)
    torch.testing.assert_close(torch.triu(gradient[0, :, 4:], 1), torch.triu(2 * weights, 1))


def test_layouts_hold_graphs():
    layout = Layout(9, 4)
    assert layout.sites == 45
    graphs = [QM9.graph(read_smiles(one)) for one in SMILES]
    tokens = torch.stack([layout.tokens(graph) for graph in graphs])
    torch.testing.assert_close(layout.state(tokens), states())
    empty = layout.empty(torch.tensor([1, 9]))
    assert (empty == MASK).sum(1).tolist() == [1, 45]


def network(paths=False):
    sizes = {"width": 16, "edge_width": 8, "heads": 2, "layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MaskedGraphNetwork(["C", "N", "O", "F"], 6, paths, **sizes).eval()


@pytest.mark.parametrize("paths", [False, True])
def test_the_network_does_not_see_how_far_it_is_padded(paths):
    """A graph alone, where padding is cut off, and beside a larger one."""
    net, layout = network(paths), Layout(6, 4)
    small, large = (layout.tokens(QM9.graph(read_smiles(one))) for one in ("CCO", "N#CC1CC1"))
    masked = torch.stack([small, large])
    masked = torch.where((torch.arange(masked.shape[1]) % 3 == 0) & (masked != layout.absent), MASK, masked)
    both, alone = net(masked)[0], net(masked[:1])[0]
    there = small != layout.absent
    torch.testing.assert_close(both[there], alone[there], atol=1e-5, rtol=1e-4)


def test_distances_of_a_chain_and_of_fragments():
    """Hexane beside an atom: one to five bonds apart are told from farther, and what no path joins."""
    bonds = torch.zeros(1, 9, 9)
    for i in range(7):
        bonds[0, i, i + 1] = bonds[0, i + 1, i] = 1
    found = distances(bonds)[0]
    for steps in range(2, STEPS + 1):
        near = (torch.arange(9)[:, None] - torch.arange(9)).abs() <= steps
        near[8, :8] = near[:8, 8] = False
        assert torch.equal(found[..., steps - 2] > 0, near)
    joined = torch.ones(9, 9, dtype=torch.bool)
    joined[8, :8] = joined[:8, 8] = False
    assert torch.equal(found[..., -1] > 0, joined)


@pytest.mark.parametrize("paths", [False, True])
def test_the_network_is_equivariant_and_blind_to_padding(paths):
    net, layout = network(paths), Layout(6, 4)
    graph = QM9.graph(read_smiles("N#CC1CO1"))
    tokens = layout.tokens(graph)
    hidden = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    masked = torch.where(hidden & (tokens != layout.absent), MASK, tokens)[None]
    atoms, pairs = layout.split(masked)
    order = torch.tensor([3, 1, 4, 0, 2, 5])  # the absent node stays last
    rows, columns = layout.pairs
    moved = torch.cat([atoms[:, order], pairs[:, order][:, :, order][:, rows, columns]], dim=1)
    out, moved_out = net(masked)[0], net(moved)[0]
    torch.testing.assert_close(out[:6][order][:5, :4], moved_out[:5, :4], atol=1e-5, rtol=1e-4)
    table = torch.zeros(6, 6, 4)
    table[rows, columns] = out[6:, :4]
    table[columns, rows] = out[6:, :4]
    found = torch.zeros(6, 6, 4)
    found[rows, columns] = moved_out[6:, :4]
    there = (rows < 5) & (columns < 5)
    expected = table[order][:, order]
    torch.testing.assert_close(
        found[rows, columns][there], expected[rows, columns][there], atol=1e-5, rtol=1e-4
    )
    assert torch.isneginf(out[:6, 4]).all()
    assert torch.isneginf(out[6:, 4]).all()


def test_fragments_stand_in_the_graph_from_the_start():
    prior = MaskedGraphPrior(network(), PriorCard("test"))
    fragment = QM9.graph(read_smiles("C1CO1"))
    generator = torch.Generator().manual_seed(0)
    tokens = prior.given(fragment).start(200, generator)
    atoms = tokens[:, :6]
    sizes = (atoms != prior.layout.absent).sum(1)
    assert int(sizes.min()) >= 3
    assert (atoms[:, :3] == torch.from_numpy(fragment.atoms)).all()
    model = FirstHitting(prior.given(fragment, 5), lambda tokens: torch.zeros(len(tokens)), completions=0)
    done = feynman_kac.run(model, feynman_kac.Settings(20), generator).particles
    block = unpack(model.state(done), 4)[1][:, :3, :3]
    assert (block == torch.from_numpy(fragment.bonds)).all()
    assert (nodes_of(model.state(done), 4).sum(1) == 5).all()
    with pytest.raises(InputError, match="allow 3 to 6"):
        prior.given(fragment, 2)
    with pytest.raises(InputError, match="has 9 heavy atoms"):
        prior.given(QM9.graph(read_smiles("c1ccc2[nH]ccc2c1")))


def test_formulas_of_known_molecules():
    operator = Formula(QM9, 9)
    for smiles in SMILES:
        molecule = read_smiles(smiles)
        x = of_graph(QM9.graph(molecule), 9, 4)[None]
        torch.testing.assert_close(operator(x)[0], operator.data(formula_of(molecule)))
    x = torch.randn(3, 9, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = pack(x[..., :4], x[..., 4:])
    y = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close((operator(x) * y).sum(), (x * operator.adjoint(y)).sum())


CHARGED = Vocabulary.of(["C", "N", "O", "F", "S", "N+", "O-", "S6", "S4", "N-"])


@pytest.mark.parametrize(
    "smiles",
    ["C[N+](=O)[O-]", "CC[NH3+]", "CS(=O)(=O)N", "CS(C)=O", "[O-]C(=O)C[NH3+]", "CN=[N+]=[N-]", "CC(=O)[O-]"],
)
def test_formulas_with_charges_and_hypervalent_atoms(smiles):
    """Elements, hydrogens and net charge, and back from the text; a molecule keeps its tokens."""
    operator, molecule = Formula(CHARGED, 9), read_smiles(smiles)
    graph = CHARGED.graph(molecule)
    x = of_graph(graph, 9, len(CHARGED))[None]
    torch.testing.assert_close(operator(x)[0], operator.data(formula_of(molecule)))
    assert decode(graph, CHARGED).smiles == canonical(molecule)
    for check in check_operator(operator, operator.event_shape):
        assert check.passed, check


def test_charges_that_a_prior_does_not_know_are_refused():
    with pytest.raises(InputError, match="has a charge"):
        Formula(QM9, 9).data("C2H8N+")
    assert read_formula("C3H4O3-2")["charge"] == -2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("C6H6Br", "holds Br"),
        ("C10H8", "10 heavy atoms"),
        ("C2H9", "9 hydrogens"),
        ("C2H5", "odd sum of valences"),
        ("H2", "0 heavy atoms"),
        ("benzene", "not a molecular formula"),
    ],
)
def test_impossible_formulas_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        Formula(QM9, 9).data(text)


@pytest.mark.parametrize("proposals", [True, False])
def test_the_formula_proposal_samples_the_exact_posterior(proposals):
    """Against enumeration, 20 000 particles: that of exact draws is below .02."""
    prior = Small()
    vocabulary = Vocabulary.of(["C", "O"])
    operator = Formula(vocabulary, 3)
    x = prior.embed(prior.states)
    y = operator(x)[11]
    measurement = Measurement(operator, GaussianNoise(0.05), y)
    logs = prior.probabilities.log() + measurement.log_likelihood(x)
    exact, evidence = logs.softmax(0), float(logs.logsumexp(0))
    proposal = operator.proposal(prior, measurement) if proposals else None

    def reward(tokens):
        return measurement.log_likelihood(prior.embed(tokens))

    model = FirstHitting(prior, reward, completions=0, proposal=proposal)
    out = feynman_kac.run(model, feynman_kac.Settings(20_000), torch.Generator().manual_seed(1))
    found = prior.found(out.particles, out.weights)
    assert 0.5 * float((found - exact).abs().sum()) < 0.03
    assert out.log_evidence == pytest.approx(evidence, abs=0.05)
    if proposals:
        counts = operator(prior.embed(out.particles.tokens))[:, :2]
        assert (counts == y[:2]).all()
        assert out.ess[-1] > 0.3


@pytest.mark.parametrize("options", [{}, {"every": 3, "last": 6}, {"lookahead": True}])
def test_steering_by_a_reward_samples_the_tilted_law(options):
    """Graphs of four nodes, 1024 points, tilted to many bonds between unlike atoms.

    Total variation of 20 000 exact draws from so many points is about .06, and its spread .002.
    """
    prior = Small(4)

    def reward(tokens):
        nodes, edges = unpack(prior.embed(tokens), 2)
        unlike = nodes[..., 0][:, :, None] * nodes[..., 1][:, None]
        return (1.2 * (unlike * edges).sum((1, 2))).double()

    logs = prior.probabilities.log() + reward(prior.states)
    exact, evidence = logs.softmax(0), float(logs.logsumexp(0))
    model = FirstHitting(prior, reward, completions=2, **options)
    out = feynman_kac.run(model, feynman_kac.Settings(20_000), torch.Generator().manual_seed(3))
    assert 0.5 * float((prior.found(out.particles, out.weights) - exact).abs().sum()) < 0.1
    assert out.log_evidence == pytest.approx(evidence, abs=0.04)


def test_laws_of_the_number_of_nodes():
    """Drawn from the buffer; 4 standard errors at 4000 draws."""
    net = network()
    net.sizes.copy_(torch.tensor([0, 0.1, 0.2, 0.0, 0.3, 0.0, 0.4]))
    prior = MaskedGraphPrior(net, PriorCard("test"))
    tokens = prior.start(4000, torch.Generator().manual_seed(2))
    sizes = (tokens[:, :6] != prior.layout.absent).sum(1)
    share = torch.bincount(sizes, minlength=7) / 4000
    assert float((share - net.sizes).abs().max()) < 4 * math.sqrt(0.25 / 4000)
    assert float(share[3] + share[5]) == 0
