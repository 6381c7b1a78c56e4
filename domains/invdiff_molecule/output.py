"""What a run leaves: tables and structures to go on with, pictures to look at."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import AllChem, Draw

from invdiff import Figure, Posterior
from invdiff.imaging import page_of, save
from invdiff_molecule.chemistry import formula_of
from invdiff_molecule.item import Item, Merged
from invdiff_molecule.objective import front
from invdiff_molecule.properties import PROPERTIES

SHOWN = 24  # molecules in the picture
LISTED = ("logp", "tpsa", "qed", "sa", "mass")  # of every molecule, asked for or not


def _whole(path: Path, content: str | bytes) -> None:
    """A file, whole or not at all."""
    part = path.with_name("." + path.name)
    part.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(part, path)


def row_of(rank: int, item: Item, row: Merged, draws: int) -> dict[str, object]:
    """One line of `molecules.csv`."""
    one = row.decoded
    out: dict[str, object] = {
        "rank": rank,
        "smiles": one.smiles or "",
        "share": round(row.count / draws, 6),
        "draws": row.count,
        "answers": row.hit,
        "valid": one.valid,
        "valid_fragment": one.valid_fragment,
        "valid_connected": one.valid_connected,
        "formula": formula_of(one.molecule) if one.molecule is not None else "",
    }
    for number, term in enumerate(item.terms):
        out[term.name] = round(row.values[number], 4) if row.values else ""
    for name in LISTED:
        if name not in out:
            known = one.valid_connected
            out[name] = round(float(PROPERTIES[name].value(one.molecule)), 4) if known else ""
    out["first_draw"] = row.key
    out["problem"] = one.problem
    return out


def pareto(item: Item, merged: Sequence[Merged]) -> list[Merged]:
    """Connected molecules that no other draw beats in one term and equals or beats in all."""
    known = [row for row in merged if row.decoded.valid_connected and row.values]
    kept = front(item.terms, [row.values for row in known])
    return [row for row, best in zip(known, kept, strict=True) if best]


def write(item: Item, merged: Sequence[Merged], posterior: Posterior, folder: Path) -> None:
    """`molecules.csv`, `.smi`, `.sdf` (2-D coordinates, the table as tags) and `samples.npz`."""
    draws = len(posterior.samples)
    rows = [row_of(rank, item, row, draws) for rank, row in enumerate(merged, 1)]
    if len(item.terms) > 1:
        best = {row.key for row in pareto(item, merged)}
        for line, row in zip(rows, merged, strict=True):
            line["pareto"] = row.key in best
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _whole(folder / "molecules.csv", table.getvalue())
    known = [(row, one) for row, one in zip(rows, merged, strict=True) if one.decoded.molecule is not None]
    _whole(folder / "molecules.smi", "".join(f"{row['smiles']} {row['rank']}\n" for row, _ in known))
    text = io.StringIO()
    sdf = Chem.SDWriter(text)
    for row, one in known:
        molecule = Chem.Mol(one.decoded.molecule)
        AllChem.Compute2DCoords(molecule)
        molecule.SetProp("_Name", str(row["smiles"]))
        for name, value in row.items():
            if name != "problem":
                molecule.SetProp(name, str(value))
        sdf.write(molecule)
    sdf.close()
    _whole(folder / "molecules.sdf", text.getvalue())
    part = folder / ".samples.npz"
    np.savez_compressed(part, states=posterior.samples.numpy())
    os.replace(part, folder / "samples.npz")


def figures(
    name: str, item: Item, merged: Sequence[Merged], alone: torch.Tensor | None, folder: Path
) -> list[Figure]:
    """The molecules; the properties of the draws against those of the prior."""
    found = []
    shown = [row for row in merged if row.decoded.molecule is not None][:SHOWN]
    if shown:
        legends = [_legend(item, row) for row in shown]
        marked = [row.decoded.molecule.GetSubstructMatch(item.core) if item.core else () for row in shown]
        page = Draw.MolsToGridImage(
            [row.decoded.molecule for row in shown],
            molsPerRow=6,
            subImgSize=(220, 190),
            legends=legends,
            highlightAtomLists=marked,
            returnPNG=True,
        )
        path = folder / f"{name}_molecules.png"
        _whole(path, page if isinstance(page, bytes) else page.data)
        caption = f"The question: {item.words}. Answers first, then by how often they were drawn."
        found.append(Figure("Molecules", path, caption))
    if len(item.terms) > 1:
        found.append(_front(name, item, merged, alone, folder))
    found.append(_histograms(name, item, merged, alone, folder))
    return found


def _front(
    name: str, item: Item, merged: Sequence[Merged], alone: torch.Tensor | None, folder: Path
) -> Figure:
    """The first two terms of every draw, and the Pareto set of all terms."""
    first, second = item.terms[:2]
    page = page_of(5.2, 4.2)
    axes = page.subplots()
    if alone is not None:
        known = [one.molecule for one in item.decoded(alone) if one.valid_connected]
        values = [[float(term.measured.value(one)) for one in known] for term in (first, second)]
        axes.scatter(*values, s=14, color="#afb8c1", label="prior")
    drawn = [row for row in merged if row.decoded.valid_connected]
    best = sorted(pareto(item, merged), key=lambda row: row.values[0])
    axes.scatter(
        *zip(*(row.values[:2] for row in drawn), strict=True) if drawn else ((), ()), s=18, label="given y"
    )
    line = {"marker": "o", "markersize": 7, "markerfacecolor": "none"}
    linked = len(item.terms) == 2 and all(term.direction != "target" for term in item.terms)
    axes.plot(
        [row.values[0] for row in best],
        [row.values[1] for row in best],
        linestyle="-" if linked else "none",
        color="#cf222e",
        label="no draw is better in all terms",
        **line,
    )
    for term, mark in ((first, axes.axvline), (second, axes.axhline)):
        if term.direction == "target" or term.tolerance == 0:
            mark(term.target, color="0.5", linewidth=0.8, linestyle="--")
    axes.set_xlabel(f"{first.name} ({first.direction})")
    axes.set_ylabel(f"{second.name} ({second.direction})")
    axes.legend(fontsize=8, frameon=False)
    path = save(page, folder / f"{name}_front.png")
    smiles = ", ".join(str(row.decoded.smiles) for row in best[:6])
    return Figure(
        "Objectives", path, f"The first two terms of every draw. Not beaten in all terms: {smiles}."
    )


def _legend(item: Item, row: Merged) -> str:
    values = zip(item.terms, row.values, strict=False)
    words = [f"x{row.count}"] * (row.count > 1) + ["(no answer)"] * (not row.hit)
    return " ".join(
        [*words, *(f"{term.name} {value:.3g}" for term, value in values if term.name != "substructure")]
    )


def _histograms(
    name: str, item: Item, merged: Sequence[Merged], alone: torch.Tensor | None, folder: Path
) -> Figure:
    """What was asked for first, then logP, TPSA, QED."""
    measured = {term.name: term.measured for term in item.terms}
    for extra in ("logp", "tpsa", "qed"):
        if len(measured) < 3:
            measured.setdefault(extra, PROPERTIES[extra])
    page = page_of(4.2 * len(measured), 2.9)
    panels = np.atleast_1d(page.subplots(1, len(measured)))
    decoded = [] if alone is None else item.decoded(alone)
    for axes, (title, one) in zip(panels, measured.items(), strict=True):
        before = [float(one.value(d.molecule)) for d in decoded if d.valid_connected]
        after = [
            float(one.value(row.decoded.molecule))
            for row in merged
            if row.decoded.valid_connected
            for _ in range(row.count)
        ]
        both = [*before, *after] or [0.0]
        edges = np.linspace(min(both), max(both) + 1e-9, 25)
        if before:
            axes.hist(before, edges, density=True, color="#afb8c1", label="prior")
        if after:
            axes.hist(
                after, edges, density=True, histtype="step", color="#0969da", linewidth=1.6, label="given y"
            )
        axes.set_xlabel(one.words, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.set_yticks([])
    panels[0].legend(fontsize=8, frameon=False)
    path = save(page, folder / f"{name}_properties.png")
    return Figure("Properties", path, "Connected molecules of the draws, and of the prior without the data.")
