"""`graph`: generic graphs of which some pairs, the degrees or the number of edges are known.

Input is an `.npz` of adjacencies or a list of edges (retrospective: pairs are hidden by chance, so
labelled), or nothing for the bundled example. With a masked prior the known pairs stand in the graph from
the start, which is exact; priors of real numbers see them through the linear forward model.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invdiff import (
    MASK,
    Config,
    Estimates,
    Figure,
    GaussianNoise,
    InputError,
    Measurement,
    Posterior,
    Prior,
    Problem,
    Summary,
    Tick,
    keyed_stream,
    load_plugin,
)
from invdiff.imaging import page_of, save
from invdiff_molecule.chemistry import Graph
from invdiff_molecule.graph_data import communities, community_set, distance, read_graphs
from invdiff_molecule.graph_operators import Degrees, EdgeCount, KnownPairs
from invdiff_molecule.masked import MaskedGraphPrior
from invdiff_molecule.priors import GraphPrior, draws_alone, of_graphs, under_levels
from invdiff_molecule.state import graphs_of

EXAMPLE = 977  # seed of the bundled example, a graph that no prior has seen
CONVENTION = (
    "AUC and Brier score of the hidden pairs by the share of draws that have the edge; degree, cluster and "
    "spectral: MMD^2 (kernel exp(-W1^2 / 2 s^2), biased) of the draws to the reference graphs, of as many "
    "nodes where that number is known; the posterior of one graph is not expected to be near them"
)


@dataclass(frozen=True)
class GraphItem:
    """One question about a graph.

    Attributes:
        prior: given what is known.
        alone: given the number of nodes alone.
        truth: the whole graph; None where only a number of edges is asked for.
        known: pairs that were seen, upper triangle.
        draws, seed: of the prior alone.
        references: graphs to compare with.
        degrees: of every node, where they are asked for.
    """

    prior: GraphPrior
    alone: GraphPrior
    truth: Graph | None
    known: Bool[Tensor, "N N"] | None
    draws: int
    seed: int
    references: Sequence[Graph]
    degrees: tuple[int, ...] | None = None

    @property
    def features(self) -> int:
        """F."""
        return self.prior.event_shape[1] - self.prior.event_shape[0]

    def graphs(self, x: Float[Tensor, "batch N C"]) -> list[Graph]:
        """Nearest graphs with edges 0 and 1."""
        return [Graph(one.atoms, one.bonds.clip(0, 1)) for one in graphs_of(x, self.features)]


class GraphDomain:
    """The `graph` domain."""

    name = "graph"
    baseline_names = ("prior",)

    def problems(self, config: Config) -> list[Problem]:
        prior = of_graphs(load_plugin("priors", str(config["prior"]["name"]))(config["prior"]))
        settings = config["operator"]
        if settings["kind"] == "edges":
            return [self._count(prior, config)]
        if settings["kind"] not in ("masked_edges", "degrees"):
            raise InputError(f"the graph domain has no operator {settings['kind']!r}")
        path = config["input"].get("path")
        if settings["kind"] == "degrees":
            if path is None:
                return [self._degrees("question", settings["degrees"], prior, config)]
            return [
                self._degrees(name, graph.bonds.sum(1).tolist(), prior, config)
                for name, graph in read_graphs(Path(str(path)))
            ]
        share = float(settings["share"])
        if not 0 < share < 1:
            raise InputError(f"operator.share is {share}; it must lie between 0 and 1")
        items = read_graphs(Path(str(path))) if path else [("example", communities(1, EXAMPLE)[0])]
        return [
            self._hidden(name, graph, prior, config, number) for number, (name, graph) in enumerate(items)
        ]

    @staticmethod
    def _hidden(name: str, graph: Graph, prior: GraphPrior, config: Config, number: int) -> Problem:
        most, features = prior.event_shape[0], prior.event_shape[1] - prior.event_shape[0]
        if not 2 <= graph.size <= most:
            raise InputError(f"{name} has {graph.size} nodes; this prior knows graphs of up to {most}")
        generator = keyed_stream(int(config["seed"]), 31, number)
        seen = torch.rand(most, most, generator=generator) < float(config["operator"]["share"])
        inside = torch.arange(most) < graph.size
        known = torch.triu(seen, 1) & inside[:, None] & inside
        if not bool(known.any()):
            raise InputError(f"{name}: no pair is known at operator.share={config['operator']['share']}")
        bonds = torch.zeros(most, most)
        bonds[: graph.size, : graph.size] = torch.from_numpy(graph.bonds).float()
        operator = KnownPairs(known, features)
        y = bonds[known]
        measurement = Measurement(operator, GaussianNoise(float(config["operator"]["sigma"])), y)
        under_levels(prior, config, graph.size)
        alone = prior.given(size=graph.size)
        given: GraphPrior = alone
        if isinstance(prior, MaskedGraphPrior):
            layout = prior.layout
            tokens = layout.tokens(graph)
            rows, columns = layout.pairs
            hidden = torch.cat([torch.zeros(most, dtype=torch.bool), ~known[rows, columns]])
            given = prior.given_tokens(torch.where(hidden & (tokens != layout.absent), MASK, tokens))
        like = reference_graphs(config, graph.size)
        item = GraphItem(given, alone, graph, known, 64, int(config["seed"]), like)
        notes = {
            "question": f"{int(known.sum())} of {graph.size * (graph.size - 1) // 2} pairs are known",
            "simulated from": f"the whole graph, {int(graph.bonds.sum()) // 2} edges; pairs hidden by chance",
        }
        return Problem(name, measurement, prior.event_shape, item, notes)

    @staticmethod
    def _count(prior: GraphPrior, config: Config) -> Problem:
        most, features = prior.event_shape[0], prior.event_shape[1] - prior.event_shape[0]
        wanted, size = float(config["operator"]["edges"]), config["operator"]["nodes"]
        limit = most * (most - 1) // 2
        if not 0 < wanted <= limit:
            raise InputError(f"operator.edges is {wanted:g}; a graph of this prior has 1 to {limit}")
        under_levels(prior, config, size)
        given = prior.given(size=None if size is None else int(size))
        noise = GaussianNoise(float(config["operator"]["sigma"]))
        measurement = Measurement(EdgeCount(most, features), noise, torch.tensor([wanted]))
        like = reference_graphs(config, None if size is None else int(size))
        item = GraphItem(given, given, None, None, 64, int(config["seed"]), like)
        words = f"{wanted:g} edges (sigma {noise.sigma:g})"
        return Problem("question", measurement, prior.event_shape, item, {"question": words})

    @staticmethod
    def _degrees(name: str, given: Any, prior: GraphPrior, config: Config) -> Problem:
        most, features = prior.event_shape[0], prior.event_shape[1] - prior.event_shape[0]
        if not isinstance(given, Sequence) or not all(isinstance(one, int) for one in given):
            raise InputError(
                f"operator.degrees is {given!r}; give the degree of every node, such as [2, 2, 1, 1]"
            )
        operator = Degrees(len(given), most, features)
        y = operator.data(torch.tensor(list(given), dtype=torch.long))
        under_levels(prior, config, len(given))
        sized = prior.given(size=len(given))
        noise = GaussianNoise(float(config["operator"]["sigma"]))
        like = reference_graphs(config, len(given))
        item = GraphItem(sized, sized, None, None, 64, int(config["seed"]), like, tuple(given))
        words = f"degrees {', '.join(str(one) for one in given)}"
        return Problem(name, Measurement(operator, noise, y), prior.event_shape, item, {"question": words})

    def adapt_prior(self, prior: Prior, problem: Problem) -> Prior:
        """The prior given what is known of the graph itself."""
        item: GraphItem = problem.context
        return item.prior

    def baselines(self, problem: Problem, tick: Tick) -> Estimates:
        """Draws of the prior that know the number of nodes alone."""
        item: GraphItem = problem.context
        drawn = draws_alone(item.alone, item.draws, keyed_stream(item.seed, 77))
        tick()
        return {"prior": drawn}

    def summarise(self, problem: Problem, posterior: Posterior, baselines: Estimates) -> Summary:
        item: GraphItem = problem.context
        references = item.references
        table, warnings = {}, []
        for name, x in {
            "prior alone": baselines.get("prior"),
            "posterior samples": posterior.samples,
        }.items():
            if x is None:
                continue
            graphs = item.graphs(x)
            row = completion(item, graphs)
            row["edges"] = float(np.mean([one.bonds.sum() / 2 for one in graphs]))
            if item.degrees is not None:
                met = [one.bonds.sum(1).tolist() == list(item.degrees) for one in graphs]
                row["degrees met"] = float(np.mean(met))
            far = distance(graphs, references)
            table[name] = {**row, **far, "draws": float(len(graphs))}
        half = distance(references[::2], references[1::2])
        facts: dict[str, Any] = {
            f"{name} between halves of the reference": round(value, 4) for name, value in half.items()
        }
        if item.truth is not None and item.known is not None:
            facts["edges of the whole graph"] = int(item.truth.bonds.sum()) // 2
            facts |= calibration(item, item.graphs(posterior.samples))
        if len(posterior.samples) < 16:
            warnings.append("Fewer than 16 draws: probabilities of pairs are coarse; set samples=64.")
        return Summary(table, facts, CONVENTION, tuple(warnings))

    def write(self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path) -> None:
        """`graphs.npz` (adj, n of every draw) and `pairs.csv` (probability of every edge)."""
        item: GraphItem = problem.context
        graphs = item.graphs(posterior.samples)
        most = item.prior.event_shape[0]
        stack = np.zeros((len(graphs), most, most), dtype=np.uint8)
        for number, one in enumerate(graphs):
            stack[number, : one.size, : one.size] = one.bonds
        part = folder / ".graphs.npz"
        np.savez_compressed(part, adj=stack, n=np.array([one.size for one in graphs]))
        os.replace(part, folder / "graphs.npz")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["u", "v", "probability", "known", "truth"])
        share = stack.mean(0)
        size = max(one.size for one in graphs)
        for u in range(size):
            for v in range(u + 1, size):
                known = "" if item.known is None else int(item.known[u, v])
                truth = "" if item.truth is None else int(item.truth.bonds[u, v])
                writer.writerow([u, v, round(float(share[u, v]), 4), known, truth])
        part = folder / ".pairs.csv"
        part.write_text(text.getvalue())
        os.replace(part, folder / "pairs.csv")

    def figures(
        self, problem: Problem, posterior: Posterior, baselines: Estimates, folder: Path
    ) -> list[Figure]:
        item: GraphItem = problem.context
        graphs = item.graphs(posterior.samples)
        found = [_drawings(problem.id, graphs, item, folder)]
        if item.truth is not None and item.known is not None:
            found.insert(0, _matrices(problem.id, graphs, item, folder))
        return found

    def training_data(self, settings: Any) -> Any:
        """Generated communities; see `community_set`."""
        return community_set(settings)


def reference_graphs(config: Config, size: int | None) -> list[Graph]:
    """Up to 200 graphs of `domain.references`, else generated communities; of one size where any have it."""
    path = config["domain"]["references"]
    if path is not None:
        found = [graph for _, graph in read_graphs(Path(str(path)))]
    else:
        found = communities(1000 if size is not None else 200, EXAMPLE + 1)
    alike = [graph for graph in found if graph.size == size]
    return (alike if len(alike) > 1 else found)[:200]


def hidden_pairs(item: GraphItem, graphs: Sequence[Graph]) -> tuple[np.ndarray, np.ndarray]:
    """Share of the draws that have an edge, and whether it is there, of every pair that was not seen."""
    assert item.truth is not None and item.known is not None
    size = item.truth.size
    hidden = np.triu(~item.known[:size, :size].numpy(), 1)
    share = np.mean([one.bonds[:size, :size] for one in graphs], axis=0)
    return share[hidden], item.truth.bonds[hidden]


def completion(item: GraphItem, graphs: Sequence[Graph]) -> dict[str, float]:
    """AUC and Brier score of the hidden pairs; NaN where none are hidden, or all are alike."""
    if item.truth is None:
        return {"AUC": float("nan"), "Brier": float("nan")}
    share, there = hidden_pairs(item, graphs)
    yes, no = share[there == 1], share[there == 0]
    gaps = yes[:, None] - no[None]
    auc = float(((gaps > 0) + 0.5 * (gaps == 0)).mean()) if gaps.size else float("nan")
    return {"AUC": auc, "Brier": float(((share - there) ** 2).mean()) if len(share) else float("nan")}


def calibration(item: GraphItem, graphs: Sequence[Graph]) -> dict[str, str]:
    """How often an edge is there among the hidden pairs of a probability."""
    share, there = hidden_pairs(item, graphs)
    out = {}
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        chosen = (share >= low) & (share < high if high < 1 else share <= high)
        if chosen.any():
            found, count, expected = int(there[chosen].sum()), int(chosen.sum()), share[chosen].sum()
            words = f"{found} of {count} are edges, {expected:.1f} expected"
            out[f"hidden pairs of probability {low:g} to {high:g}"] = words
    return out


def _matrices(name: str, graphs: Sequence[Graph], item: GraphItem, folder: Path) -> Figure:
    """Truth, what was seen, and the probability of every edge."""
    assert item.truth is not None and item.known is not None
    size = item.truth.size
    known = item.known[:size, :size].numpy()
    known = known | known.T
    share = np.mean([one.bonds[:size, :size] for one in graphs], axis=0)
    page = page_of(9.6, 3.2)
    panels = page.subplots(1, 3)
    seen = np.where(known, item.truth.bonds, np.nan)
    for axes, (title, block) in zip(
        panels,
        {"whole graph": item.truth.bonds, "known pairs": seen, "probability": share}.items(),
        strict=True,
    ):
        axes.set_facecolor("#d0d7de")
        shown = axes.imshow(block, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    page.colorbar(shown, ax=panels, shrink=0.8)
    path = save(page, folder / f"{name}_pairs.png")
    return Figure("Pairs", path, "Adjacency of the whole graph, of what was seen, and the share of draws.")


def _drawings(name: str, graphs: Sequence[Graph], item: GraphItem, folder: Path) -> Figure:
    """The graph and some draws, all in one layout."""
    import networkx

    def of(graph: Graph) -> Any:
        return networkx.from_numpy_array(graph.bonds)

    first = item.truth or graphs[0]
    shown = ([("whole graph", item.truth)] if item.truth is not None else []) + [
        (f"draw {number + 1}", one) for number, one in enumerate(graphs[:5])
    ]
    page = page_of(2.6 * len(shown), 2.7)
    for axes, (title, one) in zip(np.atleast_1d(page.subplots(1, len(shown))), shown, strict=True):
        places = networkx.spring_layout(of(first if item.truth is not None else one), seed=3)
        networkx.draw_networkx(of(one), places, ax=axes, with_labels=False, node_size=24, width=0.7)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    path = save(page, folder / f"{name}_graphs.png")
    return Figure("Graphs", path, "Draws beside the whole graph, nodes where they are in it.")
