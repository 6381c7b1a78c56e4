"""Warps, compositions, exponentials and Jacobians of maps that are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import InputError
from invdiff_deformation import flow
from invdiff_deformation.grid import Grid, between
from invdiff_deformation.jacobian import folded_strict, jacobian


def linear_field(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A (x - centre), in voxels."""
    centre = (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    x = flow.identity(shape, torch.float64) - centre.reshape(-1, *([1] * len(shape)))
    return torch.einsum("ij,j...->i...", matrix, x)[None]


def near_centre(field: Tensor, reach: int) -> Tensor:
    for axis, n in enumerate(field.shape[2:], 2):
        field = field.narrow(axis, n // 2 - reach, 2 * reach)
    return field


def test_a_shift_moves_rows_and_only_rows() -> None:
    image = torch.arange(30.0).reshape(1, 1, 5, 6)
    u = torch.zeros(1, 2, 5, 6)
    u[:, 0] = 1
    assert torch.equal(flow.warp(image, u)[0, 0, :4], image[0, 0, 1:])
    assert torch.equal(flow.warp(image, u)[0, 0, 4], image[0, 0, 4])  # the border is repeated
    assert float(flow.warp(image, u, padding="zeros")[0, 0, 4].abs().max()) == 0


def test_warp_is_monais() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks.blocks import Warp

        for shape in ((12, 15), (8, 9, 10)):
            generator = torch.Generator().manual_seed(0)
            image = torch.rand((2, 3, *shape), generator=generator)
            u = 2 * torch.randn((2, len(shape), *shape), generator=generator)
            theirs = Warp("bilinear", "border")(image, u)
            assert torch.allclose(flow.warp(image, u), theirs, atol=1e-5)


def test_a_constant_velocity_is_exact() -> None:
    v = torch.full((1, 2, 20, 24), 3.0, dtype=torch.float64)
    for squarings in (4, 8):
        assert torch.allclose(flow.exponential(v, squarings), v, atol=1e-10)


@pytest.mark.parametrize("d", [2, 3])
def test_a_linear_velocity_is_the_power_of_its_first_step(d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    matrix = 0.3 * torch.randn((d, d), generator=generator, dtype=torch.float64) / math.sqrt(d)
    shape = (41, 45, 43)[:d]
    v = linear_field(matrix, shape)
    eye = torch.eye(d, dtype=torch.float64)
    errors = []
    for squarings in (4, 6, 8):
        u = near_centre(flow.exponential(v, squarings), 6)
        power = torch.linalg.matrix_power(eye + matrix / 2**squarings, 2**squarings) - eye
        assert torch.allclose(u, near_centre(linear_field(power, shape), 6), atol=1e-9)
        limit = near_centre(linear_field(torch.linalg.matrix_exp(matrix) - eye, shape), 6)
        errors.append(float((u - limit).abs().max()))
    assert errors[0] / errors[2] == pytest.approx(16, rel=0.1)  # 2^-K


def test_a_rotation_and_its_inverse() -> None:
    angle = 0.4
    matrix = torch.tensor([[0.0, -angle], [angle, 0.0]], dtype=torch.float64)
    v = linear_field(matrix, (61, 61))
    u = flow.exponential(v, 12)
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
    )
    expected = linear_field(turn - torch.eye(2, dtype=torch.float64), (61, 61))
    assert torch.allclose(near_centre(u, 12), near_centre(expected, 12), atol=2e-3)
    back = flow.compose(u, flow.exponential(-v, 12))
    assert float(near_centre(back, 12).abs().max()) < 3e-3
    assert torch.allclose(
        near_centre(jacobian(u)[:, None], 12), torch.ones(1, dtype=torch.float64), atol=1e-3
    )


@pytest.mark.parametrize("d", [2, 3])
def test_jacobian_of_a_scaling(d: int) -> None:
    u = linear_field(0.25 * torch.eye(d, dtype=torch.float64), (9, 10, 11)[:d])
    assert torch.allclose(jacobian(u), torch.tensor(1.25**d, dtype=torch.float64))
    assert not bool(folded_strict(u).any())
    assert bool(
        folded_strict(linear_field(-1.5 * torch.eye(d, dtype=torch.float64), (9, 9, 9)[:d])).any()
    ) == (d == 3)


def test_a_checkerboard_fold_is_seen_by_the_strict_test_alone() -> None:
    """Every other voxel jumps over its neighbour: central differences skip it."""
    u = torch.zeros(1, 2, 10, 10)
    u[:, 0, 1::2] = 1.2
    assert float(jacobian(u)[:, 1:-1].min()) > 0
    assert bool(folded_strict(u).any())


def test_squarings_depend_on_the_prior_alone() -> None:
    assert [flow.squarings_for(s) for s in (0.01, 1.0, 7.4, 100.0, 1e6)] == [4, 4, 7, 10, 12]


def test_samples_do_not_see_each_other() -> None:
    v = 3 * torch.randn((3, 2, 16, 18), generator=torch.Generator().manual_seed(0))
    whole = flow.exponential(v, 6)
    for k in range(3):
        assert torch.equal(flow.exponential(v[k : k + 1], 6)[0], whole[k])


def test_second_derivatives_of_an_exponential() -> None:
    """Vector-Jacobian and Hessian products that the Laplace approximation needs."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn((1, 2, 6, 7), generator=generator, dtype=torch.float64).requires_grad_()

    def loss(v: Tensor) -> Tensor:
        return flow.exponential(v, 3).square().sum(dim=1)

    assert torch.autograd.gradcheck(loss, (v,))
    assert torch.autograd.gradgradcheck(loss, (v,))


def affine_of(turn: np.ndarray, spacing: tuple[float, ...], origin: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def oblique(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def test_grids_of_other_spacing_flips_and_angles_meet_in_the_world() -> None:
    fixed = Grid((20, 22, 18), affine_of(oblique(0.3), (1.5, 2.0, 3.0), (10, -20, 5)))
    moving = Grid(
        (30, 30, 40), affine_of(oblique(-0.2) @ np.diag([-1, 1, 1]), (1.0, 1.7, 1.2), (40, -30, -10))
    )
    matrix = between(fixed, moving)
    voxels = np.random.default_rng(0).uniform(0, 17, (50, 3))
    there = voxels @ matrix[:, :3].T + matrix[:, 3]
    assert np.allclose(moving.world(there), fixed.world(voxels))
    u = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 3, 4, 4, 4)))
    assert np.allclose(fixed.mm(u)[0, :, 1, 2, 3].numpy(), fixed.affine[:3, :3] @ u[0, :, 1, 2, 3].numpy())
    assert fixed.spacing == pytest.approx((1.5, 2.0, 3.0))


def test_images_apart_and_planes_apart_are_refused() -> None:
    near = Grid((10, 10, 10), np.eye(4))
    far = Grid((10, 10, 10), affine_of(np.eye(3), (1, 1, 1), (50, 0, 0)))
    with pytest.raises(InputError, match="do not overlap"):
        between(near, far)
    plane, other = Grid((10, 10), np.eye(4)), Grid((10, 10), affine_of(np.eye(3), (1, 1, 1), (0, 0, 5)))
    with pytest.raises(InputError, match="slice distances apart"):
        between(plane, other)
    with pytest.raises(InputError, match="axes"):
        between(near, plane)
