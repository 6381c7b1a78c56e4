"""Priors of graphs: published checkpoints of molecules, generic graphs, degree sequences.

    python benchmarks/graph_priors.py gdss DATA [--count 500]      the published QM9 checkpoint, and steered
    python benchmarks/graph_priors.py gdss_zinc DATA [--count 64]  the published ZINC250k checkpoint
    python benchmarks/graph_priors.py graphs DATA [--count 100]    generic graphs: MMD of draws to real ones
    python benchmarks/graph_priors.py compose DATA [--count 4]     powers and products of priors, by weights
    python benchmarks/graph_priors.py degrees DATA [--count 4]     communities of given degrees

DATA is the folder of the shared data. Calls are network calls, one a particle and level. One thread.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import closing
from molecule import molecules, quality

from invdiff import FirstHitting, GaussianNoise, Measurement, keyed_stream
from invdiff.config import compose
from invdiff.prior.counted import counted
from invdiff.run.solve import make_prior
from invdiff.sampler import feynman_kac
from invdiff_molecule.chemistry import Graph, decode
from invdiff_molecule.diffusion import GraphDiffusion, GraphModel
from invdiff_molecule.gdss import load_gdss
from invdiff_molecule.graph_data import communities, connected, distance, read_graphs
from invdiff_molecule.graph_operators import Degrees
from invdiff_molecule.metrics import diversity
from invdiff_molecule.objective import Values, term_of
from invdiff_molecule.priors import draws_alone
from invdiff_molecule.state import graphs_of


def published(data: Path, count: int, overrides: list[str], folder: str = "QM9/gdss_qm9.pth") -> None:
    """A checkpoint of GDSS: settings of the sampler, then steered to valid and connected."""
    known = molecules(data, "qm9" if folder.startswith("QM9") else "zinc250k")
    bare = load_gdss({"path": data / "checkpoints/gdss" / folder})
    vocabulary = bare.vocabulary_of_atoms
    aimed = Values([term_of({"name": "connected", "target": 1.0})], vocabulary, bare.most)

    def whole(x):
        return torch.where(aimed(x)[:, 0].isnan(), -6.0, 0.0).double()

    variants = {
        "start N(0, 1), two calls a level": {"start": "published", "reuse": False, "noise": "exact"},
        "shipped: one call a level (S4)": {},
        "temperature .8, two calls a level": {"temperature": 0.8, "reuse": False, "noise": "exact"},
        "no corrector, temperature 1": {"corrector": False, "noise": "exact"},
        "shipped, steered to valid and connected": {"steered": True, "below": 0.2},
    }
    for title, options in variants.items():
        prior = counted(bare)
        steered = options.pop("steered", False)
        model = GraphModel(GraphDiffusion(**options), bare, whole if steered else None, prior)
        began = time.perf_counter()
        decoded = []
        for seed in range(-(-count // 32) if steered else 1):
            settings = feynman_kac.Settings(64 if steered else count, threshold=0.5 if steered else 0.0)
            generator = keyed_stream(seed, 5)
            done = feynman_kac.run(model, settings, generator)
            chosen = done.select(32 if steered else count, generator)
            states = model.state(feynman_kac.gather(done.particles, chosen))
            decoded += [decode(graph, vocabulary) for graph in graphs_of(states, len(vocabulary))]
        seconds = time.perf_counter() - began
        print(f"\n{title}: {prior.calls / len(decoded):.1f} calls, {seconds / len(decoded):.4f} s a molecule")
        quality(decoded[:count], known)


def published_zinc(data: Path, count: int, overrides: list[str]) -> None:
    """The ZINC250k checkpoint, v2."""
    published(data, count, overrides, "ZINC250k/gdss_zinc250k_v2.pth")


def generic(data: Path, count: int, overrides: list[str]) -> None:
    """The bundled prior against generated communities, the published one against its own hundred graphs."""
    real = [graph for _, graph in read_graphs(data / "checkpoints/gdss/community_small.npz")]
    own = make_prior(compose(["domain=graph", *overrides])["prior"])
    gdss = load_gdss({"path": data / "checkpoints/gdss/community_small/gdss_community_small.pth"})
    fresh = communities(count, 71)
    rows = {
        "community_masked": (draws_alone(own, count, keyed_stream(0, 9)), fresh),
        "other generated communities": (communities(count, 72), fresh),
        "GDSS, 50 calls": (draws_alone(gdss, count, keyed_stream(0, 9)), real),
        "half of community_small to the other": (real[::2], real[1::2]),
        "generated communities to community_small": (fresh, real),
    }
    for title, (found, references) in rows.items():
        if isinstance(found, torch.Tensor):
            features = found.shape[-1] - found.shape[-2]
            found = [Graph(one.atoms, one.bonds.clip(0, 1)) for one in graphs_of(found, features)]
        edges = np.mean([one.bonds.sum() / 2 for one in found])
        whole = np.mean([connected(one.bonds) for one in found])
        far = "  ".join(f"{name} {value:.3f}" for name, value in distance(found, references).items())
        print(f"{title:42s} {far}  edges {edges:.1f}  connected {whole:.2f}")


def composed(data: Path, count: int, overrides: list[str]) -> None:
    """Powers and products of priors by weights: annealed, of two properties, guided."""
    known = molecules(data)
    bare = make_prior(compose(["domain=molecule", "prior=qm9_masked"])["prior"])
    vocabulary = bare.vocabulary_of_atoms
    for power in (1.0, 1.5, 2.0):
        decoded, said = [], []
        for seed in range(count):
            found, words = filtered(bare.composed(((bare, power),)), seed)
            decoded += found
            said.append(words)
        print(f"\nqm9_masked^{power:g}: {'; '.join(said)}; diversity {diversity(decoded):.3f}")
        quality(decoded, known)
    prior = make_prior(compose(["domain=molecule", "prior=qm9_conditional"])["prior"])
    first, second = {"logp": 1.5}, {"qed": 0.58}
    terms = [term_of({"name": name, "target": value}) for name, value in (first | second).items()]

    def given(values):
        return replace(prior, wanted=prior.wishes(values))

    rows = {
        "nothing": ((prior, 1.0),),
        "logP": ((given(first), 1.0),),
        "logP, guided by 2": ((given(first), 2.0), (prior, -1.0)),
        "QED": ((given(second), 1.0),),
        "both, told at once": ((given(first | second), 1.0),),
        "both, product": ((given(first), 1.0), (given(second), 1.0), (prior, -1.0)),
        "both, product without weights": ((given(first), 1.0), (given(second), 1.0), (prior, -1.0)),
    }
    values = Values(terms, vocabulary, prior.layout.most)
    for title, parts in rows.items():
        decoded, said = [], []
        for seed in range(count):
            found, words = filtered(prior.composed(parts), seed, weighted=not title.endswith("weights"))
            decoded += found
            said.append(words)
        table = [values.of_molecule(one.molecule, one.smiles) for one in decoded if one.valid_connected]
        near = [[term.hit(v) for term, v in zip(terms, row, strict=True)] for row in table]
        shares = [sum(row[k] for row in near) / len(decoded) for k in (0, 1)]
        both = sum(all(row) for row in near) / len(decoded)
        different = len({one.smiles for one in decoded})
        print(
            f"{title:30s} logP {shares[0]:.3f}  QED {shares[1]:.3f}  both {both:.3f}  connected "
            f"{len(table) / len(decoded):.3f}  distinct {different} of {len(decoded)}  {said[0]}",
            flush=True,
        )


def filtered(prior, seed: int, weighted: bool = True):
    """64 draws of a filter of 256, and its ESS and founders in words."""
    model = FirstHitting(prior, lambda tokens: torch.zeros(len(tokens)), completions=0)
    generator = keyed_stream(seed, 5)
    if weighted:
        done = feynman_kac.run(model, feynman_kac.Settings(256), generator)
        particles = done.drawn(64, generator)
        words = f"ESS {min(done.statistics.ess):.2f}, founders {done.statistics.founders:.2f}"
    else:
        particles, _ = model.start(64, generator)
        for k in range(model.steps):
            particles, _ = model.move(k, particles, generator)
        words = "no weights"
    vocabulary = prior.vocabulary_of_atoms
    return [decode(one, vocabulary) for one in graphs_of(model.state(particles), len(vocabulary))], words


def degrees(data: Path, count: int, overrides: list[str]) -> None:
    """Degree sequences of generated communities that no prior has seen: how even a filter's weights are."""
    bare = make_prior(compose(["domain=graph", *overrides])["prior"])
    for seed, graph in enumerate(communities(count, 977)):
        wanted = torch.from_numpy(graph.bonds.sum(1))
        operator = Degrees(graph.size, bare.layout.most, bare.layout.kinds)
        measurement = Measurement(operator, GaussianNoise(0.05), operator.data(wanted))
        prior = counted(bare.given(size=graph.size))
        proposal = operator.proposal(prior, measurement)
        model = FirstHitting(prior, lambda tokens: torch.zeros(len(tokens)), completions=0, proposal=proposal)
        began = time.process_time()
        out = feynman_kac.run(model, feynman_kac.Settings(256), keyed_stream(seed, 3))
        found = graphs_of(model.state(out.particles), bare.layout.kinds)
        met = np.mean([(one.bonds.sum(1) == graph.bonds.sum(1)).all() for one in found])
        print(
            f"{graph.size} nodes, {int(graph.bonds.sum()) // 2} edges: degrees met {met:.3f}  ESS / N "
            f"{float(out.statistics.ess[-1]):.3f}  calls a particle {prior.calls / 256:.0f}  "
            f"CPU s {time.process_time() - began:.0f}",
            flush=True,
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    tables = {
        "gdss": (published, 500),
        "gdss_zinc": (published_zinc, 64),
        "graphs": (generic, 100),
        "compose": (composed, 4),
        "degrees": (degrees, 4),
    }
    parser.add_argument("what", choices=tuple(tables))
    parser.add_argument("data", type=Path)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    table, count = tables[given.what]
    table(given.data, given.count or count, given.overrides)
    closing(f"graph_priors.py {given.what} DATA", given.overrides, 1)


if __name__ == "__main__":
    main()
