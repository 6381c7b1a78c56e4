"""The integrator: published tables, measured orders, densities, resampling."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from invdiff.errors import InputError
from invdiff.prior.mixture import GaussianMixture
from invdiff.sampler.integrator import ExponentialMultistep, named, quadrature_weights
from invdiff.sampler.schedule import karras, loguniform


def test_first_order_weights():
    h = 0.37
    (w,) = quadrature_weights((0.2,), 0.2, 0.2 + h, 0.0, "data")
    assert w == pytest.approx(1 - math.exp(-h), rel=1e-13)
    (w,) = quadrature_weights((0.2,), 0.2, 0.2 + h, 1.0, "data")
    assert w == pytest.approx(1 - math.exp(-2 * h), rel=1e-13)
    (w,) = quadrature_weights((0.2,), 0.2, 0.2 + h, 0.0, "noise")
    assert w == pytest.approx(math.exp(-0.2 - h) - math.exp(-0.2), rel=1e-13)


def test_deis2_weights_equal_the_closed_form():
    # int of -e^{-t} times the Lagrange basis on two nodes, by parts.
    a, b, previous = 0.5, 0.9, 0.2
    e = lambda t: math.exp(-t)  # noqa: E731
    total = e(b) - e(a)
    first_moment = (b - a) * e(b) + e(b) - e(a)  # int of -(t - a) e^{-t} over [a, b]
    w_old = -first_moment / (a - previous)
    found = quadrature_weights((a, previous), a, b, 0.0, "noise")
    assert found[1] == pytest.approx(w_old, rel=1e-10)
    assert sum(found) == pytest.approx(total, rel=1e-13)


def test_unic2_weights_equal_the_closed_form():
    # Data form on nodes (old, new): E(t -> b) = e^{-(b - t)}.
    a, b = 0.1, 0.6
    h = b - a
    phi1 = 1 - math.exp(-h)
    slope = (h - phi1) / h  # int e^{-(b-t)} (t - a)/h dt
    found = quadrature_weights((a, b), a, b, 0.0, "data")
    assert found[1] == pytest.approx(slope, rel=1e-12)
    assert found[0] == pytest.approx(phi1 - slope, rel=1e-12)


def test_order_one_is_ddim_and_ddpm():
    g = torch.Generator().manual_seed(0)
    x, d, z = torch.randn(3, 2, 5, generator=g, dtype=torch.float64)
    ddim = named("ddim").step(named("ddim").start(x, 2.0), d, 0.5, lambda s: z)
    torch.testing.assert_close(ddim.x, d + 0.25 * (x - d))
    ddpm = named("ddpm")
    mean, std = ddpm.kernel(ddpm.start(x, 2.0), d, 0.5)
    torch.testing.assert_close(mean, x / 16 + d * 15 / 16)
    assert std == pytest.approx(math.sqrt(0.25 * (4 - 0.25) / 4))
    torch.testing.assert_close(ddpm.step(ddpm.start(x, 2.0), d, 0.5, lambda s: z).x, mean + std * z)


def mixture() -> GaussianMixture:
    g = torch.Generator().manual_seed(3)
    means = torch.randn(4, 8, generator=g, dtype=torch.float64)
    return GaussianMixture(torch.ones(4).double(), means, torch.ones(4).double())


def endpoint(prior, integrator, levels, x):
    state = integrator.start(x, levels[0])
    for sigma, sigma_next in pairwise(levels):
        state = integrator.step(state, prior.denoise(state.x, sigma), sigma_next, torch.zeros)
    return state.x


ORDERS = {
    "ddim": (1.0, 0.15),
    "2m": (2.0, 0.15),
    "deis2": (2.0, 0.15),
    "deis3": (2.0, 0.15),  # limited by its first two steps; of third order from a given history (test_orders)
    "unipc2": (3.0, 0.15),
}


@pytest.mark.parametrize("name", ORDERS)
def test_measured_order(name):
    prior = mixture()
    x = 5 * torch.randn(32, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = endpoint(prior, named("unipc3"), loguniform(1281, 5.0, 0.05), x)
    errors = []
    for steps in (40, 80, 160):
        out = endpoint(prior, named(name), loguniform(steps + 1, 5.0, 0.05), x)
        errors.append(float((out - truth).norm(dim=1).median()))
    slope = math.log2(errors[0] / errors[2]) / 2
    order, band = ORDERS[name]
    assert abs(slope - order) <= band, (slope, errors)


def test_midpoint_2m_formula():
    g = torch.Generator().manual_seed(0)
    x, d0, d1 = torch.randn(3, 1, 4, generator=g, dtype=torch.float64)
    integrator = named("2m")
    state = integrator.step(integrator.start(x, 4.0), d0, 2.0, torch.zeros)
    torch.testing.assert_close(state.x, 0.5 * x + 0.5 * d0)
    h0, h1 = math.log(2), math.log(2 / 0.5)
    r = h0 / h1
    bar = (1 + 1 / (2 * r)) * d1 - d0 / (2 * r)
    decay = math.exp(-h1)
    expected = decay * state.x + (1 - decay) * bar
    torch.testing.assert_close(integrator.step(state, d1, 0.5, torch.zeros).x, expected)


def test_ancestral_chain_keeps_the_prior_variance_and_published_churn_does_not():
    # Gaussian prior of std 1, exact denoiser, no data: variance recursions in closed form.
    levels = karras(1000, 80.0, 0.01)

    def final_std(integrator: ExponentialMultistep) -> float:
        variance = 1 + levels[0] ** 2
        for sigma, sigma_next in pairwise((*levels, 0.0)):
            gain = 1 / (1 + sigma**2)
            std = integrator.std(sigma, sigma_next)
            slope = math.sqrt(sigma_next**2 - std**2) / sigma
            variance = (gain + slope * (1 - gain)) ** 2 * variance + std**2
        return math.sqrt(variance)

    assert final_std(named("ddpm")) == pytest.approx(1, abs=0.01)
    published = ExponentialMultistep(eta=0.85, churn="published")
    limit = math.sqrt((1 + math.sqrt(1 - 0.85**2)) / 2)
    assert final_std(published) == pytest.approx(limit, abs=0.02)


def test_history_follows_a_resampling():
    prior, integrator = mixture(), named("deis3")
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    levels = loguniform(6, 5.0, 0.5)
    ancestors = torch.tensor([5, 5, 0, 2, 3, 3])
    state, moved = integrator.start(x, levels[0]), None
    for sigma, sigma_next in pairwise(levels):
        state = integrator.step(state, prior.denoise(state.x, sigma), sigma_next, torch.zeros)
        if moved is None and sigma_next < 2:
            moved = state.gather(ancestors)
            direct = state.gather(torch.arange(6))
        elif moved is not None:
            moved = integrator.step(moved, prior.denoise(moved.x, sigma), sigma_next, torch.zeros)
            direct = integrator.step(direct, prior.denoise(direct.x, sigma), sigma_next, torch.zeros)
    assert moved is not None
    torch.testing.assert_close(moved.x, direct.x[ancestors])


@pytest.mark.parametrize(
    "settings",
    [{"form": "noise", "eta": 1.0}, {"midpoint": True}, {"order": 2, "churn": "published"}],
)
def test_meaningless_settings_are_refused(settings):
    with pytest.raises(InputError):
        ExponentialMultistep(**settings)


def test_steps_without_a_density_refuse_their_kernel():
    x = torch.zeros(1, 2)
    for integrator in (named("ddim"), named("unipc2")):
        with pytest.raises(InputError, match="density"):
            integrator.kernel(integrator.start(x, 1.0), x, 0.5)
