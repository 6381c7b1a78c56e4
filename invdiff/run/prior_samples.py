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
    given: Path | None = None,
) -> list[Path]:
    """Draw by the DPM-Solver++ 2M SDE and write `OUT.npy` and, for images, `OUT.png`.

    A prior that has `generate(path, samples, seed, out)` is no law of arrays: it makes variants of the file
    `given` and writes them itself.
    """
    if samples < 1:
        raise InputError(f"--samples is {samples}; at least one is needed")
    prior = make_prior(compose(overrides)["prior"])
    if hasattr(prior, "generate"):
        paths: list[Path] = prior.generate(given, samples, seed, out)
        return paths
    if given is not None:
        raise InputError(f"prior {prior.card.name!r} takes no --input; it draws from its own law alone")
    array = sample_prior(prior, shape, range(samples), seed=seed, steps=steps, sigma_max=sigma_max).numpy()
    written = [out.with_suffix(".npy")]
    part = out.with_suffix(".npy.part")
    with part.open("wb") as file:
        np.save(file, array)
    os.replace(part, written[0])
    if array.ndim == 4:
        from matplotlib.figure import Figure

        page = Figure(figsize=(2.5 * samples, 2.6), layout="constrained")
        for axis, image in zip(np.atleast_1d(page.subplots(1, samples)).flat, array, strict=True):
            axis.imshow(image[0], cmap="gray")
            axis.set_axis_off()
        written.append(out.with_suffix(".png"))
        page.savefig(written[1], dpi=100)
    return written
