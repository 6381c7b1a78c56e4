"""Graph diffusion: laws of noise in closed form, a steered law by enumeration, published checkpoints."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff import InputError, PriorCard, keyed_stream, solve
from invdiff.config import compose
from invdiff.run.solve import plan
from invdiff.sampler import feynman_kac
from invdiff_molecule.chemistry import Graph, decode, read_smiles
from invdiff_molecule.diffusion import GraphDiffusion, GraphModel
from invdiff_molecule.domain import MoleculeDomain
from invdiff_molecule.edm import GraphDenoiser, GraphEdmPrior
from invdiff_molecule.gdss import GdssPrior, Part, load_gdss
from invdiff_molecule.item import counted_atoms
from invdiff_molecule.levels import Moments
from invdiff_molecule.state import graphs_of, nodes_of, of_graph, permute, support, unpack
from invdiff_molecule.training import lines_of
from tests.data import shared

CHECKPOINTS = {
    "QM9": "checkpoints/gdss/QM9/gdss_qm9.pth",
    "ZINC250k": "checkpoints/gdss/ZINC250k/gdss_zinc250k_v2.pth",
    "community_small": "checkpoints/gdss/community_small/gdss_community_small.pth",
}


@pytest.mark.parametrize("part", [Part(False, 0.1, 1.0), Part(True, 0.1, 1.0)])
def test_parts_turn_the_score_of_a_gaussian_into_its_mean(part):
    m, v = 0.7, 0.4
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for t in (0.1, 0.5, 1.0):
        sigma = torch.tensor(part.sigma(t), dtype=torch.float64)
        exact = (m * sigma**2 + x * v) / (v + sigma**2)
        if part.preserving:
            # alpha = 1 / sqrt(1 + sigma^2); the network gives minus its std times the score at alpha x
            alpha, std = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
            u = part.input(x, sigma)
            net = -std * (alpha * m - u) / (alpha**2 * v + std**2)
        else:
            net = (m - part.input(x, sigma)) / (v + sigma**2)
        torch.testing.assert_close(part.denoised(x, net, sigma), exact, rtol=1e-6, atol=1e-6)


class Enumerated(GdssPrior):
    """All graphs of three nodes of two kinds with bonds 0 and 1, and a law of theirs: D by enumeration."""

    @property
    def states(self):
        rows = []
        for kinds in itertools.product(range(2), repeat=3):
            for bonds in itertools.product(range(2), repeat=3):
                x = torch.zeros(3, 5)
                x[torch.arange(3), list(kinds)] = 1
                x[0, 3], x[0, 4], x[1, 4] = bonds
                rows.append(x)
        return torch.stack(rows)

    @property
    def law(self):
        generator = torch.Generator().manual_seed(5)
        return torch.rand(64, generator=generator, dtype=torch.float64).pow(2)

    def denoise(self, x, sigma):
        gap = (x[:, None] - self.states).double() / torch.as_tensor(sigma).double()
        log_p = self.law.log() - 0.5 * gap.square().sum((2, 3))
        return torch.einsum("bs,snc->bnc", log_p.softmax(1), self.states.double()).float()

    def there(self, x):
        return torch.ones(x.shape[:2], dtype=torch.bool)


def enumerated():
    moments = Moments(3, (0.5, 0.5), 0.5, 0.25, {"3": 1.0})
    part = Part(False, 0.05, 4.0)
    return Enumerated(PriorCard("enumerated"), moments, (), False, None, None, None, part, part)


def test_steered_law_is_that_of_the_enumeration():
    """Total variation of 4000 particles: .042 +- .006 over 30 seeds; the bound is five of these away."""
    prior = enumerated()
    states = prior.states

    def reward(x):
        nodes, edges = unpack(x, 2)
        return 0.8 * edges.sum((1, 2)).double() / 2 - 0.5 * nodes[..., 0].sum(1).double()

    target = (prior.law.log() + reward(states)).softmax(0)
    options = GraphDiffusion(steps=60, corrector=False, noise="exact", temperature=1.0, below=1.0)
    model = GraphModel(options, prior, reward)
    run = feynman_kac.run(model, feynman_kac.Settings(4000), keyed_stream(3, 1))
    weights = torch.softmax(run.log_weights, 0)
    nearest = torch.cdist(model.state(run.particles).flatten(1), states.flatten(1)).argmin(1)
    found = torch.zeros(64, dtype=torch.float64).index_add_(0, nearest, weights)
    assert 0.5 * (found - target).abs().sum() < 0.075
    untilted = (prior.law / prior.law.sum() - target).abs().sum() / 2
    assert untilted > 0.3


def test_corrector_does_not_couple_the_samples():
    """A particle's move depends on itself and on its noise alone."""
    prior = enumerated()
    model = GraphModel(GraphDiffusion(), prior)
    x, noise = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    there = support(torch.full((4,), 3), 3, 2)
    score = prior.denoise(x * there, prior.level(0.5)) - x
    both = model.corrected(x, score, there, noise)
    alone = model.corrected(x[:1], score[:1], there[:1], noise[:1])
    torch.testing.assert_close(both[:1], alone)


def published(name):
    return load_gdss({"path": shared(CHECKPOINTS[name])})


@pytest.mark.parametrize(
    ("sigma", "least", "error"), [(0.1, 0.995, 0.001), (0.2, 0.98, 0.01), (0.5, 0.8, 0.13), (1.0, 0.6, 0.3)]
)
def test_denoising_of_molecules(sigma, least, error):
    """Atoms right and squared error of the edges, at levels where the noise is sigma^2."""
    prior = published("QM9")
    vocabulary = prior.vocabulary_of_atoms
    rows = itertools.islice(lines_of(shared("molecules/qm9.csv.gz")), 0, 60000, 300)
    x = torch.stack([of_graph(vocabulary.graph(read_smiles(text)), 9, 4) for _, text in rows])
    there = nodes_of(x, 4)
    free = support(there.sum(1), 9, 4)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    denoised = prior.denoise(x + sigma * noise * free, sigma)
    assert bool((denoised[free == 0] == 0).all())
    right = denoised[..., :4].argmax(-1) == x[..., :4].argmax(-1)
    assert float(right[there].float().mean()) > least
    edges = free[..., 4:] > 0
    assert float((denoised - x)[..., 4:][edges].square().mean()) < error


@pytest.mark.parametrize("name", ["QM9", "ZINC250k", "community_small"])
def test_published_networks_do_not_see_the_order_of_nodes(name):
    prior = published(name)
    count = min(prior.most, 12)
    level = prior.level(0.6)
    free = support(torch.full((2,), count), prior.most, prior.features)
    x = torch.randn(free.shape, generator=torch.Generator().manual_seed(1)) * free
    order = torch.cat(
        [torch.randperm(count, generator=torch.Generator().manual_seed(2)), torch.arange(count, prior.most)]
    )
    moved = prior.denoise(permute(x, order, prior.features), level)
    expected = permute(prior.denoise(x, level), order, prior.features)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)


def test_levels_of_their_own_are_not_one_number():
    prior = published("ZINC250k")
    with pytest.raises(InputError, match="levels of its own"):
        prior.denoise(torch.zeros(1, *prior.event_shape), 0.5)
    assert prior.level(1.0)[0, 0, 0] == pytest.approx(0.857, abs=1e-3)
    assert prior.level(1.0)[0, 0, -1] == pytest.approx(1.0)


def test_every_published_set_runs_through_the_domains(tmp_path):
    """Levels of their own for nodes and edges are for graph_diffusion alone, and refused before any work."""
    asked = ["operator=property", "operator.name=logp", "operator.target=2", "prior=gdss", "samples=4"]
    asked += [f"prior.path={shared(CHECKPOINTS['ZINC250k'])}", "sampler.particles=8", "sampler.keep=4"]
    found = solve(*asked, "sampler.steps=12", "domain.heavy_atoms=12", out=str(tmp_path / "run"))
    assert found["metrics"]["question"]["table"]["posterior samples"]["draws"] == 4
    assert not any("composition" in text for text in found["metrics"]["question"]["warnings"])
    with pytest.raises(InputError, match="levels of its own"):
        plan(compose([*asked[:-2], "domain.heavy_atoms=12", "sampler=steering"]))


def test_known_pairs_are_put_into_every_graph(tmp_path):
    path = shared(CHECKPOINTS["community_small"])
    asked = ["domain=graph", "prior=gdss", f"prior.path={path}", "samples=16", "sampler.particles=16"]
    found = solve(*asked, "sampler.keep=16", out=str(tmp_path / "run"))
    result = found["metrics"]["example"]
    assert max(result["chi2_per_sample"]) == 0
    assert result["table"]["posterior samples"]["AUC"] > result["table"]["prior alone"]["AUC"]


def test_published_qm9_samples_are_molecules():
    """200 graphs at 50 calls: .89 valid and connected; fewer than .75 by chance in less than 1e-6 of runs."""
    prior = published("QM9")
    model = GraphModel(GraphDiffusion(), prior)
    run = feynman_kac.run(model, feynman_kac.Settings(200, threshold=0.0), keyed_stream(0, 1))
    graphs = graphs_of(model.state(run.particles), 4)
    decoded = [decode(graph, prior.vocabulary_of_atoms) for graph in graphs]
    assert np.mean([one.valid_connected for one in decoded]) > 0.75


def test_a_checkpoint_through_the_domain():
    path = shared(CHECKPOINTS["QM9"])
    config = compose(["operator=formula", "prior=gdss", f"prior.path={path}", "operator.formula=C7H9NO"])
    assert config["sampler"]["name"] == "graph_diffusion"
    problem = MoleculeDomain().problems(config)[0]
    assert problem.context.size == 9
    with pytest.raises(InputError, match="cannot hold a fragment"):
        MoleculeDomain().problems(compose(["operator=substructure", "prior=gdss", f"prior.path={path}"]))


def test_other_files_are_refused():
    with pytest.raises(InputError, match="no GDSS checkpoint"):
        load_gdss({"path": shared("checkpoints/gdss/ZINC250k/prop_parp1.pth")})


def test_settings_that_make_no_sampler_are_refused():
    for wrong in ({"noise": "some"}, {"steps": 1}, {"temperature": 0.0}):
        with pytest.raises(InputError, match="graph_diffusion"):
            GraphDiffusion(**wrong)


def test_a_file_with_code_or_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_gdss({"path": tmp_path / "none.pth"})
    torch.save({"model_config": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="holds code"):
        load_gdss({"path": tmp_path / "code.pth"})
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(InputError, match=r"damaged|holds code"):
        load_gdss({"path": tmp_path / "cut.pth"})


def small_edm(most):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = GraphDenoiser(["C", "N", "O"], most, width=16, edge_width=8, heads=2, layers=2).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    moments = Moments(most, (0.6, 0.2, 0.2), 0.4, 0.3, {str(most): 1.0})
    return GraphEdmPrior(PriorCard("edm"), moments, ("C", "N", "O"), False, None, network)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_our_denoiser_is_equivariant_and_keeps_padding(sigma):
    prior = small_edm(7)
    free = support(torch.tensor([5, 7]), 7, 3)
    x = (1 + sigma) * torch.randn(free.shape, generator=torch.Generator().manual_seed(1)) * free
    order = torch.tensor([3, 0, 4, 1, 2, 5, 6])
    found = prior.denoise(x[:1], sigma)
    torch.testing.assert_close(
        prior.denoise(permute(x[:1], order, 3), sigma), permute(found, order, 3), rtol=1e-4, atol=1e-4
    )
    assert bool((prior.denoise(x, sigma)[free == 0] == 0).all())
    torch.testing.assert_close(prior.denoise(x, sigma)[:1], found, rtol=1e-5, atol=1e-5)


def test_our_denoiser_does_nothing_where_there_is_no_noise():
    """c_skip -> 1 and c_out -> 0 as sigma -> 0; D is bounded as sigma grows."""
    prior = small_edm(5)
    x = support(torch.tensor([5]), 5, 3) * torch.rand(1, 5, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(prior.denoise(x, 1e-4), x, atol=2e-3, rtol=0)
    assert prior.level(0.0)[0, 0, 0] == pytest.approx(0.02)
    assert prior.level(1.0)[0, 0, 0] == pytest.approx(10.0)


def test_a_given_size_is_a_mask():
    """With a number of nodes the padding of a noisy state is not looked at."""
    prior = small_edm(6).given(size=4)
    x = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(3))
    free = support(torch.tensor([4, 4]), 6, 3)
    torch.testing.assert_close(prior.denoise(x, 1.0), prior.denoise(x * free, 1.0))
    assert bool((prior.denoise(x, 1.0)[free == 0] == 0).all())


def test_atoms_of_known_counts_are_assigned():
    """The nearest assignment, not the largest column: one carbon and two oxygens."""
    x = torch.zeros(3, 6)
    x[:, :3] = torch.tensor([[0.9, 0.0, 0.5], [0.8, 0.1, 0.3], [0.2, 0.0, 0.6]])
    graph = Graph(np.array([0, 0, 2]), np.zeros((3, 3), dtype=np.int64))
    assert counted_atoms(graph, x, (1, 0, 2)).atoms.tolist() == [2, 0, 2]
    assert counted_atoms(graph, x, (1, 1, 2)) is graph
