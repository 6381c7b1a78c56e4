"""Everything that is written of a solved item: fields, maps, labels, points, velocities."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from invdiff_deformation import output
from invdiff_deformation.jacobian import folded_strict, jacobian
from invdiff_deformation.judge import Drawn, warped_labels


def write_results(drawn: Drawn, folder: Path) -> None:
    """All files of an item, each whole or not at all."""
    item, u, field = drawn.item, drawn.u, drawn.representative
    grid, frame, mean = item.grid, item.output_frame, drawn.posterior.mean[None]
    output.write_displacement(folder / "displacement.nii.gz", field, grid, frame)
    output.write_displacement(folder / "displacement_mean.nii.gz", u.mean(dim=0), grid, frame)
    about = {
        "displacement": "exp of the posterior mean velocity: a diffeomorphism",
        "displacement_mean": "mean of the samples' displacements: for display, it need not be one",
        "kind": "displacement, pull-back, fixed to moving",
        "frame": frame,
        "units": "mm" if grid.known else "voxels, the file has no affine",
    }
    if not item.transform.linear:
        inverse = item.transform.inverse(mean)[0]
        output.write_displacement(folder / "displacement_inverse.nii.gz", inverse, grid, frame)
        about["displacement_inverse"] = "inverse of `displacement`, on the fixed grid"
    output.write_text(folder / "displacement.json", json.dumps(about, indent=1))
    (folder / "samples").mkdir(exist_ok=True)
    for number, one in enumerate(u):
        output.write_displacement(folder / "samples" / f"displacement_{number:02d}.nii.gz", one, grid, frame)
    output.write_volume(folder / "std_mm.nii.gz", drawn.std.astype(np.float32), grid)
    maps = torch.stack([jacobian(field[None])[0], folded_strict(field[None])[0].float()], dim=-1)
    output.write_volume(folder / "jacobian.nii.gz", maps.numpy(), grid)
    if item.moving is not None:
        low, high = item.fixed.range
        mean_image = torch.cat([item.shown.warped(one[None]) for one in u]).mean(dim=0)
        for name, image in (("warped", item.shown.warped(field[None])[0]), ("warped_mean", mean_image)):
            values = low + (high - low) * image.numpy()
            output.write_volume(folder / f"{name}.nii.gz", values.astype(np.float32), grid)
    if item.labels is not None:
        output.write_volume(folder / "labels.nii.gz", warped_labels(item, field), grid)
        names = [int(one) for one in np.unique(drawn.labels) if one > 0]
        chances = np.stack([(drawn.labels == one).mean(axis=0) for one in names], axis=-1)
        output.write_volume(folder / "label_probability.nii.gz", chances.astype(np.float32), grid)
        output.write_text(folder / "label_probability.json", json.dumps({"labels": names}))
    if item.judged is not None:
        output.write_table(folder / "points.csv", _points(drawn))
    velocity = item.transform.coordinates.velocity(mean)[0]
    squarings = item.transform.coordinates.squarings
    output.write_velocity(folder / "velocity.safetensors", drawn.states, velocity, squarings)


def _points(drawn: Drawn) -> list[dict[str, object]]:
    """What was seen and what the draws say, a row a point."""
    item = drawn.item
    assert item.judged is not None
    seen, found = item.judged.vectors @ item.frame(), item.predicted(drawn.u, item.judged)
    mean = found.mean(axis=0)
    std = found.std(axis=0, ddof=1) if len(found) > 1 else np.zeros_like(mean)
    rows: list[dict[str, object]] = []
    for number in range(len(seen)):
        row: dict[str, object] = {"point": number}
        for axis, name in enumerate("xyz"[: seen.shape[1]]):
            for what, values in (("seen", seen), ("mean", mean), ("std", std)):
                row[f"{what}_{name}"] = f"{values[number, axis]:.4f}"
        rows.append(row)
    return rows
