"""Checks of a denoiser, on laws where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.diagnostics.prior import (
    conservativity,
    hallucination_score,
    intrinsic_dimension,
    jacobian_products,
    ode_sde_gap,
)
from invdiff.prior.gaussian import GaussianPrior
from invdiff.prior.mixture import GaussianMixture

DOUBLE = torch.float64


def mixture(spacing=6.0, std=0.2):
    means = torch.tensor([[-spacing, 0.0], [0.0, spacing], [spacing, 0.0]], dtype=DOUBLE)
    return GaussianMixture(torch.ones(3, dtype=DOUBLE), means, torch.full((3,), std**2, dtype=DOUBLE))


class Twisted:
    """D plus a rotation: a denoiser whose Jacobian is not symmetric."""

    def __init__(self, inner, amount):
        self.inner, self.amount = inner, amount
        self.card = inner.card

    def denoise(self, x, sigma):
        turned = torch.stack([-x[:, 1], x[:, 0]], dim=1)
        return self.inner.denoise(x, sigma) + self.amount * turned


def test_jacobian_products_are_those_of_the_closed_form():
    prior = mixture(2.0, 0.5)
    g = torch.Generator().manual_seed(0)
    x, v = torch.randn(5, 2, generator=g, dtype=DOUBLE), torch.randn(5, 2, generator=g, dtype=DOUBLE)
    forward, backward = jacobian_products(prior, x, 0.8, v)
    torch.testing.assert_close(forward, prior.jvp(x, 0.8, v))
    torch.testing.assert_close(backward, prior.jvp(x, 0.8, v))


def test_conservativity_sees_a_rotation():
    prior = GaussianPrior.diagonal(torch.zeros(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE))
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    assert conservativity(prior, x, 1.0) < 1e-12
    # J = I / 2 + a R: |J v - J^T v| / |J v| = 2 a / sqrt(1 / 4 + a^2)
    assert conservativity(Twisted(prior, 0.1), x, 1.0) == pytest.approx(0.2 / (0.26) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("flipd", [False, True])
def test_intrinsic_dimension_of_a_plane(flipd):
    """Three directions of std 1 in eight dimensions, the others 1e-4: 3 at sigma = .01."""
    variance = torch.tensor([1.0] * 3 + [1e-8] * 5, dtype=DOUBLE)
    prior = GaussianPrior.diagonal(torch.zeros(8, dtype=DOUBLE), variance)
    x0 = prior.sample(4, torch.Generator().manual_seed(0))
    found = intrinsic_dimension(prior, x0, 0.01, flipd=flipd)
    assert float((found - 3).abs().max()) < 0.02


def test_hallucination_score_finds_estimates_that_do_not_settle():
    """A denoiser that still moves at low noise for half of the samples: they score highest."""
    prior = mixture()

    class Restless:
        card = prior.card

        def denoise(self, x, sigma):
            wave = 0.05 * math.cos(9 * math.log(float(sigma)))
            return prior.denoise(x, float(sigma)) + wave * (x[:, :1] > 0)

    x, score = hallucination_score(Restless(), (2,), samples=300, dtype=DOUBLE)
    moving = x[:, 0] > 0.5
    assert 50 < int(moving.sum()) < 250
    assert float(score[moving].min()) > 10 * float(score[x[:, 0] < -0.5].max())
    _, settled = hallucination_score(prior, (2,), samples=100, dtype=DOUBLE)
    assert float(settled.max()) < 1e-3


def test_ode_and_sde_agree_for_an_exact_score_only():
    prior = mixture(2.0, 0.5)
    gap, floor = ode_sde_gap(prior, (2,), samples=1000, dtype=DOUBLE)
    assert gap < 3 * floor
    gap, floor = ode_sde_gap(Twisted(prior, 0.15), (2,), samples=1000, dtype=DOUBLE)
    assert gap > 3 * floor
