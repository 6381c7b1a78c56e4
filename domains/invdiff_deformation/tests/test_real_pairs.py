"""Registration of real pairs by the mode; skipped where the data are not beside the checkout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from invdiff_deformation.baselines import demons, has_simpleitk
from invdiff_deformation.grid import Grid
from invdiff_deformation.item import registered
from invdiff_deformation.judge import row_of

DATA = Path(__file__).resolve().parents[4] / "shared/data/deformation"


def arrays_of(name: str) -> dict[str, np.ndarray]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs shared/data/deformation/{name}, which is not beside this checkout")
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def test_hearts_are_registered() -> None:
    """Every 22nd test pair (one is of an apex, .67): mean Dice of the ventricle as measured, no folding."""
    data = arrays_of("sunnybrook_ed_es_2d.npz")
    rows = []
    for k in np.flatnonzero(data["split"] == "test")[::22]:
        labels = ((data["es_lv"][k] > 0).astype(np.int64), (data["ed_lv"][k] > 0).astype(np.int64))
        item, _, mode = registered(data["es"][k], data["ed"][k], Grid((128, 128), np.eye(4)), labels)
        assert mode is not None
        rows.append(row_of(item, item.transform.displacement(mode[None])[0]))
    assert np.mean([row["dice"] for row in rows]) >= 0.85
    assert max(row["folded_strict_%"] for row in rows) == 0


@pytest.mark.skipif(not has_simpleitk(), reason="SimpleITK is not installed")
def test_brains_of_two_people_are_registered_better_than_by_demons() -> None:
    """Three pairs of slices, 30 labels: Dice of the mode above demons' by .02, fewer than .1 % folded."""
    data = arrays_of("brain2d_pairs.npz")
    gains, folded = [], []
    for k in (2, 9, 16):
        segments = [data[f"{side}_seg"][k] for side in ("fixed", "moving")]
        labels = [np.where(np.isin(one, data["labels"]), one, 0).astype(np.int64) for one in segments]
        item, _, mode = registered(
            data["fixed"][k],
            data["moving"][k],
            Grid(data["fixed"].shape[1:], np.eye(4)),
            (labels[0], labels[1]),
            ["operator=register_subjects"],
        )
        assert mode is not None
        row = row_of(item, item.transform.displacement(mode[None])[0])
        gains.append(row["dice"] - row_of(item, demons(*item.scaled))["dice"])
        folded.append(row["folded_strict_%"])
    assert np.mean(gains) > 0.02 and max(folded) < 0.1, (gains, folded)
