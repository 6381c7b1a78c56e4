"""Moves after resampling leave the target and the evidence as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from invdiff.api import make_sampler, sample
from invdiff.benchmark.toys import fk2d
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


@pytest.mark.parametrize("proposal", path_moves.PROPOSALS)
@pytest.mark.parametrize("window", [1, 3, 9])
def test_evidence_stays_unbiased(window, proposal):
    """400 filters of 32 resampled at every move; |z| < 4 in six cases: false alarm 4e-4."""
    rows = filters(path_moves.PathModel, path_moves.Settings(2, window, proposal=proposal))
    assert abs(z_score(rows[:, 1])) < 4
    assert float(rows[:, 1].std()) / math.sqrt(FILTERS) < 0.03


@pytest.mark.parametrize("proposal", path_moves.PROPOSALS)
def test_moves_without_acceptance_are_caught(proposal):
    """The same check must reject them."""
    rows = filters(AlwaysAccepted, path_moves.Settings(2, 3, 0.9, proposal))
    assert abs(z_score(rows[:, 1])) > 6


class ForgetsItsProposal(path_moves.PathModel):
    """Control: `mala` accepted as if its proposal were symmetric under N(0, I)."""

    def log_proposal(self, to, at, slopes):
        return super().log_proposal(to, at, tuple(torch.zeros_like(one) for one in slopes))


def drift_of_moments(kind, proposal):
    """z-scores of mean and variance of 20 000 exact draws of one step's noise after five moves."""
    count, g = 20_000, torch.Generator().manual_seed(0)
    share = LEAP**2 / (LEAP**2 + NOISE**2)
    mean, variance = share * DATA[2] / LEAP, 1 - share
    origin = torch.zeros(count, dtype=DOUBLE)
    xi = mean + math.sqrt(variance) * torch.randn(count, generator=g, dtype=DOUBLE)
    particles, gain = RandomWalk().driven(2, origin, xi)
    moved = kind(RandomWalk(), path_moves.Settings(5, 1, 0.7, proposal))
    (after,) = moved.rejuvenate(3, path_moves.Path(particles, origin, (xi,), gain), g).noises
    assert float((after != xi).double().mean()) > 0.9
    z = (after - mean) / math.sqrt(variance)
    return float(z.mean()) * math.sqrt(count), float((z**2 - 1).mean()) * math.sqrt(count / 2)


@pytest.mark.parametrize("proposal", path_moves.PROPOSALS)
def test_moves_keep_their_target(proposal):
    """Four z-scores within 4: false alarm 3e-4."""
    assert max(abs(z) for z in drift_of_moments(path_moves.PathModel, proposal)) < 4


def test_langevin_moves_must_count_their_drift():
    """The same check must reject them."""
    assert max(abs(z) for z in drift_of_moments(ForgetsItsProposal, "mala")) > 20


def test_langevin_moves_of_steering():
    """Their drift is the derivative of the weights through the denoiser: central differences, 1e-6."""
    toy, g = fk2d(), torch.Generator().manual_seed(0)
    sampler = make_sampler("steering", toy.prior.card, moves=1, moves_window=4, moves_proposal="mala")
    model = sampler.prepare(toy.prior, toy.measurement, toy.shape, torch.device("cpu"), DOUBLE).ready
    path, _ = model.start(6, g)
    for k in range(60, 64):
        path, _ = model.move(k, path, g)
    _, slopes = model.replayed(64, path, path.noises)
    for number, slope in enumerate(slopes):
        for axis in range(2):
            gains = []
            for shift in (-1e-5, 1e-5):
                noises = [xi.clone() for xi in path.noises]
                noises[number][:, axis] += shift
                gains.append(model.replayed(64, path, tuple(noises))[0].gain)
            torch.testing.assert_close((gains[1] - gains[0]) / 2e-5, slope[:, axis], rtol=1e-6, atol=1e-7)
    moved = model.rejuvenate(64, path, g)
    assert bool(torch.isfinite(moved.particles.x).all()) and not moved.particles.x.requires_grad
    assert not torch.equal(moved.particles.x, path.particles.x)


def test_every_driven_method_takes_them_by_name():
    prior, measurement = line()
    for name in ("moment_twisted", "twisted", "ensemble", "steering"):
        out = sample(prior, measurement, (1,), sampler=name, samples=8, particles=32, keep=8, moves=1)
        assert bool(torch.isfinite(out.samples).all())


def test_refusals():
    prior, measurement = line()
    with pytest.raises(InputError, match="has no path moves"):
        sample(prior, measurement, (1,), sampler="lookahead", samples=2, particles=4, keep=2, moves=1)
    with pytest.raises(InputError, match="moves_proposal=pcn"):
        sample(prior, measurement, (1,), sampler="twisted", samples=2, moves=1, moves_proposal="mala")
    with pytest.raises(InputError, match="pcn and mala"):
        path_moves.Settings(1, proposal="hmc")
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
