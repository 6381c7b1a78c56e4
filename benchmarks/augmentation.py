"""Does DRDM help where labels are few? A small segmentation network, with and without copies.

    python benchmarks/augmentation.py DATA [--seeds 3] [--draws 6] [--level 48]

The left ventricle of cardiac slices: a U-Net (MONAI) trained on the slices of five training patients as
they are, with deformations before recovery, and with DRDM's recovered ones; judged on all test patients.
The same number of steps, the same order of random numbers; what differs is the copies. Intervals are
bootstrapped over test patients.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from invdiff_deformation.drdm import RandomDeformations, load_drdm, warped_image, warped_labels

PATIENTS, SLICES = 5, 4  # of each, spread from base to apex, both phases
STEPS, BATCH, RATE = (
    2000,
    8,
    2e-3,
)  # with 300 the network is far from trained, and the comparison says nothing


def network(seed: int) -> torch.nn.Module:
    """A small U-Net from a seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks.nets import UNet

        torch.manual_seed(seed)
        return UNet(2, 1, 1, channels=(12, 24, 48, 96), strides=(2, 2, 2), num_res_units=1)


def train(images: Float[Tensor, "n 1 y x"], masks: Float[Tensor, "n 1 y x"], seed: int) -> torch.nn.Module:
    """Cross-entropy and soft Dice, Adam, a cosine to zero."""
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        gain = 1 + 0.1 * torch.randn((BATCH, 1, 1, 1), generator=generator)
        logits = model(images[chosen] * gain)
        wanted = masks[chosen]
        chance = logits.sigmoid()
        overlap = 2 * (chance * wanted).sum((1, 2, 3)) / (chance.sum((1, 2, 3)) + wanted.sum((1, 2, 3)) + 1)
        loss = F.binary_cross_entropy_with_logits(logits, wanted) + 1 - overlap.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def dice_of(model: torch.nn.Module, images: Tensor, masks: Tensor) -> Float[np.ndarray, "n"]:
    """Dice of every image."""
    found = torch.cat([model(part) > 0 for part in images.split(16)])
    overlap = 2 * (found * masks).sum((1, 2, 3)) / (found.sum((1, 2, 3)) + masks.sum((1, 2, 3))).clamp_min(1)
    return overlap.numpy()


def interval(gain: Float[np.ndarray, "n"], patients: np.ndarray) -> tuple[float, float, float]:
    """Mean over images and its 95 % bootstrap interval over patients."""
    names = np.unique(patients)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(4000):
        drawn = rng.choice(names, len(names))
        means.append(np.concatenate([gain[patients == name] for name in drawn]).mean())
    low, high = np.quantile(means, (0.025, 0.975))
    return float(gain.mean()), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--level", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(options.data / "deformation/sunnybrook_ed_es_2d.npz") as file:
        arrays = {name: file[name] for name in file.files}

    def stacked(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        images = np.concatenate([arrays[phase][rows] for phase in ("ed", "es")]).astype(np.float32) / 255
        masks = np.concatenate([arrays[f"{phase}_lv"][rows] > 0 for phase in ("ed", "es")]).astype(np.float32)
        return torch.from_numpy(images)[:, None], torch.from_numpy(masks)[:, None]

    test = np.flatnonzero(arrays["split"] == "test")
    judged, truth = stacked(test)
    patients = np.concatenate([arrays["patient"][test]] * 2)
    everyone = np.unique(arrays["patient"][arrays["split"] == "train"])
    generator = load_drdm()
    scores: dict[str, list[np.ndarray]] = {}
    for seed in range(options.seeds):
        began = time.process_time()
        chosen = np.random.default_rng(seed).choice(everyone, PATIENTS, replace=False)
        rows = []
        for name in chosen:
            own = np.flatnonzero((arrays["patient"] == name) & (arrays["split"] == "train"))
            rows.extend(own[np.unique(np.linspace(0, len(own) - 1, SLICES).round().astype(int))])
        images, masks = stacked(np.asarray(rows))
        copies: dict[str, tuple[list[Tensor], list[Tensor]]] = {
            "as they are": ([], []),
            "deformed, not recovered": ([], []),
            "DRDM": ([], []),
        }
        statistics = []
        for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
            draws = range(options.draws)
            raw = generator.random(image.shape[1:], options.level, 1000 * seed + number, draws)
            fields = [generator.recovered(image[0], one, options.level) for one in raw.phi]
            found = RandomDeformations(torch.stack(fields), tuple(draws))
            statistics.append((raw.statistics(), found.statistics()))
            for name, phi in (("deformed, not recovered", raw.phi), ("DRDM", found.phi)):
                copies[name][0].append(warped_image(image[None], phi))
                copies[name][1].append(warped_labels(mask[0].long(), phi).float()[:, None])
        for name, (more, labels) in copies.items():
            model = train(torch.cat([images, *more]), torch.cat([masks, *labels]), seed)
            scores.setdefault(name, []).append(dice_of(model, judged, truth))
        means = [
            {key: round(float(np.mean([one[k][key] for one in statistics])), 3) for key in statistics[0][k]}
            for k in (0, 1)
        ]
        print(
            f"seed {seed}, {time.process_time() - began:.0f} CPU s; before {means[0]}; recovered {means[1]}"
        )
        print("   ", {name: round(float(found[-1].mean()), 4) for name, found in scores.items()}, flush=True)
    whole = {name: np.mean(found, axis=0) for name, found in scores.items()}
    print(f"\n{PATIENTS} patients, {options.seeds} choices of them; Dice on {len(judged)} test images")
    for name, values in whole.items():
        mean, low, high = interval(values - whole["as they are"], patients)
        print(f"  {name:24s} {values.mean():.4f}   gain {mean:+.4f} (95 % {low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
