"""`invdiff sample`: unconditional draws of a prior."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import torch

from invdiff.config import compose
from invdiff.errors import InputError
from invdiff.run.solve import make_prior
from invdiff.sampler.integrator import named
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.schedule import karras
from invdiff.sampler.start import PriorDraw


def sample_prior(
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
    noise = ParticleNoise(seed, range(samples))
    levels = (*karras(steps, sigma_max, 0.003), 0.0)
    integrator = named("2m_sde")
    with torch.no_grad():
        state = integrator.start(PriorDraw()(prior.card, shape, levels[0], noise), levels[0])
        for sigma, sigma_next in itertools.pairwise(levels):
            denoised = prior.denoise(state.x, sigma)
            state = integrator.step(state, denoised, sigma_next, noise.normal)
    array = state.x.numpy()
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
