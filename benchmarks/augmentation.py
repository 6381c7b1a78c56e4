"""Does DRDM help where labels are few? A small segmentation network, with and without copies.

    python benchmarks/augmentation.py DATA [--seeds 6] [--draws 32] [--level 48] [--rise 2] [--steps 1500]
                                            [--arms "as they are" DRDM]

The left ventricle of cardiac slices at 64 x 64, a U-Net (MONAI) trained on four slices of each of five
training patients, both phases:

    as they are                intensities varied: gain, offset, gamma, noise (in every arm)
    affine                     turned, scaled and shifted at random as well, afresh at every step
    deformed, not recovered    half of every batch are copies by DRDM's random deformations
    DRDM                       half of every batch are copies by DRDM's recovered deformations
    affine and DRDM            that, and all of it turned, scaled and shifted

Copies are those of the publication, 32 of every image, of levels 48, 48, 50, 50, 52, ... . Judged on all
slices of the test patients. Steps, batches and the random numbers of the intensities are the same in every
arm; a network that has not learned its own training images is begun again. A seed chooses patients, network
and copies; intervals of the paired differences are bootstrapped over test patients and seeds together. The
table is printed after every seed, of the seeds so far.
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
LEARNED = 0.5  # Dice on the images that it was trained on, below which a network has collapsed
ARMS = ("as they are", "affine", "deformed, not recovered", "DRDM", "affine and DRDM")
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


def trained(
    originals: Pair, copies: Pair | None, augment: Callable[..., Pair] | None, seed: int, steps: int
) -> torch.nn.Module:
    """`train`, begun again with another network where it has not learned its own images (one in 30)."""
    for attempt in range(4):
        model = train(originals, copies, augment, seed + 1000 * attempt, steps)
        if dice_of(model, *originals).mean() > LEARNED:
            break
        print(f"    seed {seed}, attempt {attempt + 1}: nothing learned, begun again", flush=True)
    return model


def levels_of(first: int, rise: int, draws: int, top: int) -> list[int]:
    """The level of every copy: `rise` more every other one, at most the top."""
    return [min(first + rise * (k // 2), top) for k in range(draws)]


def deformed(generator: Drdm, pair: Pair, levels: list[int], seed: int) -> tuple[Pair, Pair, list[dict]]:
    """Copies before and after recovery, and what the deformations of every image are like."""
    images, shape = pair[0][:, 0], pair[0].shape[2:]
    raw = torch.stack(
        [
            torch.cat([generator.random(shape, t, 1000 * seed + n, (k,)).phi for k, t in enumerate(levels)])
            for n in range(len(images))
        ]
    )
    found = torch.empty_like(raw)
    for level in sorted(set(levels)):
        own = [k for k, t in enumerate(levels) if t == level]
        part = raw[:, own].flatten(0, 1)
        recovered = generator.recovered(images.repeat_interleave(len(own), 0), part, level)
        found[:, own] = recovered.unflatten(0, (len(images), len(own)))

    def copies(fields: Tensor) -> Pair:
        whole = [
            (warped_image(image[None], phi), warped_labels(mask[0].long(), phi).float()[:, None])
            for image, mask, phi in zip(*pair, fields, strict=True)
        ]
        return torch.cat([image for image, _ in whole]), torch.cat([mask for _, mask in whole])

    numbers = tuple(range(len(levels)))
    return copies(raw), copies(found), [RandomDeformations(phi, numbers).statistics() for phi in found]


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


def tell(scores: dict[str, list[np.ndarray]], patients: np.ndarray) -> None:
    """Dice of every arm, its gain over no augmentation, and that of both over the affine one."""
    found = {name: np.stack(values) for name, values in scores.items()}
    rows = [(name, "as they are") for name in found]
    if "affine" in found and "affine and DRDM" in found:
        rows.append(("affine and DRDM", "affine"))
    for name, base in rows:
        gain = found[name] - found[base]
        low, high = interval(gain, patients)
        print(
            f"  {name:24s} {found[name].mean():.4f}   over {base:12s} {gain.mean():+.4f} "
            f"(95 % {low:+.4f} to {high:+.4f}); seeds {np.round(gain.mean(axis=1), 3)}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--level", type=int, default=48)
    parser.add_argument("--rise", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
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
    levels = levels_of(options.level, options.rise, options.draws, generator.network.steps - 1)
    scores: dict[str, list[np.ndarray]] = {}
    for seed in range(options.seeds):
        began = time.process_time()
        rows = []
        for name in np.random.default_rng(seed).choice(everyone, PATIENTS, replace=False):
            own = np.flatnonzero((arrays["patient"] == name) & (arrays["split"] == "train"))
            rows.extend(own[np.unique(np.linspace(0, len(own) - 1, SLICES).round().astype(int))])
        pair = stacked(np.asarray(rows))
        raw, recovered, statistics = deformed(generator, pair, levels, seed)
        middle = time.process_time()
        for name, copies, augment in (
            ("as they are", None, None),
            ("affine", None, moved),
            ("deformed, not recovered", raw, None),
            ("DRDM", recovered, None),
            ("affine and DRDM", recovered, moved),
        ):
            if name not in options.arms:
                continue
            model = trained(pair, copies, augment, seed, options.steps)
            scores.setdefault(name, []).append(dice_of(model, judged, truth))
        seconds = f"{middle - began:.0f} CPU s of copies, {time.process_time() - middle:.0f} of training"
        size = np.mean([one["mean_displacement_%"] for one in statistics])
        print(f"seed {seed}: {len(pair[0])} images, {seconds}; recovered |u| {size:.1f} % of the side")
        print(f"{PATIENTS} patients, {seed + 1} choices of them; Dice on {len(judged)} test images")
        tell(scores, patients)


if __name__ == "__main__":
    main()
