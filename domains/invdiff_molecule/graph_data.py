"""Generic graphs: readers, a generator of communities, and how far two sets of graphs are from each other.

    MMD^2 = mean k(a, a') + mean k(b, b') - 2 mean k(a, b),     k = exp(-W1(a, b)^2 / 2 s^2)

with the biased V-statistic and W1 the earth mover's distance of two histograms of a graph: degrees (s = 1,
in degrees), local clustering coefficients in 100 bins (s = .1), eigenvalues of the normalised Laplacian in
200 bins on [0, 2] (s = .1, a bin counted as .01). Isolated nodes have no eigenvalue. As in You et al.,
arXiv 1802.08773, without orbit counts. Compare with the same distance between two halves of the real set:
it is not 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from invdiff import InputError
from invdiff_molecule.chemistry import Graph
from invdiff_molecule.layout import Layout
from invdiff_molecule.training import GraphSet

SPLITS = {"train": 8000, "validation": 500, "test": 500}
MOST = 20


def communities(count: int, seed: int) -> list[Graph]:
    """Two communities of six to ten nodes: edges with probability .7 within, one to each 20 nodes between."""
    rng = np.random.default_rng(seed)
    out: list[Graph] = []
    while len(out) < count:
        half = int(rng.integers(6, 11))
        size = 2 * half
        chance = np.zeros((size, size))
        chance[:half, :half] = chance[half:, half:] = 0.7
        bonds = np.triu(rng.random((size, size)) < chance, 1).astype(np.int64)
        for _ in range(max(1, round(0.05 * size))):
            bonds[rng.integers(half), half + rng.integers(half)] = 1
        graph = Graph(np.zeros(size, dtype=np.int64), bonds + bonds.T)
        if connected(graph.bonds):
            out.append(graph)
    return out


def connected(bonds: Int[np.ndarray, "n n"]) -> bool:
    """Whether a graph is in one piece."""
    from scipy.sparse.csgraph import connected_components

    return bool(connected_components(bonds > 0)[0] == 1)


def community_set(settings: Mapping[str, Any]) -> GraphSet:
    """Generated communities as training data; settings: `seed`, `nodes`, `alike`."""
    layout = Layout(int(settings.get("nodes", MOST)), 1)
    seed = int(settings.get("seed", 0))
    tokens = {
        name: torch.stack([layout.tokens(graph) for graph in communities(count, 3 * seed + place)])
        for place, (name, count) in enumerate(SPLITS.items())
    }
    return GraphSet(layout, tokens, float(settings.get("alike", 0.5)))


def read_graphs(path: Path) -> list[tuple[str, Graph]]:
    """Graphs of an .npz (`adj` [count, N, N] or [N, N], optionally `n`) or of a list of edges, `u v` a line.

    Raises:
        InputError: for a file that is neither, or an adjacency that is not binary, symmetric and without
            loops.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if path.suffix == ".npz":
        return [(f"{path.stem}{k + 1:04d}", one) for k, one in enumerate(_of_npz(path))]
    try:
        lines = [line.split("#")[0].replace(",", " ").split() for line in path.read_text().splitlines()]
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path.name} cannot be read as text ({error})") from None
    names: dict[str, int] = {}
    edges = []
    for number, words in enumerate(lines, 1):
        if not words:
            continue
        if len(words) != 2:
            raise InputError(f"{path.name}, row {number} has {len(words)} words; an edge is two node names")
        u, v = (names.setdefault(word, len(names)) for word in words)
        if u == v:
            raise InputError(f"{path.name}, row {number} joins {words[0]} to itself; drop self-loops")
        edges.append((u, v))
    if not edges:
        raise InputError(f"{path.name} holds no edges")
    bonds = np.zeros((len(names), len(names)), dtype=np.int64)
    for u, v in edges:
        bonds[u, v] = bonds[v, u] = 1
    return [(path.stem, Graph(np.zeros(len(names), dtype=np.int64), bonds))]


def _of_npz(path: Path) -> list[Graph]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if "adj" not in file:
                raise InputError(f"{path.name} has no array `adj`; found {', '.join(file)}")
            stack = np.asarray(file["adj"])
            stack = stack[None] if stack.ndim == 2 else stack
            sizes = np.asarray(file["n"]).ravel() if "n" in file else np.full(len(stack), stack.shape[-1])
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path.name} cannot be read as .npz ({error})") from None
    if stack.ndim != 3 or stack.shape[1] != stack.shape[2] or len(sizes) != len(stack):
        raise InputError(
            f"{path.name}: adj has shape {stack.shape}; expected [count, N, N] and `n` of its length"
        )
    found = []
    for number, (block, size) in enumerate(zip(stack, sizes, strict=True), 1):
        one = block[: int(size), : int(size)]
        if not np.isin(one, (0, 1)).all():
            raise InputError(f"{path.name}, graph {number} has entries other than 0 and 1")
        if not (one == one.T).all() or np.diag(one).any():
            raise InputError(f"{path.name}, graph {number} is not symmetric without self-loops")
        if not one.any():
            raise InputError(f"{path.name}, graph {number} has no edges")
        found.append(Graph(np.zeros(int(size), dtype=np.int64), one.astype(np.int64)))
    return found


def degrees(bonds: Int[np.ndarray, "n n"]) -> Float[np.ndarray, "bins"]:
    """Histogram of degrees, 0 to 63."""
    return np.bincount(bonds.sum(0).clip(max=63), minlength=64).astype(float)


def clustering(bonds: Int[np.ndarray, "n n"]) -> Float[np.ndarray, "bins"]:
    """Histogram of local clustering coefficients."""
    degree = bonds.sum(0)
    triangles = np.diag(bonds @ bonds @ bonds)
    values = np.where(degree > 1, triangles / np.maximum(degree * (degree - 1), 1), 0.0)
    return np.histogram(values, 100, (0.0, 1.0))[0].astype(float)


def spectrum(bonds: Int[np.ndarray, "n n"]) -> Float[np.ndarray, "bins"]:
    """Histogram of the eigenvalues of the normalised Laplacian."""
    kept = bonds[np.ix_(bonds.sum(0) > 0, bonds.sum(0) > 0)]
    if not len(kept):
        return np.eye(1, 200).ravel()
    degree = kept.sum(0)
    laplacian = np.eye(len(kept)) - kept / np.sqrt(np.outer(degree, degree))
    values = np.linalg.eigvalsh(laplacian).clip(0, 2)
    return np.histogram(values, 200, (-1e-5, 2.0))[0].astype(float)


FEATURES = {
    "degree": (degrees, 1.0, 1.0),
    "cluster": (clustering, 0.1, 0.01),
    "spectral": (spectrum, 0.1, 0.01),
}


def distance(a: Sequence[Graph], b: Sequence[Graph]) -> dict[str, float]:
    """MMD^2 of degrees, clustering and spectra; NaN for an empty set."""
    if not a or not b:
        return dict.fromkeys(FEATURES, float("nan"))
    out = {}
    for name, (histogram, scale, width) in FEATURES.items():
        first, second = (
            np.stack(
                [np.cumsum(h / h.sum()) for h in (histogram((one.bonds > 0).astype(int)) for one in these)]
            )
            for these in (a, b)
        )

        def kernel(x: Any, y: Any, scale: float = scale, width: float = width) -> float:
            gaps = np.abs(x[:, None] - y[None]).sum(-1) * width
            return float(np.exp(-(gaps**2) / (2 * scale**2)).mean())

        out[name] = kernel(first, first) + kernel(second, second) - 2 * kernel(first, second)
    return out
