"""`invdiff sample`: unconditional draws of a prior."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from invdiff.config import compose
from invdiff.errors import InputError
from invdiff.run.solve import make_prior
from invdiff.sampler.unconditional import sample_prior


def write_prior_samples(
    overrides: list[str],
    shape: tuple[int, ...],
    samples: int,
    steps: int,
    sigma_max: float,
    seed: int,
    out: Path,
) -> list[Path]:
    """Draw by the DPM-Solver++ 2M SDE and write `OUT.npy` and, for images, `OUT.png`."""
    if samples < 1:
        raise InputError(f"--samples is {samples}; at least one is needed")
    prior = make_prior(compose(overrides)["prior"])
    array = sample_prior(prior, shape, range(samples), seed=seed, steps=steps, sigma_max=sigma_max).numpy()
    paths = [out.with_suffix(".npy")]
    part = out.with_suffix(".npy.part")
    with part.open("wb") as file:
        np.save(file, array)
    os.replace(part, paths[0])
    if array.ndim == 4:
        from matplotlib.figure import Figure

        page = Figure(figsize=(2.5 * samples, 2.6), layout="constrained")
        for axis, image in zip(np.atleast_1d(page.subplots(1, samples)).flat, array, strict=True):
            axis.imshow(image[0], cmap="gray")
            axis.set_axis_off()
        paths.append(out.with_suffix(".png"))
        page.savefig(paths[1], dpi=100)
    return paths
