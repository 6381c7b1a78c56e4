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


def write(item: Item, merged: Sequence[Merged], posterior: Posterior, folder: Path) -> None:
    """`molecules.csv`, `.smi`, `.sdf` (2-D coordinates, the table as tags) and `samples.npz`."""
    draws = len(posterior.samples)
    rows = [row_of(rank, item, row, draws) for rank, row in enumerate(merged, 1)]
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
    found.append(_histograms(name, item, merged, alone, folder))
    return found


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
