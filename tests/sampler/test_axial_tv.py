"""Coupling of slices: the ADMM sweep against solutions that are known, and the samplers that use it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import LinearFunctions
from invdiff.prior.gaussian import GaussianPrior
from invdiff.prior.slicewise import SlicewisePrior
from invdiff.sampler.axial_tv import AxialTV, difference, difference_adjoint
from invdiff.sampler.diffusion_mbir import DiffusionMBIR
from invdiff.sampler.keys import ParticleNoise, stream
from invdiff.sampler.loop import require_supported
from invdiff.sampler.plug_and_play import PlugAndPlay
from invdiff.sampler.schedule import loguniform

SHAPE = (5, 1, 4, 6)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=stream(seed, 3), dtype=torch.float64)


def masked(mask: Tensor, sigma: float, y: Tensor) -> Measurement:
    operator = LinearFunctions(lambda x: x * mask, lambda y: y * mask)
    return Measurement(operator, GaussianNoise(sigma), y * mask)


def slices(std: float = 0.3) -> SlicewisePrior:
    spectrum = torch.full((4, 6), std**2, dtype=torch.float64)
    return SlicewisePrior(GaussianPrior.circulant(torch.zeros(1, 4, 6, dtype=torch.float64), spectrum), 2)


@pytest.mark.parametrize("periodic", [False, True])
def test_the_difference_and_its_adjoint(periodic: bool) -> None:
    x = draw(2, *SHAPE)
    d = draw(2, *difference(x, periodic).shape[1:], seed=1)
    torch.testing.assert_close(
        (difference(x, periodic) * d).sum(), (x * difference_adjoint(d, periodic)).sum()
    )
    assert difference(x, periodic).shape[1] == (5 if periodic else 4)


def sweeps(coupling: AxialTV, measurement: Measurement, center: Tensor, gamma: float, count: int) -> Tensor:
    data = measurement.operator.adjoint(measurement.y[None])  # type: ignore[attr-defined]
    state = coupling.begin(center)
    x = center
    for _ in range(count):
        x = coupling.sweep(
            measurement, center, gamma, state, data=data, norm2=1.0, iterations=80, tolerance=1e-12
        )
    return x


def test_no_coupling_is_the_proximal_step() -> None:
    mask = (draw(*SHAPE, seed=2) > 0).double()
    measurement, center = masked(mask, 0.1, draw(*SHAPE, seed=4)), draw(2, *SHAPE)
    plain = measurement.proximal(center, 3.0, iterations=80, tolerance=1e-12).x
    torch.testing.assert_close(sweeps(AxialTV(0.0), measurement, center, 3.0, 1), plain)


def test_a_large_threshold_leaves_one_slice() -> None:
    """tau above every jump keeps d = 0: the dual grows until all slices are one, the mean over z."""
    measurement, center = (
        masked(torch.zeros(SHAPE).double(), 1.0, torch.zeros(SHAPE).double()),
        draw(1, *SHAPE),
    )
    x = sweeps(AxialTV(rho=2.0, tau=100.0), measurement, center, 1.0, 400)
    torch.testing.assert_close(x, center.mean(dim=1, keepdim=True).expand_as(center), atol=1e-6, rtol=0)


def test_many_sweeps_solve_the_total_variation_problem() -> None:
    """The limit satisfies the optimality conditions of .5 |x - c|^2 + lambda |D x|_1, lambda = rho tau.

    x - c = -D^T p with |p| <= lambda, and p = lambda sign(D x) where D x is not zero.
    """
    measurement, center = (
        masked(torch.zeros(SHAPE).double(), 1.0, torch.zeros(SHAPE).double()),
        draw(1, *SHAPE),
    )
    rho, tau = 0.7, 0.5
    x = sweeps(AxialTV(rho, tau), measurement, center, 1.0, 2000)
    # D D^T is invertible with a free end: p from D (c - x) = D D^T p, pixel by pixel along z.
    size = SHAPE[0] - 1
    gram = 2 * torch.eye(size, dtype=torch.float64)
    gram -= torch.diag(torch.ones(size - 1, dtype=torch.float64), 1)
    gram -= torch.diag(torch.ones(size - 1, dtype=torch.float64), -1)
    p = torch.linalg.solve(gram, difference(center - x).reshape(size, -1))
    jumps = difference(x).reshape(size, -1)
    torch.testing.assert_close(
        difference_adjoint(p.reshape(1, size, *SHAPE[1:])), center - x, atol=1e-7, rtol=0
    )
    limit = rho * tau
    assert float(p.abs().max()) <= limit + 1e-6
    moved = jumps.abs() > 1e-5
    torch.testing.assert_close(p[moved], limit * jumps[moved].sign(), atol=1e-5, rtol=0)
    assert 0.1 < float(moved.double().mean()) < 0.9


def test_slicewise_is_the_prior_of_every_slice_in_any_batch() -> None:
    prior, x = slices(), draw(3, *SHAPE)
    whole = prior.denoise(x, 0.2)
    for z in range(SHAPE[0]):
        torch.testing.assert_close(whole[:, z], prior.prior.denoise(x[:, z], 0.2))
    for batch in (1, 4, 100, None):
        torch.testing.assert_close(SlicewisePrior(prior.prior, batch).denoise(x, 0.2), whole)
    levels = torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)
    torch.testing.assert_close(prior.denoise(x, levels)[1], whole[1])
    with pytest.raises(InputError, match="no slice"):
        SlicewisePrior(prior.prior, 0)


def test_the_spread_of_diffusion_mbir_without_data_is_that_of_its_recursion() -> None:
    """A Gaussian prior of std s, nothing measured, no coupling: with w = s^2 / (s^2 + sigma^2),

        var' = (w + sigma' sqrt(1 - eta^2) (1 - w) / sigma)^2 var + (sigma' eta)^2

    from s^2 + sigma_0^2: far below s^2, which is why the method is called a heuristic. 4000 components: the
    relative standard error of a variance is .022; five of them are a false alarm in two million.
    """
    s, eta = 0.3, 0.85
    levels = loguniform(20, 5.0, 0.01)
    nothing = masked(torch.zeros(SHAPE).double(), 1.0, torch.zeros(SHAPE).double())
    sampler = DiffusionMBIR(levels, rho=0.0, eta=eta)
    noise = ParticleNoise(0, range(34), dtype=torch.float64)
    x = sampler(slices(s), nothing, SHAPE, noise).x
    variance = s**2 + levels[0] ** 2
    for sigma, after in zip(levels, (*levels[1:], 0.0), strict=True):
        w = s**2 / (s**2 + sigma**2)
        # The last step goes to D itself.
        slope = w + after * math.sqrt(1 - eta**2) * (1 - w) / sigma
        variance = slope**2 * variance + (after * eta) ** 2
    assert float(x.var()) == pytest.approx(variance, rel=0.11)
    assert variance < 0.9 * s**2


def test_shared_noise_keeps_equal_slices_equal() -> None:
    nothing = masked(torch.zeros(SHAPE).double(), 1.0, torch.zeros(SHAPE).double())
    for shared in (True, False):
        sampler = DiffusionMBIR(loguniform(8, 5.0, 0.01), rho=0.0, shared_noise=shared)
        x = sampler(slices(), nothing, SHAPE, ParticleNoise(0, [0], dtype=torch.float64)).x
        assert bool(torch.allclose(x[:, 0], x[:, 3])) == shared


@pytest.mark.parametrize("kind", ["mbir", "plug_and_play"])
def test_coupling_helps_where_slices_are_alike(kind: str) -> None:
    """Equal slices, each with other pixels missing: with the coupling their error falls by half or more."""
    truth = 0.3 * draw(1, 1, 4, 6, seed=6).expand(SHAPE)
    mask = (draw(*SHAPE, seed=7) > 0).double()
    measurement = masked(mask, 0.01, truth + 0.01 * draw(*SHAPE, seed=8))

    def error(rho: float) -> float:
        levels = loguniform(30, 0.6, 0.01)
        sampler = (
            DiffusionMBIR(levels, rho=rho, tau=0.02, eta=0.0)
            if kind == "mbir"
            else PlugAndPlay(levels, rho=rho, tau=0.02, cg=20)
        )
        x = sampler(slices(), measurement, SHAPE, ParticleNoise(0, [0], dtype=torch.float64)).x[0]
        return float((x - truth).square().mean())

    assert error(0.02) < 0.5 * error(0.0)


def test_a_sample_is_the_same_alone_or_among_many() -> None:
    mask = (draw(*SHAPE, seed=2) > 0).double()
    measurement = masked(mask, 0.1, draw(*SHAPE, seed=4))
    sampler = DiffusionMBIR(loguniform(6, 2.0, 0.05), tau=0.1, rho=0.1)
    many = sampler(slices(), measurement, SHAPE, ParticleNoise(0, [0, 1, 2], dtype=torch.float64)).x
    alone = sampler(slices(), measurement, SHAPE, ParticleNoise(0, [1], dtype=torch.float64)).x
    torch.testing.assert_close(many[1], alone[0], atol=1e-12, rtol=0)


def test_refusals() -> None:
    levels = loguniform(4, 1.0, 0.1)
    measurement = masked(torch.ones(6).double(), 0.1, draw(6))
    for sampler in (DiffusionMBIR(levels), PlugAndPlay(levels, rho=0.1)):
        with pytest.raises(InputError, match="couples the slices"):
            require_supported(sampler, measurement, (6,))
    for settings in ({"rho": -1.0}, {"tau": -0.1}, {"cg": 0}, {"eta": 1.5}, {"gamma": 0.0}):
        with pytest.raises(InputError):
            DiffusionMBIR(levels, **settings)
