"""`invdiff sample --prior drdm --input IMAGE`: deformed copies of an image, or pairs of known deformation.

    copies    I_i = I o phi_i,                                  labels by the same phi_i
    pairs     moving = I o phi_a,   fixed = moving o phi_b,     phi_b is what a registration should find

Draws of a generator without density (see `drdm.py`): for training data, never for a posterior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff import InputError, PriorCard, Sigma
from invdiff.imaging import page_of, save
from invdiff_deformation import formats, output
from invdiff_deformation.drdm import CARDIAC, Drdm, load_drdm, warped_image, warped_labels
from invdiff_deformation.jacobian import folded_strict, jacobian

SHOWN = 8


@dataclass(frozen=True)
class Generator:
    """DRDM as a plug-in of priors; it generates and does not denoise.

    Attributes:
        drdm: network and process.
        level: T', how far deformations go before they are recovered.
        start: recovery from the level, or from the top.
        labels: label map of the image, deformed with it.
        pairs: write pairs instead of copies.
    """

    drdm: Drdm
    level: int = 48
    start: str = "level"
    labels: str | None = None
    pairs: bool = False

    @property
    def card(self) -> PriorCard:
        return self.drdm.card

    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        """Refused: there is no density."""
        raise InputError(
            f"prior {self.card.name!r} generates deformations and has no density; no posterior can be drawn "
            "with it: use prior=velocity, or `invdiff sample --prior drdm --input IMAGE`"
        )

    def generate(self, path: Path | None, samples: int, seed: int, out: Path) -> list[Path]:
        """Write draws for an image: images, labels and displacements as NIfTI, a table, a picture.

        Raises:
            InputError: for no image, one that the network is not for, or labels that do not fit it.
        """
        if path is None:
            raise InputError(f"prior {self.card.name!r} deforms an image; give --input FILE")
        image = formats.read_image(path)
        grid = image.grid
        self.drdm.require(grid.shape, self.level, self.start)
        labels = None
        if self.labels is not None:
            found, _ = formats.on_grid(formats.read_labels(Path(self.labels)), image)
            labels = torch.from_numpy(found)
        low, high = image.range
        still = torch.from_numpy(((image.values - low) / (high - low)).clip(0, 1).astype(np.float32))
        numbers = range(2 * samples) if self.pairs else range(samples)
        drawn = self.drdm.sample(still, self.level, seed, list(numbers), self.start)
        out.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, object]] = []
        shown = []
        for number in range(samples):
            phi = drawn.phi[number : number + 1]
            copy = warped_image(still[None, None], phi)
            row: dict[str, object] = {"number": number}
            if self.pairs:
                known = drawn.phi[samples + number][None]
                fixed = warped_image(copy, known)
                self._write(out / f"moving_{number:03d}.nii.gz", copy, image)
                self._write(out / f"fixed_{number:03d}.nii.gz", fixed, image)
                if labels is not None:
                    moved = warped_labels(labels, phi)[0]
                    output.write_volume(out / f"moving_labels_{number:03d}.nii.gz", moved.numpy(), grid)
                    again = warped_labels(moved, known)[0]
                    output.write_volume(out / f"fixed_labels_{number:03d}.nii.gz", again.numpy(), grid)
                phi, copy = known, fixed
            else:
                self._write(out / f"image_{number:03d}.nii.gz", copy, image)
                if labels is not None:
                    moved = warped_labels(labels, phi)[0]
                    output.write_volume(out / f"labels_{number:03d}.nii.gz", moved.numpy(), grid)
            output.write_displacement(out / f"displacement_{number:03d}.nii.gz", phi[0], grid)
            sides = phi.new_tensor(grid.shape).reshape(-1, *([1] * grid.dimensions))
            size = 100 * (phi[0] / sides).norm(dim=0)
            row |= {
                "mean_%_of_side": f"{float(size.mean()):.3f}",
                "max_%_of_side": f"{float(size.max()):.3f}",
                "folded_%": f"{100 * float((jacobian(phi) <= 0).double().mean()):.4f}",
                "folded_strict_%": f"{100 * float(folded_strict(phi).double().mean()):.4f}",
            }
            rows.append(row)
            shown.append(copy[0, 0].numpy())
        output.write_table(out / "manifest.csv", rows)
        return [out / "manifest.csv", self._picture(out, image, still.numpy(), shown)]

    def _write(self, path: Path, values: Tensor, image: formats.Image) -> None:
        low, high = image.range
        output.write_volume(path, (low + (high - low) * values[0, 0].numpy()).astype(np.float32), image.grid)

    def _picture(self, out: Path, image: formats.Image, still: np.ndarray, shown: list[np.ndarray]) -> Path:
        """The image and its first copies; of a volume the middle plane."""
        panels = [still, *shown[:SHOWN]]
        page = page_of(1.8 * len(panels), 2.0)
        for number, (axis, values) in enumerate(
            zip(np.atleast_1d(page.subplots(1, len(panels))).flat, panels, strict=True)
        ):
            plane = values if values.ndim == 2 else values[:, :, values.shape[2] // 2]
            axis.imshow(
                plane if image.rows else plane.T,
                cmap="gray",
                vmin=0,
                vmax=1,
                origin="upper" if image.rows else "lower",
            )
            axis.set_title("image" if number == 0 else f"draw {number - 1}", fontsize=8)
            axis.set_axis_off()
        return save(page, out / "draws.png")


def drdm(settings: Mapping[str, Any]) -> Generator:
    """Settings: path (null: the bundled cardiac weights), level, start, labels, pairs."""
    known = {key: value for key, value in settings.items() if key != "name"}
    path = known.pop("path", None)
    unknown = set(known) - {"level", "start", "labels", "pairs"}
    if unknown:
        raise InputError(f"the drdm prior does not know {sorted(unknown)}")
    return Generator(load_drdm(Path(str(path)) if path else CARDIAC), **known)
