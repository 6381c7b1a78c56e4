"""Resampling and the engine: laws that hold for any particle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from invdiff.errors import InputError
from invdiff.sampler import feynman_kac
from invdiff.sampler.particles import ancestors, effective_fraction, log_mean, normalised

SCHEMES = ("systematic", "stratified", "residual", "multinomial")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_resampling_is_unbiased(scheme):
    """Children per particle average N W. 4000 repeats, |z| < 4.5 in 7 counts: false alarm 5e-5."""
    logs = torch.tensor([0.0, -1.0, 2.0, -3.0, 0.5, 1.5, -0.2], dtype=torch.float64)
    weights, n, g = normalised(logs), 5, generator(1)
    counts = torch.stack(
        [torch.bincount(ancestors(logs, n, g, scheme), minlength=7).double() for _ in range(4000)]
    )
    error = (counts.mean(0) - n * weights) / (counts.std(0) / math.sqrt(4000)).clamp_min(1e-3)
    assert float(error.abs().max()) < 4.5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_of_any_spread_survive(scheme):
    """Log-weights 1e4 apart keep the best particle; minus infinity is a weight like any other."""
    logs = torch.tensor([-1e4, 0.0, -math.inf, -5e3], dtype=torch.float64)
    assert ancestors(logs, 8, generator(), scheme).tolist() == [1] * 8
    assert effective_fraction(logs) == pytest.approx(1 / 4)


def test_equal_weights_keep_everybody():
    for scheme in ("systematic", "stratified", "residual"):
        assert sorted(ancestors(torch.zeros(9), 9, generator(), scheme).tolist()) == list(range(9))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_an_error(bad):
    with pytest.raises(FloatingPointError):
        normalised(torch.tensor([0.0, bad, -1.0]))
    with pytest.raises(FloatingPointError, match="every particle has weight zero"):
        normalised(torch.full((3,), -math.inf))


def test_unknown_scheme_names_the_known_ones():
    with pytest.raises(InputError, match="systematic"):
        ancestors(torch.zeros(3), 3, generator(), "systemic")


@dataclass(frozen=True)
class Sites:
    """Particles that are not tensors: lists of tokens, as a molecule or a sentence would be."""

    tokens: list[str]

    def gather(self, chosen):
        return Sites([self.tokens[int(i)] for i in chosen])


@dataclass(frozen=True)
class Words:
    """Grow a word letter by letter; `a` has weight 2, `b` weight 1: P(word) ~ 2^(number of a)."""

    steps: int = 4

    def start(self, count, generator):
        return Sites([""] * count), torch.zeros(count)

    def move(self, k, particles, generator):
        coins = torch.rand(len(particles.tokens), generator=generator) < 0.5
        letters = ["a" if coin else "b" for coin in coins]
        grown = [old + new for old, new in zip(particles.tokens, letters, strict=True)]
        return Sites(grown), torch.where(coins, math.log(2.0), 0.0)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.1])
def test_any_particle_and_unbiased_evidence(threshold):
    """Z = 1.5^4 exactly, P(letter is a) = 2/3. 300 filters of 20; |z| < 4: false alarm 2e-4."""
    model, evidences, shares = Words(), [], []
    for seed in range(300):
        settings = feynman_kac.Settings(20, threshold)
        out = feynman_kac.run(model, settings, generator(seed))
        evidences.append(math.exp(out.log_evidence))
        share = torch.tensor([word.count("a") / 4 for word in out.particles.tokens]).double()
        shares.append(float(out.weights @ share) * math.exp(out.log_evidence))
    values = torch.tensor(evidences)
    assert abs(float(values.mean()) - 1.5**4) < 4 * float(values.std()) / math.sqrt(300)
    product = torch.tensor(shares)  # unbiased for Z E[f]
    assert abs(float(product.mean()) - 1.5**4 * 2 / 3) < 4 * float(product.std()) / math.sqrt(300)


def test_weights_are_carried_where_nothing_is_resampled():
    out = feynman_kac.run(Words(), feynman_kac.Settings(50, 0.0), generator(3))
    expected = torch.tensor([word.count("a") * math.log(2.0) for word in out.particles.tokens])
    torch.testing.assert_close(out.log_weights, expected.double())
    assert out.log_evidence == pytest.approx(log_mean(expected))
    assert out.resampled == ()


def test_permuted_particles_give_the_same_answer():
    """Without a resampling step the estimate is a sum over particles, in any order."""
    logs = torch.randn(64, generator=generator(5), dtype=torch.float64) * 5
    values = torch.randn(64, generator=generator(6), dtype=torch.float64)
    order = torch.randperm(64, generator=generator(7))
    one, two = normalised(logs) @ values, normalised(logs[order]) @ values[order]
    assert abs(float(one - two)) < 1e-12
    assert abs(log_mean(logs) - log_mean(logs[order])) < 1e-12


def test_nan_names_the_move():
    @dataclass(frozen=True)
    class Broken(Words):
        def move(self, k, particles, generator):
            moved, increment = super().move(k, particles, generator)
            return moved, increment * (math.nan if k == 2 else 1)

    with pytest.raises(FloatingPointError, match="move 3 of 4"):
        feynman_kac.run(Broken(), feynman_kac.Settings(10), generator())


def test_founders_follow_the_lines_of_descent():
    @dataclass(frozen=True)
    class OneSurvivor(Words):
        def move(self, k, particles, generator):
            moved, increment = super().move(k, particles, generator)
            return moved, torch.where(torch.arange(len(increment)) == 7, 0.0, -math.inf)

    out = feynman_kac.run(OneSurvivor(steps=2), feynman_kac.Settings(10), generator())
    assert out.founders.tolist() == [7] * 10
    assert out.statistics.founders == 0.1
