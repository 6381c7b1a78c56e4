"""Moves after resampling leave the target and the evidence as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from invdiff.api import make_sampler, sample
from invdiff.errors import InputError
from invdiff.sampler import feynman_kac, path_moves
from tests.sampler.weighting.test_particle_methods import line

DOUBLE = torch.float64
FILTERS = 400
DATA = (0.3, -0.2, 0.8, 1.4, 1.1, 2.0)
LEAP, NOISE = 1.0, 0.7


@dataclass(frozen=True)
class RandomWalk:
    """x_0 ~ N(0, 1), x_k+1 = x_k + LEAP xi, y_k = x_k + NOISE e; exact by the Kalman filter."""

    steps: int = len(DATA)

    def start(self, count, generator):
        return self.noise(count, generator), torch.zeros(count, dtype=DOUBLE)

    def noise(self, count, generator):
        return torch.randn(count, generator=generator, dtype=DOUBLE)

    def move(self, k, particles, generator):
        return self.driven(k, particles, self.noise(len(particles), generator))

    def driven(self, k, particles, xi):
        x = particles + LEAP * xi
        return x, -0.5 * ((DATA[k] - x) / NOISE) ** 2 - math.log(NOISE * math.sqrt(2 * math.pi))


def kalman():
    """Last mean and log evidence."""
    mean, variance, evidence = 0.0, 1.0, 0.0
    for y in DATA:
        variance += LEAP**2
        total = variance + NOISE**2
        evidence -= 0.5 * ((y - mean) ** 2 / total + math.log(2 * math.pi * total))
        mean, variance = mean + variance / total * (y - mean), variance * NOISE**2 / total
    return mean, evidence


def filters(kind, settings, particles=32, threshold=2.0):
    """Last mean, evidence over its exact value, and share of distinct particles, a row a filter."""
    moved = kind(RandomWalk(), settings)
    rows = []
    for seed in range(FILTERS):
        out = feynman_kac.run(
            moved,
            feynman_kac.Settings(particles, threshold),
            torch.Generator().manual_seed(seed),
            moved.rejuvenate,
        )
        x = out.particles.particles
        evidence = math.exp(out.log_evidence - kalman()[1])
        rows.append([float(out.weights @ x), evidence, len(set(x.tolist())) / particles])
    return torch.tensor(rows, dtype=DOUBLE)


class AlwaysAccepted(path_moves.PathModel):
    """Control: the proposal without its acceptance step."""

    def rejuvenate(self, k, path, generator):
        return super().rejuvenate(k, replace(path, gain=torch.full_like(path.gain, -math.inf)), generator)


def z_score(ratios):
    return (float(ratios.mean()) - 1) / (float(ratios.std()) / math.sqrt(FILTERS))


@pytest.mark.parametrize("window", [1, 3, 9])
def test_evidence_stays_unbiased(window):
    """400 filters of 32 resampled at every move; |z| < 4 for three windows: false alarm 2e-4."""
    rows = filters(path_moves.PathModel, path_moves.Settings(2, window))
    assert abs(z_score(rows[:, 1])) < 4
    assert float(rows[:, 1].std()) / math.sqrt(FILTERS) < 0.03


def test_moves_without_acceptance_are_caught():
    """The same check must reject them."""
    rows = filters(AlwaysAccepted, path_moves.Settings(2, 3))
    assert abs(z_score(rows[:, 1])) > 6


def test_every_driven_method_takes_them_by_name():
    prior, measurement = line()
    for name in ("moment_twisted", "twisted", "ensemble", "steering"):
        out = sample(prior, measurement, (1,), sampler=name, samples=8, particles=32, keep=8, moves=1)
        assert bool(torch.isfinite(out.samples).all())


def test_refusals():
    prior, measurement = line()
    with pytest.raises(InputError, match="has no path moves"):
        sample(prior, measurement, (1,), sampler="lookahead", samples=2, particles=4, keep=2, moves=1)
    with pytest.raises(InputError, match="window >= 1"):
        path_moves.Settings(1, window=0)
    with pytest.raises(InputError, match="resample_from"):
        make_sampler("twisted", prior.card, resample_from=0.8, resample_to=0.2)


def test_resampling_stays_inside_its_window():
    """From half of the moves on, and never after nine tenths of them."""
    prior, measurement = line()
    sampler = make_sampler("twisted", prior.card, resample_from=0.5, resample_to=0.9, threshold=2.0)
    model = sampler.prepare(prior, measurement, (1,), torch.device("cpu"), DOUBLE).ready
    window = (round(0.5 * model.steps), round(0.9 * model.steps))
    out = feynman_kac.run(
        model, feynman_kac.Settings(8, 2.0, window=window), torch.Generator().manual_seed(0)
    )
    assert out.resampled == tuple(range(window[0], window[1] + 1))
    drawn = sample(prior, measurement, (1,), sampler=sampler, samples=2)
    resampled = drawn.info["filters"][0]["resamplings"]
    assert resampled == window[1] - window[0] + 1
