"""Priors given properties, compositions of priors, and the proposals that a conditional prior makes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from invdiff import MASK, InputError, PriorCard, TrainSettings, keyed_stream, load_plugin
from invdiff.config import compose
from invdiff_molecule.chemistry import Vocabulary, read_smiles
from invdiff_molecule.domain import MoleculeDomain
from invdiff_molecule.layout import Layout
from invdiff_molecule.masked import MaskedGraphPrior
from invdiff_molecule.masked_network import MaskedGraphNetwork
from invdiff_molecule.objective import Aimed, Values, term_of
from invdiff_molecule.priors import draws_alone
from invdiff_molecule.properties import PROPERTIES
from invdiff_molecule.training import GraphSet

QM9 = Vocabulary.of(["C", "N", "O", "F"])
SMILES = ["CCO", "N#CC1CC1", "CC(=O)NC", "C1CO1", "FCC#N"] * 4


def prior(properties=("logp", "tpsa"), nodes=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MaskedGraphNetwork(
            ["C", "N", "O", "F"], nodes, False, properties, width=16, edge_width=8, heads=2, layers=2
        )
    net.center.copy_(torch.arange(len(properties)).float())
    return MaskedGraphPrior(net.eval(), PriorCard("test"))


def masked(p, count=3):
    tokens = p.start(count, keyed_stream(0, 1))
    tokens[:, 0] = 1
    return tokens


def test_what_is_not_known_does_not_count():
    p = prior()
    tokens = masked(p)
    plain = p.log_conditionals(tokens)
    nothing = (math.nan, math.nan)
    torch.testing.assert_close(p.log_conditionals(tokens, nothing), plain)
    given = p.log_conditionals(tokens, p.wishes({"tpsa": 40.0}))
    assert not torch.allclose(given, plain)
    assert math.isnan(p.wishes({"tpsa": 40.0})[0])
    with pytest.raises(InputError, match="'qed' is not among them"):
        p.wishes({"qed": 0.5})
    with pytest.raises(InputError, match="unknown property"):
        prior(("logp", "colour"))


def test_training_tells_each_property_half_of_the_time():
    """The labels are RDKit's, and the centre and scale those of the training split."""
    layout = Layout(6, 4)
    tokens = torch.stack([layout.tokens(QM9.graph(read_smiles(one))) for one in SMILES]).to(torch.int8)
    data = GraphSet(layout, {name: tokens for name in ("train", "validation", "test")})
    p = prior()
    objective = data.objective(p.network, TrainSettings())
    expected = [PROPERTIES["logp"].value(read_smiles(one)) for one in SMILES]
    assert objective.labels["train"][:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert float(p.network.center[0]) == pytest.approx(np.mean(expected), abs=1e-5)
    told = []
    p.network.register_forward_pre_hook(lambda _, args: told.append(args[1]))
    objective.of("train", torch.arange(20).repeat(50), torch.Generator().manual_seed(0))
    share = float((~told[0].isnan()).float().mean())
    assert abs(share - 0.5) < 4 * 0.5 / 2000**0.5
    known = ~told[0].isnan()
    assert torch.equal(told[0][known], objective.labels["train"].repeat(50, 1)[known])


def test_powers_of_one_prior_add_up():
    p = prior()
    tokens = masked(p)
    plain = p.log_conditionals(tokens)
    torch.testing.assert_close(p.composed(((p, 2.0), (p, -1.0))).log_conditionals(tokens), plain)
    twice = p.composed(((p, 2.0),)).log_conditionals(tokens)
    finite = torch.isfinite(plain)
    torch.testing.assert_close(twice[finite], 2 * plain[finite])
    assert torch.equal(torch.isneginf(twice), torch.isneginf(plain))


def test_numbers_of_nodes_follow_the_product():
    """Drawn at 4000: four standard errors."""
    p = prior()
    p.network.sizes.copy_(torch.tensor([0, 0.1, 0.0, 0.3, 0.2, 0.0, 0.4]))
    whole = p.composed(((p, 2.0),))
    expected = p.network.sizes**2 / (p.network.sizes**2).sum()
    tokens = whole.start(4000, keyed_stream(0, 2))
    sizes = (tokens[:, :6] != p.layout.absent).sum(1)
    share = torch.bincount(sizes, minlength=7) / 4000
    assert float((share - expected).abs().max()) < 4 * math.sqrt(0.25 / 4000)
    given = whole.given(QM9.graph(read_smiles("C1CO1")), 5)
    assert (given.start(3, keyed_stream(0, 3))[:, :3] != MASK).all()
    assert draws_alone(given, 4, keyed_stream(0, 4)).shape == (4, 6, 10)


def test_proposals_aim_where_the_likelihood_moves_a_gaussian():
    """Against quadrature of N(mean, std^2) times the likelihood; a direction stops at three std."""
    grid = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    for settings in ({"target": 1.5, "sigma": 0.4}, {"direction": "minimise", "sigma": 3.0}):
        term = term_of({"name": "logp", **settings})
        gap = (grid - term.target) / term.sigma
        likelihood = -0.5 * gap.square() if term.direction == "target" else -gap
        weights = (likelihood - 0.5 * ((grid - 0.3) / 1.2).square()).softmax(0)
        assert term.aim(0.3, 1.2) == pytest.approx(float((weights * grid).sum()), abs=1e-3)
    sharp = term_of({"name": "qed", "direction": "maximise", "sigma": 0.01})
    assert sharp.aim(0.5, 0.1) == pytest.approx(0.8)


def test_a_question_is_aimed_at_where_the_prior_knows_it():
    p = prior()
    known, unknown = term_of({"name": "logp", "target": 1.0}), term_of({"name": "qed", "target": 0.5})
    both = Values([known, unknown], QM9, 6).proposal(p, None)
    assert isinstance(both, Aimed)
    assert both.wanted[0] == pytest.approx(known.aim(0.0, 1.0))
    assert math.isnan(both.wanted[1])
    assert Values([unknown], QM9, 6).proposal(p, None) is None
    assert Values([known], QM9, 6).proposal(p.composed(((p, 2.0),)), None) is None
    tokens = masked(p)
    law = both.law(tokens, torch.tensor([1, 2, 3]), p.log_conditionals(tokens))
    expected = p.log_conditionals(tokens, both.wanted)[torch.arange(3), torch.tensor([1, 2, 3])]
    torch.testing.assert_close(law, expected)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("[]", "needs prior.parts"),
        ("3", "needs prior.parts"),
        ("[{power: 2}]", "part 1 of prior.parts needs a name"),
        ("[{name: qm9_masked, power: two}]", "part 1 of prior.parts needs a name"),
        ("[{name: qm9_masked, power: -1}]", "add up to more than 0"),
        ("[{name: qm9_masked}, {name: zinc_masked}]", "a composition needs the same"),
        ("[{name: qm9_masked}, {name: qm9_edm}]", "no masked prior of graphs"),
        ("[{name: qm9_edm}, {name: qm9_masked}]", "is of tokens"),
        ("[{name: qm9_maskd}]", "qm9_masked"),
    ],
)
def test_bad_compositions_are_refused(parts, words):
    with pytest.raises(InputError, match=words):
        load_plugin("priors", "composition")(
            compose(["domain=molecule", "prior=composition", f"prior.parts={parts}"])["prior"]
        )


def test_a_question_under_a_composition():
    config = compose(
        ["domain=molecule", "prior=composition", "prior.parts=[{name: qm9_masked, power: 1.5}]", "samples=4"]
    )
    problem = MoleculeDomain().problems(config)[0]
    assert "qm9_masked^1.5" in problem.context.prior.card.name
