"""Samplers that are wrong on purpose: a verdict that cannot fail proves nothing."""

from __future__ import annotations

import torch

from invdiff.sampler.loop import Draws


class PriorDraws:
    """Draws from the prior, as if they were a posterior."""

    name, claim, steps = "prior draws", "heuristic", 1

    def __call__(self, prior, measurement, shape, noise, progress=None):
        return Draws(prior.sample(len(noise.particles), torch.Generator().manual_seed(noise.seed)))


class Altered(PriorDraws):
    """Draws of `sample`(count, generator), passed through `alter`."""

    name = "altered draws"

    def __init__(self, sample, alter=lambda x: x):
        self.sample, self.alter = sample, alter

    def __call__(self, prior, measurement, shape, noise, progress=None):
        return Draws(self.alter(self.sample(len(noise.particles), torch.Generator().manual_seed(noise.seed))))
