"""Random numbers that belong to a particle, not to the batch it happens to be in.

Every particle has a stream of its own, seeded by (seed, item, particle), drawn
on the CPU whatever the device: a particle's noise is the same alone or among a
thousand, on any executor and after a resume. The global generators are never
touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def stream(seed: int, *path: int) -> torch.Generator:
    """The generator keyed by (seed, *path); 0 is a key like any other."""
    state = np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) & 0x7FFF_FFFF_FFFF_FFFF)


class ParticleNoise:
    """Standard normal draws for a batch of particles, each from its own stream."""

    def __init__(
        self,
        seed: int,
        particles: Sequence[int],
        *,
        item: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.seed, self.item, self.particles = seed, item, tuple(particles)
        self.streams = [stream(seed, item, particle) for particle in particles]
        self.device, self.dtype = torch.device(device), dtype

    def normal(self, shape: tuple[int, ...]) -> Float[Tensor, "particles *event"]:
        """One standard normal of `shape` for every particle."""
        if len(self.streams) == 1:
            draw = torch.randn((1, *shape), generator=self.streams[0], dtype=self.dtype)
        else:
            draw = torch.empty((len(self.streams), *shape), dtype=self.dtype)
            for row, generator in zip(draw, self.streams, strict=True):
                row.normal_(generator=generator)
        return draw if self.device.type == "cpu" else draw.to(self.device)
