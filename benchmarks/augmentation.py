"""Does DRDM help where labels are few? A small segmentation network, with and without copies.

    python benchmarks/augmentation.py DATA [--seeds 3] [--draws 3] [--level 48] [--steps 1500]

The left ventricle of cardiac slices at 64 x 64, a U-Net (MONAI) trained on four slices of each of five
training patients, both phases:

    as they are                intensities varied: gain, offset, gamma, noise (in every arm)
    affine                     turned, scaled and shifted at random as well, afresh at every step
    deformed, not recovered    half of every batch are copies by DRDM's random deformations
    DRDM                       half of every batch are copies by DRDM's recovered deformations

Judged on all slices of the test patients. Steps, batches and the random numbers of the intensities are the
same in every arm. A seed chooses patients, network and copies; intervals of the paired differences are
bootstrapped over test patients and seeds together.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from invdiff_deformation.drdm import Drdm, RandomDeformations, load_drdm, warped_image, warped_labels
from invdiff_deformation.drdm_training import averaged

SIDE, PATIENTS, SLICES = 64, 5, 4  # slices of each patient, spread from base to apex
BATCH, RATE = 8, 2e-3
ROTATION, SCALE, SHIFT = 15.0, 0.1, 0.06  # std: degrees, share, share of the side
Pair = tuple[Tensor, Tensor]


def network(seed: int) -> torch.nn.Module:
    """A small U-Net from a seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks.nets import UNet

        torch.manual_seed(seed)
        return UNet(2, 1, 1, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=1)


def varied(images: Float[Tensor, "n 1 y x"], generator: torch.Generator) -> Float[Tensor, "n 1 y x"]:
    """Gain, offset, gamma and noise: what every arm sees."""
    shape = (len(images), 1, 1, 1)
    gain, offset, gamma = torch.randn((3, *shape), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    seen = images.clamp_min(0) ** (0.25 * gamma).exp()
    return (1 + 0.15 * gain) * seen + 0.05 * offset + 0.02 * noise


def moved(images: Tensor, masks: Tensor, generator: torch.Generator) -> Pair:
    """Both turned, scaled and shifted, zeros from outside."""
    angle, scale = torch.randn((2, len(images)), generator=generator)
    shift = 2 * SHIFT * torch.randn((len(images), 2, 1), generator=generator)
    angle, scale = math.radians(ROTATION) * angle, (SCALE * scale).exp()
    rows = [angle.cos() * scale, -angle.sin() * scale, angle.sin() * scale, angle.cos() * scale]
    matrix = torch.cat([torch.stack(rows, 1).reshape(-1, 2, 2), shift], dim=2)
    where = F.affine_grid(matrix, list(images.shape), align_corners=False)
    image, mask = (F.grid_sample(one, where, align_corners=False) for one in (images, masks))
    return image, (mask > 0.5).float()


def train(
    originals: Pair,
    copies: Pair | None,
    augment: Callable[[Tensor, Tensor, torch.Generator], Pair] | None,
    seed: int,
    steps: int,
) -> torch.nn.Module:
    """Cross-entropy and soft Dice, AdamW, a cosine to zero."""
    model = network(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator, other = (torch.Generator().manual_seed(2 * seed + k) for k in (0, 1))
    for _ in range(steps):
        chosen = torch.randint(len(originals[0]), (BATCH,), generator=generator)
        images, wanted = (part[chosen] for part in originals)
        if copies is not None:
            more = torch.randint(len(copies[0]), (BATCH // 2,), generator=other)
            images, wanted = (
                torch.cat([part[: BATCH // 2], copy[more]])
                for part, copy in zip((images, wanted), copies, strict=True)
            )
        if augment is not None:
            images, wanted = augment(images, wanted, other)
        logits = model(varied(images, generator))
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


def deformed(generator: Drdm, pair: Pair, level: int, seed: int, draws: int) -> tuple[Pair, Pair, list[dict]]:
    """Copies before and after recovery, and what the deformations of every image are like."""
    sets: tuple[list[Tensor], ...] = ([], [], [], [])
    statistics = []
    for number, (image, mask) in enumerate(zip(*pair, strict=True)):
        raw = generator.random(image.shape[1:], level, 1000 * seed + number, range(draws))
        fields = [generator.recovered(image[0], one, level) for one in raw.phi]
        found = RandomDeformations(torch.stack(fields), raw.draws)
        statistics.append(found.statistics())
        for k, phi in enumerate((raw.phi, found.phi)):
            sets[2 * k].append(warped_image(image[None], phi))
            sets[2 * k + 1].append(warped_labels(mask[0].long(), phi).float()[:, None])
    whole = [torch.cat(one) for one in sets]
    return (whole[0], whole[1]), (whole[2], whole[3]), statistics


def interval(gain: Float[np.ndarray, "seeds n"], patients: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean over seeds and images, bootstrapped over test patients and seeds."""
    names, rng = np.unique(patients), np.random.default_rng(0)
    groups = [np.flatnonzero(patients == name) for name in names]
    means = []
    for _ in range(4000):
        rows = gain[rng.integers(len(gain), size=len(gain))].mean(axis=0)
        drawn = rng.integers(len(groups), size=len(groups))
        means.append(rows[np.concatenate([groups[k] for k in drawn])].mean())
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--level", type=int, default=48)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(options.data / "deformation/sunnybrook_ed_es_2d.npz") as file:
        arrays = {name: file[name] for name in file.files}

    def stacked(rows: np.ndarray) -> Pair:
        images = np.concatenate([arrays[phase][rows] for phase in ("ed", "es")]).astype(np.float32) / 255
        masks = np.concatenate([arrays[f"{phase}_lv"][rows] > 0 for phase in ("ed", "es")])
        small = averaged(torch.from_numpy(images), SIDE)
        return small[:, None], (averaged(torch.from_numpy(masks).float(), SIDE) >= 0.5).float()[:, None]

    test = np.flatnonzero(arrays["split"] == "test")
    judged, truth = stacked(test)
    patients = np.concatenate([arrays["patient"][test]] * 2)
    everyone = np.unique(arrays["patient"][arrays["split"] == "train"])
    generator = load_drdm()
    scores: dict[str, list[np.ndarray]] = {}
    for seed in range(options.seeds):
        began = time.process_time()
        rows = []
        for name in np.random.default_rng(seed).choice(everyone, PATIENTS, replace=False):
            own = np.flatnonzero((arrays["patient"] == name) & (arrays["split"] == "train"))
            rows.extend(own[np.unique(np.linspace(0, len(own) - 1, SLICES).round().astype(int))])
        pair = stacked(np.asarray(rows))
        raw, recovered, statistics = deformed(generator, pair, options.level, seed, options.draws)
        middle = time.process_time()
        for name, copies, augment in (
            ("as they are", None, None),
            ("affine", None, moved),
            ("deformed, not recovered", raw, None),
            ("DRDM", recovered, None),
        ):
            model = train(pair, copies, augment, seed, options.steps)
            scores.setdefault(name, []).append(dice_of(model, judged, truth))
        seconds = f"{middle - began:.0f} CPU s of copies, {time.process_time() - middle:.0f} of training"
        size = np.mean([one["mean_displacement_%"] for one in statistics])
        print(f"seed {seed}: {len(pair[0])} images, {seconds}; recovered |u| {size:.1f} % of the side")
        print("   ", {name: round(float(found[-1].mean()), 4) for name, found in scores.items()}, flush=True)
    print(f"\n{PATIENTS} patients, {options.seeds} choices of them; Dice on {len(judged)} test images")
    plain = np.stack(scores["as they are"])
    for name, found in scores.items():
        values = np.stack(found)
        low, high = interval(values - plain, patients)
        gain = float((values - plain).mean())
        print(f"  {name:24s} {values.mean():.4f}   gain {gain:+.4f} (95 % {low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
