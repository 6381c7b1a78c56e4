"""Learned properties: the network is GINE on graphs, differentiable between them, and steers draws."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch_geometric.nn import GINEConv

from invdiff import InputError, keyed_stream, sample
from invdiff.config import compose
from invdiff.run.solve import plan
from invdiff_molecule.chemistry import Vocabulary, read_smiles
from invdiff_molecule.domain import MoleculeDomain
from invdiff_molecule.gdss_property import network_property
from invdiff_molecule.item import BUNDLED_REGRESSOR
from invdiff_molecule.objective import front, term_of
from invdiff_molecule.properties import PROPERTIES
from invdiff_molecule.regressor import GraphRegressor, Predicted, bonds, load_regressor
from invdiff_molecule.state import of_graph, permute, unpack
from invdiff_molecule.training import lines_of
from tests.data import shared

TOKENS = ("C", "N", "O", "F")
DENOISER = BUNDLED_REGRESSOR.parent / "qm9_edm.safetensors"
SMILES = ("CCO", "C1=CC=CN1", "CC(=O)N(C)C", "OCC#N", "C1CC2CC1C2", "FC1=CC=CC=C1")
# None of them is in QM9 as written here; the labels are RDKit's.


def network(**options):
    torch.manual_seed(0)
    return GraphRegressor(TOKENS, 9, ("logp", "qed"), width=16, layers=2, **options)


def states(smiles=SMILES, most=9):
    vocabulary = Vocabulary.of(TOKENS)
    return torch.stack([of_graph(vocabulary.graph(read_smiles(one)), most, 4) for one in smiles])


def test_on_graphs_a_layer_is_gine():
    """PyG's GINEConv with the same weights, edges embedded by their order."""
    model, x = network(), states()
    for row in x:
        nodes, edges = unpack(row, 4)
        count = int((nodes.sum(1) > 0).sum())
        h = model.enter(nodes[:count])
        index = edges[:count, :count].nonzero().T
        orders = edges[index[0], index[1]].long()
        layer = GINEConv(model.layers[0], eps=float(model.eps[0]))
        expected = layer(h, index, model.orders[0][orders - 1])
        messages = sum(
            weight @ torch.relu(h + order)
            for weight, order in zip(bonds(edges[:count, :count]), model.orders[0], strict=True)
        )
        torch.testing.assert_close(model.layers[0]((1 + model.eps[0]) * h + messages), expected)


def test_bonds_are_interpolated():
    found = torch.stack(bonds(torch.tensor([0.0, 1.0, 1.25, 3.0, 3.5, -0.5])))
    expected = torch.tensor([[0, 1, 0.75, 0, 0, 0], [0, 0, 0.25, 0, 0, 0], [0, 0, 0, 1, 0.5, 0]])
    torch.testing.assert_close(found, expected)


def test_order_and_padding_do_not_matter():
    model, x = network(), states()
    order = torch.randperm(9, generator=keyed_stream(0, 0))
    torch.testing.assert_close(model(permute(x, order, 4)), model(x), rtol=1e-5, atol=1e-5)
    wide = GraphRegressor(TOKENS, 12, ("logp", "qed"), width=16, layers=2)
    wide.load_state_dict(model.state_dict())
    torch.testing.assert_close(wide(states(most=12)), model(x), rtol=1e-5, atol=1e-5)


def test_derivative_counts_every_free_coordinate_once():
    """Central differences in the stored triangle; padding and the lower triangle have no derivative."""
    model = network().double()
    x = states().double() + 0.1 * (states() != 0)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    for place in ((0, 0, 5), (2, 1, 6), (3, 1, 2)):
        values = []
        for shift in (-1e-6, 1e-6):
            moved = x.detach().clone()
            moved[place] += shift
            values.append(float(model(moved)[place[0], 0]))
        assert float(slope[place]) == pytest.approx((values[1] - values[0]) / 2e-6, rel=1e-5, abs=1e-8)
    assert float(slope[:, 5:, 4:].tril(0).abs().max()) == 0.0
    assert float(slope[0, 4:].abs().max()) == 0.0  # ethanol has three atoms


def test_the_bundled_network_predicts_what_rdkit_computes():
    """Six molecules: within four of its own errors of every property."""
    model = load_regressor(BUNDLED_REGRESSOR)
    found = model(states())
    for column, name in enumerate(model.properties):
        exact = torch.tensor([PROPERTIES[name].value(read_smiles(one)) for one in SMILES])
        assert float((found[:, column] - exact).abs().max()) < 4 * float(model.errors[column]), name


def test_targets_in_units_of_their_width():
    model = load_regressor(BUNDLED_REGRESSOR)
    terms = [term_of({"name": "logp", "target": 1.0, "sigma": 0.3}), term_of({"name": "qed", "target": 0.5})]
    operator = Predicted(model, terms)
    x = states()
    width = torch.hypot(torch.tensor(0.3), model.errors[0])
    torch.testing.assert_close(operator(x)[:, 0], model(x)[:, 0] / width)
    assert float(operator.data(terms)[0]) == pytest.approx(float(1.0 / width))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["operator.name=tpsa", "operator.target=20"], "no network predicts 'tpsa'"),
        (["operator.operators=[{name: qed, direction: maximise}]"], "takes a target"),
        (["operator.target=0.5", "prior=zinc_masked"], "needs"),
        (["operator.target=0.5", "operator.path=missing.safetensors"], "missing.safetensors"),
        (["operator.target=0.5", f"operator.path={DENOISER}"], "no regressor"),
        (["operator.target=0.5", "domain.heavy_atoms=12"], "12"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        plan(compose(["operator=learned", *settings]))


def test_learned_targets_steer_draws():
    """logP of 64 draws of nine atoms with targets 2 and -1: medians apart by more than one, by RDKit."""
    medians = []
    for target in (2.0, -1.0):
        config = compose(["operator=learned", "operator.name=logp", f"operator.target={target}"])
        (problem,) = MoleculeDomain().problems(config)
        prior = MoleculeDomain().adapt_prior(problem.context.prior, problem)
        options = {"samples": 64, "particles": 128, "keep": 64}
        drawn = sample(prior, problem.measurement, problem.shape, sampler="moment_twisted", **options)
        decoded = [one for one in problem.context.decoded(drawn.samples) if one.valid_connected]
        values = torch.tensor([PROPERTIES["logp"].value(one.molecule) for one in decoded])
        assert len(values) > 32
        medians.append(float(values.median()))
    assert medians[0] - medians[1] > 1.0, medians


def test_an_operator_that_brings_its_prior_names_the_sampler():
    config = compose(["operator=learned"])
    assert config["prior"]["name"] == "qm9_edm" and config["sampler"]["name"] == "moment_twisted"
    config = compose(["operator=learned", "prior=qm9_edm"])  # the prior that the user names has its own
    assert config["sampler"]["name"] == "graph_diffusion"
    config = compose(["operator=learned", "sampler=dps"])
    assert config["sampler"]["name"] == "dps"


def test_published_property_networks_score_molecules_as_recorded():
    """500 molecules of ZINC: mean .19 to .23, std .017 to .025, and a little of QED times easiness."""
    folder = shared("checkpoints/gdss/ZINC250k")
    lines = [smiles for _, smiles in islice(lines_of(shared("molecules/zinc250k.csv.gz")), 500)]
    molecules = [read_smiles(smiles) for smiles in lines]
    target = [PROPERTIES["qed"].value(one) * (10 - PROPERTIES["sa"].value(one)) / 9 for one in molecules]
    for path in sorted(folder.glob("prop_*.pth")):
        found = network_property(path)
        values = np.array([found.value(one) for one in molecules])
        assert 0.18 < values.mean() < 0.24 and 0.015 < values.std() < 0.027
        assert 0.15 < np.corrcoef(values, target)[0, 1] < 0.45


def test_published_property_networks_are_refused_where_they_are_none(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint"):
        network_property(tmp_path / "prop.pth")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "prop.pth")
    with pytest.raises(InputError, match="no property network"):
        network_property(tmp_path / "prop.pth")
    with pytest.raises(InputError, match=r"needs operator\.path"):
        plan(compose(["operator=property", "operator.name=network", "operator.direction=maximise"]))


def test_the_pareto_set_is_what_no_other_row_beats():
    terms = [
        term_of({"name": "logp", "direction": "maximise"}),
        term_of({"name": "tpsa", "direction": "minimise"}),
        term_of({"name": "qed", "target": 0.5}),
    ]
    rows = [(1.0, 10.0, 0.5), (0.5, 10.0, 0.5), (2.0, 30.0, 0.4), (1.0, 10.0, 0.6), (1.0, 10.0, 0.5)]
    assert front(terms, rows) == [True, False, True, False, True]


def test_a_question_from_a_molecule_has_its_size(tmp_path):
    (tmp_path / "some.smi").write_text("CCOC(C)=O\n")
    config = compose(["operator=learned", "operator.name=logp", f"input.path={tmp_path / 'some.smi'}"])
    (problem,) = MoleculeDomain().problems(config)
    assert problem.context.size == 6
    assert problem.context.terms[0].target == pytest.approx(
        PROPERTIES["logp"].value(read_smiles("CCOC(C)=O"))
    )
