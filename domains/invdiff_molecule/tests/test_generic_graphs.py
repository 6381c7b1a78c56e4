"""Generic graphs: readers, distances between sets, and completion of hidden pairs."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest
import torch

from invdiff import (
    MASK,
    FilterSettings,
    FirstHitting,
    GaussianNoise,
    InputError,
    Measurement,
    keyed_stream,
    load_plugin,
    run_filter,
    solve,
)
from invdiff.config import compose
from invdiff.measurement.contract import check_operator
from invdiff_molecule.chemistry import Graph
from invdiff_molecule.domain import MoleculeDomain
from invdiff_molecule.graph_data import communities, connected, distance, read_graphs
from invdiff_molecule.graph_operators import Degrees, EdgeCount, KnownPairs, graphical, symmetric_sums
from invdiff_molecule.graphs import GraphDomain
from invdiff_molecule.priors import draws_alone
from invdiff_molecule.state import graphs_of
from tests.data import shared
from tests.small_graphs import Small


def test_operators_keep_their_laws():
    known = torch.rand(7, 7, generator=torch.Generator().manual_seed(0)) < 0.4
    for operator in (KnownPairs(known, 2), EdgeCount(7, 2), Degrees(5, 7, 2)):
        for check in check_operator(operator, (7, 9)):
            assert check.passed, check


def test_graphical_sequences_are_those_that_a_graph_has():
    """All sequences of five nodes, against all 1024 graphs."""
    pairs = torch.triu_indices(5, 5, 1)
    graphs = torch.tensor(list(itertools.product(range(2), repeat=10)))
    found = set()
    for graph in graphs:
        degrees = torch.zeros(5, dtype=torch.long)
        degrees.index_add_(0, pairs[0], graph).index_add_(0, pairs[1], graph)
        found.add(tuple(degrees.tolist()))
    every = list(itertools.product(range(6), repeat=5))
    assert {one for one, yes in zip(every, graphical(torch.tensor(every)), strict=True) if yes} == found


def test_symmetric_sums_are_those_of_products():
    logs = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for k, column in enumerate(symmetric_sums(logs).T):
        terms = [logs[:, list(chosen)].sum(1) for chosen in itertools.combinations(range(5), k)]
        torch.testing.assert_close(column, torch.stack(terms).logsumexp(0))


def test_the_degree_proposal_samples_the_exact_posterior():
    """Graphs of four nodes, 1024 points: total variation at 20 000 particles, and every degree met."""
    prior = Small(4)
    operator = Degrees(4, 4, 2)
    y = torch.tensor([2.0, 2.0, 1.0, 1.0])
    measurement = Measurement(operator, GaussianNoise(0.05), y)
    logs = prior.probabilities.log() + measurement.log_likelihood(prior.embed(prior.states))
    exact, evidence = logs.softmax(0), float(logs.logsumexp(0))
    proposal = operator.proposal(prior, measurement)

    def reward(tokens):
        return measurement.log_likelihood(prior.embed(tokens))

    model = FirstHitting(prior, reward, completions=0, proposal=proposal)
    out = run_filter(model, FilterSettings(20_000), torch.Generator().manual_seed(1))
    data = operator(prior.embed(out.particles.tokens))
    assert torch.equal(data, y.expand_as(data))
    assert 0.5 * float((prior.found(out.particles, out.weights) - exact).abs().sum()) < 0.03
    assert out.log_evidence == pytest.approx(evidence, abs=0.05)


def test_degrees_of_communities_are_met(tmp_path):
    """Every draw has them, and the filter does not live on a single particle."""
    found = solve(
        "domain=graph", "operator=degrees", "sampler.particles=64", "samples=32", out=str(tmp_path / "run")
    )
    table = found["metrics"]["question"]["table"]
    assert table["posterior samples"]["degrees met"] == 1.0
    assert table["prior alone"]["degrees met"] < 0.1
    with np.load(tmp_path / "run/items/question/graphs.npz") as file:
        assert len({one.tobytes() for one in file["adj"]}) > 4


def test_generated_communities_are_connected_and_of_even_size():
    graphs = communities(50, 1)
    assert all(connected(graph.bonds) for graph in graphs)
    assert {graph.size for graph in graphs} <= {12, 14, 16, 18, 20}
    assert (communities(3, 1)[2].bonds == graphs[2].bonds).all()


def test_distances_between_sets():
    """Nothing between a set and itself; communities are far from graphs of the same density without any."""
    rng = np.random.default_rng(0)
    graphs = communities(60, 2)
    shuffled = []
    for graph in graphs:
        pairs = np.triu_indices(graph.size, 1)
        bonds = np.zeros_like(graph.bonds)
        bonds[pairs] = rng.permutation(graph.bonds[pairs])
        shuffled.append(Graph(graph.atoms, bonds + bonds.T))
    same, other, far = (
        distance(graphs, graphs),
        distance(graphs, communities(60, 3)),
        distance(graphs, shuffled),
    )
    for name in ("degree", "cluster", "spectral"):
        assert same[name] == pytest.approx(0, abs=1e-12)
    assert far["cluster"] > 5 * other["cluster"]
    assert far["spectral"] > 5 * other["spectral"]


def test_the_public_set_is_read():
    path = shared("checkpoints/gdss/community_small.npz")
    graphs = [graph for _, graph in read_graphs(path)]
    assert len(graphs) == 100
    assert np.mean([graph.bonds.sum() / 2 for graph in graphs]) == pytest.approx(35.15)
    halves = distance(graphs[:50], graphs[50:])
    assert halves["degree"] < 0.05


def test_edge_lists(tmp_path):
    path = tmp_path / "friends.csv"
    path.write_text("# who knows whom\nada,bob\nbob,cyd\n\nada,cyd\ncyd,dan\n")
    ((name, graph),) = read_graphs(path)
    assert name == "friends"
    assert graph.size == 4
    assert graph.bonds.sum() == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no edges"),
        ("a b c\n", "3 words"),
        ("a a\n", "joins a to itself"),
        ("a b\nc\n", "row 2 has 1 words"),
    ],
)
def test_bad_edge_lists_are_refused(tmp_path, text, words):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        read_graphs(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.eye(3)}, "no array `adj`"),
        ({"adj": np.ones((3, 3))}, "self-loops"),
        ({"adj": np.triu(np.ones((3, 3)), 1)}, "not symmetric"),
        ({"adj": 2 * (1 - np.eye(3))}, "other than 0 and 1"),
        ({"adj": np.zeros((3, 3))}, "no edges"),
        ({"adj": np.zeros((2, 3, 4))}, "has shape"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "g.npz", **arrays)
    with pytest.raises(InputError, match=words):
        read_graphs(tmp_path / "g.npz")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["operator.share=1.5"], "between 0 and 1"),
        (["operator=edges", "operator.edges=500"], "1 to 190"),
        (["operator=degrees", "operator.degrees=[3,1,1]"], "no simple graph"),
        (["operator=degrees", "operator.degrees=[2,2,1]"], "no simple graph"),
        (["operator=degrees", "operator.degrees=[1]"], "2 to 20 nodes"),
        (["operator=degrees", "operator.degrees=[1,a]"], "give the degree of every node"),
        (["prior=qm9_masked"], "no prior of generic graphs"),
        (["input.path=missing.npz"], "there is no file"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        GraphDomain().problems(compose(["domain=graph", *settings]))


def test_molecules_refuse_a_prior_of_generic_graphs():
    with pytest.raises(InputError, match="no prior of molecules"):
        MoleculeDomain().problems(compose(["domain=molecule", "prior=community_masked"]))


def test_known_pairs_stand_in_every_draw():
    problem = GraphDomain().problems(compose(["domain=graph"]))[0]
    item = problem.context
    x = draws_alone(item.prior, 8, keyed_stream(0, 1))
    data = problem.measurement.operator(x)
    assert torch.equal(data, problem.measurement.y.expand_as(data))
    start = item.prior.start(2, keyed_stream(0, 2))
    pairs = item.truth.size * (item.truth.size - 1) // 2
    assert (start == MASK).sum(1).tolist() == [pairs - int(item.known.sum())] * 2


def test_hidden_pairs_are_found(tmp_path):
    """AUC of the hidden pairs of the bundled example; without data it is near .5."""
    found = solve("domain=graph", "samples=32", out=str(tmp_path / "run"))
    table = found["metrics"]["example"]["table"]
    assert table["posterior samples"]["AUC"] > 0.8
    assert table["posterior samples"]["AUC"] > table["prior alone"]["AUC"] + 0.15
    folder = tmp_path / "run/items/example"
    with np.load(folder / "graphs.npz") as file:
        assert file["adj"].shape == (32, 20, 20)
    rows = list(csv.DictReader((folder / "pairs.csv").open()))
    seen = [row for row in rows if row["known"] == "1"]
    assert seen
    assert all(float(row["probability"]) == float(row["truth"]) for row in seen)


def test_a_number_of_edges(tmp_path):
    found = solve(
        "domain=graph", "operator=edges", "operator.edges=50", "samples=32", "operator.nodes=16",
        out=str(tmp_path / "run"),
    )  # fmt: skip
    row = found["metrics"]["question"]["table"]["posterior samples"]
    assert row["edges"] == pytest.approx(50, abs=1.0)


def test_the_bundled_prior_makes_communities():
    """100 draws: MMD of degrees and spectra near that of as many generated graphs."""
    prior = load_plugin("priors", "community_masked")(compose(["domain=graph"])["prior"])
    x = draws_alone(prior, 100, keyed_stream(0, 4))
    graphs = [Graph(one.atoms, one.bonds.clip(0, 1)) for one in graphs_of(x, 1)]
    far = distance(graphs, communities(200, 5))
    assert far["degree"] < 0.1
    assert far["spectral"] < 0.1
    assert np.mean([connected(graph.bonds) for graph in graphs]) > 0.7


def test_a_published_prior_runs_under_the_samplers_of_levels(tmp_path):
    """A linear forward model and a prior of real numbers: guided by the known pairs."""
    path = shared("checkpoints/gdss/community_small/gdss_community_small.pth")
    found = solve(
        "domain=graph", "prior=gdss", f"prior.path={path}", "sampler=pigdm", "sampler.steps=20", "samples=16",
        out=str(tmp_path / "run"),
    )  # fmt: skip
    assert found["metrics"]["example"]["table"]["posterior samples"]["AUC"] > 0.6
