"""The MR operator: the contract, the FFT's conventions, the resolvent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from invdiff import InputError
from invdiff.measurement.contract import check_operator
from invdiff.measurement.linear import operator_norm
from invdiff_mri.coils import espirit, normalised, simulate_coils
from invdiff_mri.masks import SIMULATED, MaskSettings, make_mask
from invdiff_mri.operators import CartesianSense, to_image, to_kspace, to_real
from tests.data import shared


def random_maps(coils: int, height: int, width: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return normalised(torch.randn(coils, height, width, generator=g, dtype=torch.complex64))


@pytest.mark.parametrize("shape", [(16, 18), (17, 20), (15, 13)])
@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("name", ["random", "equispaced", "gaussian1d", "radial_cartesian"])
def test_contract(name, coils, shape):
    mask = make_mask(shape, MaskSettings(name, 2.0))
    operator = CartesianSense(mask, random_maps(coils, *shape))
    failed = [check for check in check_operator(operator, (2, *shape)) if not check.passed]
    assert failed == []


def test_fft_of_a_centred_delta_is_flat_and_real():
    for shape in ((8, 8), (7, 9)):
        delta = torch.zeros(shape, dtype=torch.complex128)
        delta[shape[0] // 2, shape[1] // 2] = 1
        expected = torch.full(shape, 1 / math.sqrt(shape[0] * shape[1]), dtype=torch.complex128)
        torch.testing.assert_close(to_kspace(delta), expected)


def test_a_shift_is_a_linear_phase_of_the_right_sign():
    shape = (9, 8)
    g = torch.Generator().manual_seed(0)
    image = torch.randn(shape, generator=g, dtype=torch.complex128)
    shifted = torch.roll(image, 1, 1)
    k = torch.arange(8).double() - 4
    phase = torch.exp(-2j * math.pi * k / 8)
    torch.testing.assert_close(to_kspace(shifted), to_kspace(image) * phase)
    torch.testing.assert_close(to_image(to_kspace(image)), image)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("coils", [1, 4])
def test_resolvent(axis, coils):
    mask = make_mask((24, 20), MaskSettings("equispaced", 3.0, axis=axis))
    operator = CartesianSense(mask, random_maps(coils, 24, 20))
    x = torch.randn(2, 2, 24, 20, generator=torch.Generator().manual_seed(0))
    for gamma in (0.1, 50.0):
        solved = operator.resolvent(x, gamma)
        assert solved is not None
        torch.testing.assert_close(solved + gamma * operator.normal(solved), x, atol=2e-4, rtol=1e-4)


def test_resolvent_declines_what_it_cannot_do():
    disc = make_mask((24, 24), MaskSettings("radial_cartesian", 3.0))
    operator = CartesianSense(disc, random_maps(4, 24, 24))
    assert operator.resolvent(torch.zeros(1, 2, 24, 24), 1.0) is None


def test_norm_is_at_most_one():
    operator = CartesianSense(make_mask((32, 32), MaskSettings("random", 4.0)), simulate_coils(8, 32, 32))
    assert 0.9 < operator_norm(operator.normal, (2, 32, 32)) <= 1.0 + 1e-5


def test_bad_masks_are_refused():
    maps = random_maps(2, 16, 16)
    with pytest.raises(InputError, match="no sample at all"):
        CartesianSense(torch.zeros(16, 16, dtype=torch.bool), maps)
    with pytest.raises(InputError, match="shape"):
        CartesianSense(torch.ones(16, 15, dtype=torch.bool), maps)


@pytest.mark.parametrize("name", SIMULATED)
@pytest.mark.parametrize("acceleration", [2.0, 4.0])
def test_masks(name, acceleration):
    settings = MaskSettings(name, acceleration, calibration=12, exact_count=True)
    mask = make_mask((64, 64), settings)
    assert torch.equal(mask, make_mask((64, 64), settings))
    effective = mask.numel() / int(mask.sum())
    assert abs(effective / acceleration - 1) < 0.12
    assert bool(mask[30:35, 31:34].all())


def test_bernoulli_count_is_within_three_standard_deviations():
    # 200 masks of 256 lines at 4x: the mean count within 3 standard errors of 64.
    counts = [
        int(make_mask((2, 256), MaskSettings("random", 4.0, seed=seed))[0].sum()) for seed in range(200)
    ]
    spread = math.sqrt(236 * (44 / 236) * (192 / 236) / 200)
    assert abs(np.mean(counts) - 64) < 3.3 * spread


@pytest.mark.parametrize("acceleration", [0.5, 65.0])
def test_impossible_accelerations_are_refused(acceleration):
    with pytest.raises(InputError, match="acceleration"):
        make_mask((64, 64), MaskSettings("random", acceleration))


def test_unknown_mask_names_its_neighbour():
    with pytest.raises(InputError, match="did you mean 'equispaced'"):
        make_mask((64, 64), MaskSettings("equispace", 4.0))


def synthetic_kspace(coils: int = 6, side: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    axis = torch.linspace(-1, 1, side)
    disc = ((axis[:, None] / 0.7) ** 2 + (axis[None] / 0.8) ** 2 < 1).float()
    image = disc * (0.6 + 0.4 * torch.sin(4 * axis[:, None]) * torch.cos(5 * axis[None]))
    maps = simulate_coils(coils, side, side)
    return to_kspace(maps * image), maps


def test_espirit_recovers_known_maps():
    kspace, maps = synthetic_kspace()
    found = espirit(kspace, (24, 24))
    inside = found.support & (to_image(kspace).abs().square().sum(0).sqrt() > 0.2)
    agreement = (found.maps.conj() * maps).sum(0).abs()[inside]
    assert float(inside.float().mean()) > 0.2
    assert float(agreement.min()) > 0.995


def test_espirit_agrees_with_sigpy_on_real_data():
    import sigpy.mri

    with np.load(shared("mri_kspace/head8ch_full.npz")) as file:
        kspace = torch.from_numpy(file["kspace"])
    ours = espirit(kspace, (24, 24), limit=24)
    theirs = sigpy.mri.app.EspiritCalib(
        kspace.numpy(), calib_width=24, thresh=0.02, crop=0, show_pbar=False
    ).run()
    agreement = (ours.maps.conj() * torch.from_numpy(theirs)).sum(0).abs()
    assert float(agreement[ours.support].quantile(0.01)) > 0.99


def test_contract_on_real_maps():
    with np.load(shared("mri_kspace/head8ch_full.npz")) as file:
        kspace = torch.from_numpy(file["kspace"])
    mask = make_mask((256, 256), MaskSettings("equispaced", 4.0))
    operator = CartesianSense(mask, espirit(kspace, (256, 22)).maps)
    failed = [check for check in check_operator(operator, (2, 256, 256)) if not check.passed]
    assert failed == []


def test_to_real_keeps_order():
    z = torch.tensor([[1 + 2j, 3 - 1j]])
    assert torch.equal(to_real(z), torch.tensor([[[1.0, 3.0], [2.0, -1.0]]]))
