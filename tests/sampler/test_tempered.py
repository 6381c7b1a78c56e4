"""Tempered particles against posteriors in closed form or by quadrature, and their pieces."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from invdiff.api import make_sampler, sample
from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import FunctionOperator, MatrixOperator
from invdiff.prior.gaussian import GaussianPrior
from invdiff.prior.mixture import GaussianMixture
from invdiff.sampler import feynman_kac, tempered
from invdiff.sampler.mode import curvature_at, gauss_newton, posterior_mode, standard, unwhiten
from invdiff.sampler.tempered import Bridge, State, Tempered, hamiltonian_move
from invdiff.sampler.weighting.target import Target

DIM, DATA, SIGMA = 12, 5, 0.2
CPU = torch.device("cpu")


def gaussian_problem() -> tuple[GaussianPrior, Measurement]:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn((DIM, DIM), generator=generator, dtype=torch.float64)
    prior = GaussianPrior.dense(torch.linspace(-1, 1, DIM, dtype=torch.float64), root @ root.mT / DIM)
    matrix = torch.randn((DATA, DIM), generator=generator, dtype=torch.float64)
    y = torch.randn(DATA, generator=generator, dtype=torch.float64)
    return prior, Measurement(MatrixOperator(matrix), GaussianNoise(SIGMA), y)


def target_of(prior: GaussianPrior, measurement: Measurement) -> Target:
    return Target(prior, measurement, tuple(prior.mean.shape), CPU, torch.float64)


def curved() -> tuple[GaussianPrior, Measurement, Tensor, float]:
    """A banana in two dimensions: its mean and log p(y) by quadrature."""
    prior = GaussianPrior.diagonal(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    operator = FunctionOperator(
        lambda x: torch.stack([x[:, 0] + x[:, 1] ** 2, x[:, 1] + 0.3 * x[:, 0]], dim=1)
    )
    measurement = Measurement(operator, GaussianNoise(0.3), torch.tensor([1.2, 0.3], dtype=torch.float64))
    axis = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    logs = prior.log_density(points) + measurement.log_likelihood(points)
    weights = (logs - logs.max()).exp()
    log_evidence = float(logs.max() + weights.sum().log() + 2 * math.log(12 / 1200))
    return prior, measurement, (weights[:, None] * points).sum(0) / weights.sum(), log_evidence


def test_mode_and_curvature_of_a_gaussian_are_its_posterior() -> None:
    prior, measurement = gaussian_problem()
    exact = prior.posterior(measurement.operator, measurement.y, SIGMA)
    z = posterior_mode(prior, [measurement], (DIM,), iterations=200, dtype=torch.float64)
    assert torch.allclose(unwhiten(prior, z[None])[0], exact.mean, atol=1e-5)
    found = curvature_at(
        lambda z: -measurement.log_likelihood(unwhiten(prior, z)), z, DIM, torch.Generator().manual_seed(0)
    )
    root = unwhiten(prior, found(torch.eye(DIM, dtype=torch.float64))) - unwhiten(prior, z[None])
    assert torch.allclose(root.mT @ root, exact.covariance, atol=1e-9)


def test_a_mode_in_scaled_coordinates_is_the_same_and_is_found_sooner() -> None:
    """Coordinates that the data see by factors of 1 to 1e4: 20 iterations with `seen`, against 20 without."""
    generator = torch.Generator().manual_seed(0)
    reach = torch.logspace(0, 2, 60, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn((60, 60), generator=generator, dtype=torch.float64))
    matrix = turn * reach
    y = torch.randn(60, generator=generator, dtype=torch.float64)
    prior = GaussianPrior.diagonal(torch.zeros(60, dtype=torch.float64), torch.ones(60, dtype=torch.float64))
    measurement = Measurement(FunctionOperator(lambda x: (x @ matrix.mT).sinh()), GaussianNoise(1.0), y)
    exact = posterior_mode(prior, [measurement], (60,), iterations=4000, dtype=torch.float64)
    errors = [
        float(
            (
                posterior_mode(prior, [measurement], (60,), iterations=20, seen=seen, dtype=torch.float64)
                - exact
            ).norm()
        )
        for seen in (reach**2, None)
    ]
    assert errors[0] < 1e-3 * float(exact.norm()) and errors[0] < 0.1 * errors[1]


def test_a_cut_curvature_has_the_largest_eigenvalues() -> None:
    prior, measurement = gaussian_problem()

    def potential(z: Tensor) -> Tensor:
        return -measurement.log_likelihood(unwhiten(prior, z))

    generator = torch.Generator().manual_seed(0)
    z = torch.zeros(DIM, dtype=torch.float64)
    whole = curvature_at(potential, z, DIM, generator)
    cut = curvature_at(potential, z, 2, generator, rounds=6)
    assert len(cut.values) == 2
    assert torch.allclose(cut.values, whole.values.sort(descending=True).values[:2], rtol=1e-6)


def test_exact_on_linear_gaussian_problems() -> None:
    """The reference is the posterior: one power, equal weights, the evidence to rounding.

    False alarms: means at 4.5 standard errors in 12 components, 1e-4.
    """
    prior, measurement = gaussian_problem()
    exact = prior.posterior(measurement.operator, measurement.y, SIGMA)
    sampler = make_sampler("tempered", prior.card, particles=2000, keep=2000, rank=DIM, iterations=300)
    drawn = sample(prior, measurement, (DIM,), sampler=sampler, samples=2000, dtype=torch.float64)
    assert drawn.log_evidence == pytest.approx(exact.log_evidence, abs=1e-4)
    standard_error = exact.covariance.diagonal().sqrt() / 2000**0.5
    assert float(((drawn.mean - exact.mean) / standard_error).abs().max()) < 4.5
    ratio = drawn.samples.var(dim=0) / exact.covariance.diagonal()
    assert float((ratio - 1).abs().max()) < 4.5 * (2 / 2000) ** 0.5


def test_without_sweeps_linear_gaussian_problems_are_exact() -> None:
    """Mean and covariance of 1000 draws, solved to the end; no evidence, and no claim beyond this.

    False alarms: 12 means and 78 entries of the whitened covariance at 4.5 standard errors, 6e-4.
    """
    prior, measurement = gaussian_problem()
    exact = prior.posterior(measurement.operator, measurement.y, SIGMA)
    vars(measurement.operator)["seen"] = torch.logspace(0, 2, DIM, dtype=torch.float64)
    settings = {"particles": 1000, "keep": 1000, "sweeps": 0, "rank": 60, "iterations": 300}
    drawn = sample(
        prior, measurement, (DIM,), sampler="tempered", samples=1000, dtype=torch.float64, **settings
    )
    assert drawn.claim == "heuristic" and drawn.log_evidence is None
    root = torch.linalg.cholesky(exact.covariance)
    w = torch.linalg.solve_triangular(root, (drawn.samples - exact.mean).mT, upper=False)
    assert float(w.mean(dim=1).abs().max()) < 4.5 / 1000**0.5
    error = (w @ w.mT / 1000 - torch.eye(DIM, dtype=torch.float64)).abs()
    assert float(error.fill_diagonal_(0).max()) < 4.5 / 1000**0.5
    assert float((w.square().mean(dim=1) - 1).abs().max()) < 4.5 * (2 / 1000) ** 0.5


def test_where_the_data_say_nothing_few_products_are_enough() -> None:
    """60 coordinates, 3 of them measured: after 3 products the draws are those of 60, scaled or not."""
    prior = GaussianPrior.diagonal(torch.zeros(60, dtype=torch.float64), torch.ones(60, dtype=torch.float64))
    matrix = torch.zeros((3, 60), dtype=torch.float64)
    matrix[[0, 1, 2], [0, 20, 40]] = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)
    measurement = Measurement(MatrixOperator(matrix), GaussianNoise(1.0), torch.zeros(3, dtype=torch.float64))
    z, found = torch.zeros(60, dtype=torch.float64), []
    for products, seen in ((60, None), (3, None), (4, torch.logspace(0, 3, 60, dtype=torch.float64))):
        law = gauss_newton(prior, measurement, z, "tempered", products, seen)
        found.append(law.draws(4, torch.Generator().manual_seed(0)))
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("reference", ["laplace", "prior"])
def test_consistent_on_a_curved_posterior(reference: str) -> None:
    """Mean and evidence by quadrature, 40 filters of 64, within 3.9 standard errors (1e-4 each)."""
    prior, measurement, mean, log_evidence = curved()
    method = Tempered(reference=reference, sweeps=3, leapfrogs=4, pilot=32)
    model = method.model(target_of(prior, measurement), torch.Generator().manual_seed(0))
    ratios, means = [], []
    for seed in range(40):
        done = feynman_kac.run(model, feynman_kac.Settings(64), torch.Generator().manual_seed(seed))
        ratios.append(math.exp(done.log_evidence - log_evidence))
        x = model.state(done.particles)
        means.append((done.weights[:, None] * x).sum(0) * ratios[-1])
    ratio = torch.tensor(ratios, dtype=torch.float64)
    assert abs(float(ratio.mean()) - 1) < 3.9 * float(ratio.std()) / 40**0.5
    error = torch.stack(means) - ratio[:, None] * mean
    assert float((error.mean(0) / error.std(0) * 40**0.5).abs().max()) < 3.9


def test_moves_keep_their_law_and_without_acceptance_they_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that can fail: 1000 chains to the mean by quadrature, then with every proposal accepted."""
    prior, measurement, mean, _ = curved()
    reference = standard((2,), torch.float64, CPU)
    bridge = Bridge(target_of(prior, measurement), prior, reference, chunk=1000)

    def error(step: float) -> float:
        generator = torch.Generator().manual_seed(0)
        state = bridge.evaluated(torch.randn((1000, 2), generator=generator, dtype=torch.float64))
        for _ in range(80):
            state, _, _ = hamiltonian_move(bridge, state, 1.0, step, 3, generator)
        x = bridge.x(state.w)
        return float(((x.mean(0) - mean) / (x.std(0) / 1000**0.5)).abs().max())

    assert error(0.1) < 4.5
    monkeypatch.setattr(tempered, "choose", lambda mask, first, second: first)
    assert not error(0.4) < 10


def test_hamiltonian_moves_are_reversible_and_leave_a_flat_likelihood_alone() -> None:
    prior, measurement, _, _ = curved()
    bridge = Bridge(target_of(prior, measurement), prior, standard((2,), torch.float64, CPU))
    w = torch.tensor([[0.3, -0.8]], dtype=torch.float64)
    p = torch.tensor([[1.1, 0.4]], dtype=torch.float64)

    def flowed(state: State, p: Tensor) -> tuple[State, Tensor]:
        for _ in range(5):
            p = p - 0.05 * state.gradient
            w, p = math.cos(0.1) * state.w + math.sin(0.1) * p, math.cos(0.1) * p - math.sin(0.1) * state.w
            state = bridge.evaluated(w)
            p = p - 0.05 * state.gradient
        return state, p

    ahead, speed = flowed(bridge.evaluated(w), p)
    back, speed = flowed(ahead, -speed)
    assert torch.allclose(back.w, w, atol=1e-10) and torch.allclose(-speed, p, atol=1e-10)
    state = bridge.evaluated(
        torch.randn((50, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    _, moved, chance = hamiltonian_move(bridge, state, 0.0, 0.7, 4, torch.Generator().manual_seed(2))
    assert bool(moved.all()) and float((1 - chance).abs().max()) < 1e-12


def test_powers_rise_to_one_and_keep_the_share() -> None:
    psi = 200 * torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    power = tempered.next_power(psi, 0.0, 0.6)
    logs = -power * psi
    weights = (logs - logs.max()).exp()
    assert float(weights.sum() ** 2 / weights.square().sum() / 500) == pytest.approx(0.6, abs=0.01)
    assert tempered.next_power(1e-6 * psi, 0.3, 0.6) == 1.0


def test_refusals() -> None:
    _, measurement = gaussian_problem()
    mixture = GaussianMixture(torch.ones(2), torch.zeros(2, DIM), torch.ones(2, 1))
    with pytest.raises(InputError, match="needs a Gaussian prior"):
        sample(mixture, measurement, (DIM,), sampler="tempered", samples=1)
    with pytest.raises(InputError, match="reference"):
        Tempered(reference="mode")
    with pytest.raises(InputError, match="pilot"):
        Tempered(pilot=1)
    with pytest.raises(InputError, match="must be laplace"):
        Tempered(sweeps=0, reference="prior")
    assert replace(Tempered(), rank=3).rank == 3
