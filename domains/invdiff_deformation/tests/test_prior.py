"""The Gaussian velocity prior: its law in closed form, its bases, its exact posteriors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from invdiff import GaussianNoise, InputError, Measurement, make_sampler, sample
from invdiff_deformation import flow
from invdiff_deformation.grid import Grid
from invdiff_deformation.jacobian import folded_strict
from invdiff_deformation.operators import Displacements, Transform, observed
from invdiff_deformation.prior import Modes, Spectrum, cosine_basis, sine_basis, velocity

SPACED = Grid((12, 10), np.diag([2.0, 3.0, 1.0, 1.0]))


def synthesis(modes: Modes) -> torch.Tensor:
    """B as a matrix [d * voxels, state], in voxels."""
    eye = torch.eye(modes.event_shape[0], dtype=torch.float64)
    return modes.velocity(eye).flatten(1).mT


@pytest.mark.parametrize("basis", [cosine_basis, sine_basis])
def test_bases_are_orthonormal(basis) -> None:
    found = basis(17, 17)
    assert torch.allclose(found.mT @ found, torch.eye(17, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("boundary", ["reflect", "zero", "slip"])
def test_mean_marginal_variance_is_the_sum_of_the_amplitudes(boundary: str) -> None:
    spectrum = Spectrum(lengths=(4.0, 9.0), voxels=False, boundary=boundary, omitted=1e-9)
    modes = Modes(spectrum, SPACED)
    covariance = synthesis(modes) @ synthesis(modes).mT
    variance = covariance.diagonal().reshape(2, -1)
    expected = sum(a**2 for a in spectrum.amplitudes_mm(SPACED))
    for axis, h in enumerate(SPACED.spacing):
        assert float(variance[axis].mean()) * h**2 == pytest.approx(expected, rel=1e-6)
    assert float(covariance[:120, 120:].abs().max()) < 1e-12  # components are independent


def test_left_out_modes_carry_what_was_allowed() -> None:
    whole, cut = (Modes(Spectrum(omitted=share), SPACED) for share in (1e-9, 0.05))
    kept = float(cut.std.square().sum() / whole.std.square().sum())
    assert cut.count < whole.count and 0.95 <= kept < 1
    rest = Modes(Spectrum(omitted=0.05), SPACED)
    assert kept - float(rest.std[-1] ** 2 / whole.std.square().sum()) < 0.95  # and no mode more than needed


def test_neumann_and_dirichlet_borders() -> None:
    big = Grid((60, 60), np.eye(4))
    modes = Modes(Spectrum(lengths=(20.0,), boundary="zero"), big)
    z = torch.randn(
        (200, *modes.event_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    v = modes.velocity(z)
    assert float(v[:, :, 0].std()) < 0.15 * float(v[:, :, 30].std())
    slip = Modes(Spectrum(lengths=(20.0,), boundary="slip"), big)
    z = torch.randn((200, *slip.event_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = slip.velocity(z)
    assert float(v[:, 0, 0].std()) < 0.15 * float(v[:, 1, 0].std())  # along the border, not through it


def test_default_draws_do_not_fold_and_move_as_far_as_they_should() -> None:
    """On 128 x 128 with strain .57: no folding, mean displacement 5 to 13 voxels."""
    modes = Modes(Spectrum(), Grid((128, 128), np.eye(4)))
    z = torch.randn((4, *modes.event_shape), generator=torch.Generator().manual_seed(0))
    u = flow.exponential(modes.velocity(z), modes.squarings)
    assert not bool(folded_strict(u).any())
    assert 5 < float(u.norm(dim=1).mean()) < 13
    back = flow.compose(u, flow.exponential(-modes.velocity(z), modes.squarings))
    assert float(back.norm(dim=1).mean()) < 0.08


def test_the_affine_part_is_affine() -> None:
    modes = Modes(Spectrum(translation=40.0, linear=30.0), SPACED)
    z = torch.zeros((1, *modes.event_shape), dtype=torch.float64)
    z[0, -6:] = torch.tensor([0.1, 0.0, 0.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    v = modes.velocity(z)[0]
    mm = (torch.arange(10, dtype=torch.float64) - 4.5) * 3.0
    assert torch.allclose(v[0] * 2.0, (4.0 + 0.5 * 0.3 * mm).expand(12, 10))
    assert float(v[1].abs().max()) == 0


@pytest.mark.parametrize("boundary", ["reflect", "slip"])
@pytest.mark.parametrize("control", [1, 2])
def test_values_at_points_are_the_interpolated_field(boundary: str, control: int) -> None:
    spectrum = Spectrum(
        lengths=(6.0,), voxels=False, boundary=boundary, control=control, translation=3.0, linear=5.0
    )
    modes = Modes(spectrum, SPACED)
    points = torch.rand((20, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = points * torch.tensor([11.0, 9.0])
    z = torch.randn((2, *modes.event_shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u = Transform(modes, "displacement").displacement(z)
    expected = flow.sample_at(u, points.mT[None].expand(2, -1, -1)).mT
    found = torch.einsum("ncz,bz->bnc", modes.matrix_at(points), z)
    assert torch.allclose(found, expected, atol=1e-10)


def test_a_finer_grid_carries_the_same_field() -> None:
    """Amplitudes are in mm: halving the spacing leaves the law of the field where it was."""
    spectrum = Spectrum(lengths=(8.0,), voxels=False, omitted=1e-6)
    coarse = Modes(spectrum, Grid((32, 32), np.diag([2.0, 2.0, 1, 1])))
    fine = Modes(spectrum, Grid((64, 64), np.eye(4)))
    assert fine.marginal == pytest.approx(2 * coarse.marginal, rel=1e-3)
    assert fine.count == pytest.approx(coarse.count, rel=0.15)  # Lambda is a difference operator's


@pytest.mark.parametrize(
    "settings",
    [
        {"lengths": []},
        {"lengths": [4, -1]},
        {"strain": 0},
        {"boundary": "mirror"},
        {"kind": "matern"},
        {"omitted": 2},
        {"linear": -1},
        {"amplitudes": [1, 2]},
        {"length": 3},
    ],
)
def test_bad_settings_are_refused(settings) -> None:
    with pytest.raises(InputError):
        velocity(settings)


def exact_problem() -> tuple[Modes, Measurement, torch.Tensor, torch.Tensor, float]:
    """Sub-voxel displacements seen with noise of their own, u = v: moments and evidence by dense algebra."""
    modes = Modes(Spectrum(lengths=(5.0, 12.0), voxels=False, omitted=0.02, translation=2.0), SPACED)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand((9, 2), generator=generator, dtype=torch.float64) * torch.tensor([11.0, 9.0])
    std = 0.2 + 0.3 * torch.rand(9, generator=generator, dtype=torch.float64)
    to_mm = torch.diag(torch.tensor(SPACED.spacing, dtype=torch.float64))
    whitening = torch.eye(2, dtype=torch.float64) / std[:, None, None]
    operator = observed(Transform(modes, "displacement"), [Displacements(points, to_mm, whitening)])
    assert operator.linear
    y = operator(torch.randn((1, *modes.event_shape), generator=generator, dtype=torch.float64))[0]
    y = y + torch.randn(y.shape, generator=generator, dtype=torch.float64)
    measurement = Measurement(operator, GaussianNoise(1.0), y)
    exact = modes.prior.posterior(operator, y, 1.0)
    return modes, measurement, exact.mean, exact.covariance, exact.log_evidence


def test_the_exact_posterior_against_another_route() -> None:
    """`Gamma H^T (H Gamma H^T + R)^-1 y` on the grid, against the posterior over states."""
    modes, measurement, mean, covariance, _ = exact_problem()
    b = synthesis(modes)
    matrix = measurement.operator(torch.eye(len(mean), dtype=torch.float64)).mT
    gamma = b @ b.mT
    h = torch.linalg.lstsq(b.mT, matrix.mT, driver="gelsd").solution.mT  # H B = A
    gain = gamma @ h.mT @ torch.linalg.inv(h @ gamma @ h.mT + torch.eye(len(h)))
    assert torch.allclose(b @ mean, gain @ measurement.y, atol=1e-8)
    assert torch.allclose(b @ covariance @ b.mT, gamma - gain @ h @ gamma, atol=1e-7)


@pytest.mark.parametrize(
    "name, settings, exact",
    [
        ("tempered", {"particles": 400, "keep": 400}, True),
        ("tempered", {"particles": 400, "keep": 400, "sweeps": 0}, True),
        (
            "moment_matching",
            {"steps": 60, "sigma_max": 10.0, "eta": 1.0, "iterations": 60, "tolerance": 1e-6},
            True,
        ),
        ("daps", {"steps": 100, "sigma_max": 10.0}, True),
        ("split_gibbs", {}, True),
        ("dps", {"steps": 60, "sigma_max": 10.0}, False),
    ],
)
def test_samplers_on_the_exact_posterior(name: str, settings: dict, exact: bool) -> None:
    """400 draws: the mean's squared distance over its expectation, and the spread along the data.

    z of the mean under the exact law has 2 chi2 degrees a component; 99.99 % limits. DPS is flagged.
    """
    modes, measurement, mean, covariance, _ = exact_problem()
    sampler = make_sampler(name, modes.prior.card, **settings)
    x = sample(
        modes.prior,
        measurement,
        modes.event_shape,
        sampler=sampler,
        samples=400,
        batch=400,
        dtype=torch.float64,
    ).samples
    values, vectors = torch.linalg.eigh(covariance)
    z = (x - mean) @ vectors / values.sqrt()
    size = len(mean)
    distance = 400 * float(z.mean(0).square().sum())
    spread = float(z.square().mean())
    found = (
        abs(distance - size) < 4.5 * math.sqrt(2 * size) + 5,
        abs(spread - 1) < 4.5 * math.sqrt(2 / (400 * size)) + 0.03,
    )
    assert (all(found)) == exact, (name, distance, size, spread)


@pytest.mark.parametrize("boundary", ["reflect", "zero", "slip"])
def test_what_the_data_see_of_a_coordinate_is_its_velocity_squared(boundary: str) -> None:
    """In mm^2 over the control grid, anisotropic spacing, affine part included."""
    grid = Grid((16, 12), np.diag([1.5, 2.0, 1.0, 1.0]))
    state = Modes(Spectrum(lengths=(4.0,), omitted=0.1, boundary=boundary, translation=3.0, linear=5.0), grid)
    v = state.velocity(torch.eye(state.event_shape[0], dtype=torch.float64))
    h = torch.tensor(grid.spacing, dtype=torch.float64).reshape(1, 2, 1, 1)
    assert torch.allclose((v * h).square().sum((1, 2, 3)), state.seen.double(), rtol=1e-5)
