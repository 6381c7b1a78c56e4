"""The projector's laws: adjoint, disk, mass, centroid, fan beams; and filtered back-projection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from invdiff import InputError, Measurement, compose
from invdiff.measurement.contract import check_operator
from invdiff_ct.baselines import all_baselines
from invdiff_ct.fbp import filtered_back_projection
from invdiff_ct.geometry import BEAMS, Geometry, uniform_angles
from invdiff_ct.noise import Transmission
from invdiff_ct.plugins import projections
from invdiff_ct.projector import Projector, line_integrals
from invdiff_ct.views import region_of_interest, rotation_centre, simulated_geometry


def disk(size: int, radius: float, u: float, v: float, fine: int = 8) -> np.ndarray:
    """Share of each pixel inside a disk, in pixels from the middle, v up."""
    axis = (np.arange(size * fine) + 0.5) / fine - size / 2
    inside = (axis[None] - u) ** 2 + (-axis[:, None] - v) ** 2 < radius**2
    return inside.reshape(size, fine, size, fine).mean(axis=(1, 3))


def geometry(beam: str, size: int = 64, views: int = 24, pixel: float = 1.5) -> Geometry:
    return simulated_geometry({"beam": beam, "views": views}, size, pixel)


@pytest.mark.parametrize("beam", BEAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [32, 33])
def test_adjoint_is_exact(beam, dtype, size):
    g = torch.Generator().manual_seed(0)
    projector = Projector(geometry(beam, size), size, 1.5).scaled(torch.rand(24, size, generator=g) + 0.5)
    x = torch.randn(3, 1, size, size, generator=g, dtype=dtype)
    y = torch.randn(3, 24, size, generator=g, dtype=dtype)
    left, right = (projector(x) * y).sum(), (x * projector.adjoint(y)).sum()
    scale = float(projector(x).norm() * y.norm())
    assert abs(float(left - right)) < (1e-6 if dtype == torch.float32 else 1e-12) * scale
    assert projector(x).dtype == dtype
    torch.testing.assert_close(projector(x)[1:2], projector(x[1:2]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sparse_view", "limited_angle", "parallel_beam", "fan_beam"])
def test_registered_operators_pass_the_contract(name):
    settings = compose([f"operator={name}"])["operator"]
    operator = projections(settings, (1, 32, 32))
    for check in check_operator(operator, (1, 32, 32)):
        assert check.passed, check
    assert operator.norm((1, 32, 32)) == pytest.approx(1, abs=1e-3)


def test_norm_is_that_of_the_design():
    projector = Projector(Geometry(uniform_angles(60, "parallel"), 128, 1.0), 128, 1.0)
    assert projector.norm((1, 128, 128)) ** 2 == pytest.approx(0.957 * 60 * 128, rel=0.01)


@pytest.mark.parametrize("pixel", [1.0, 0.7])
def test_disk_has_the_chords_of_a_disk(pixel):
    size, radius = 128, 40.0
    g = Geometry(uniform_angles(36, "parallel"), size, pixel)
    image = disk(size, radius, 8, -13)
    data = line_integrals(image, pixel, g)
    for row, angle in zip(data, g.angles, strict=True):
        s = g.positions - pixel * (8 * math.cos(angle) - 13 * math.sin(angle))
        chord = 2 * np.sqrt(np.clip((radius * pixel) ** 2 - s**2, 0, None))
        away = np.abs(s) < 0.9 * radius * pixel
        assert np.abs(row - chord)[away].max() < 0.01 * 2 * radius * pixel
        assert row.sum() * pixel == pytest.approx(image.sum() * pixel**2, rel=0.01)


def test_one_pixel_lands_where_the_geometry_says():
    size = 33
    g = Geometry(uniform_angles(20, "parallel"), size, 1.0)
    image = np.zeros((size, size))
    image[8, 25] = 1  # u = 9, v = 8: right and up
    data = line_integrals(image, 1.0, g)
    centroid = (data * g.positions).sum(axis=1) / data.sum(axis=1)
    expected = 9 * np.cos(g.angles) + 8 * np.sin(g.angles)
    assert np.abs(centroid - expected).max() < 0.5


@pytest.mark.parametrize("beam", ["fan_flat", "fan_curved"])
def test_fan_with_a_far_source_is_parallel(beam):
    image = disk(64, 20, 5, -7)
    angles = uniform_angles(12, "parallel")
    parallel = line_integrals(image, 1.0, Geometry(angles, 64, 1.0))
    far = Geometry(angles, 64, 1.0, beam=beam, source_axis_mm=1e6, axis_detector_mm=0.0)
    fan = line_integrals(image, 1.0, far)
    assert np.abs(fan - parallel).max() < 2e-3 * parallel.max()


def test_agrees_with_scikit_image():
    transform = pytest.importorskip("skimage.transform")
    from scipy.ndimage import gaussian_filter

    size = 128
    image = gaussian_filter(disk(size, 30, 8, -13) + disk(size, 10, -5, 10), 2)
    degrees = np.arange(0, 180, 12.0)
    theirs = transform.radon(image, degrees, circle=True).T
    # scikit-image rotates about pixel size / 2 and counts v downwards.
    g = Geometry(np.deg2rad(degrees), size, 1.0, centre=size / 2)
    moved = np.roll(image, (-0, 0), (0, 1))
    ours = line_integrals(moved, 1.0, g)
    shifts = []
    for ours_row, theirs_row in zip(ours, theirs, strict=True):
        assert ours_row.sum() == pytest.approx(theirs_row.sum(), rel=0.01)
        shifts.append(float((ours_row * np.arange(size)).sum() / ours_row.sum()))
    assert (
        np.abs(ours[0] - np.interp(np.arange(size) - 0.5, np.arange(size), theirs[0])).max()
        < 0.02 * theirs.max()
    )


@pytest.mark.parametrize("beam", BEAMS)
def test_filtered_back_projection_returns_the_object(beam):
    size, pixel = 96, 1.5
    image = disk(size, 30, 6, 4) - 0.5 * disk(size, 8, 10, 10)
    g = geometry(beam, size, 240, pixel)
    found = filtered_back_projection(line_integrals(image, pixel, g), g, size, pixel)
    inside = disk(size, 20, 6, 4) == 1
    assert np.abs(found - image)[inside].mean() < 0.02
    assert found[inside].mean() == pytest.approx(image[inside].mean(), rel=0.01)


def test_region_of_interest_drops_the_outer_detectors():
    g, kept = region_of_interest(geometry("parallel", 64, 12, 1.0), 16.0)
    assert g.field_radius_mm == pytest.approx(16.0, abs=0.6)
    assert len(kept) == g.detectors == 32
    whole = line_integrals(disk(64, 20, 0, 0), 1.0, geometry("parallel", 64, 12, 1.0))
    np.testing.assert_allclose(line_integrals(disk(64, 20, 0, 0), 1.0, g), whole[:, kept])


def test_rotation_centre_is_found():
    g = Geometry(np.deg2rad(np.arange(0, 181, 3.0)), 96, 1.0, centre=41.25)
    data = line_integrals(disk(64, 12, 9, -5) + disk(64, 6, -12, 3), 1.0, g)
    assert rotation_centre(data, g)[0] == pytest.approx(41.25, abs=0.3)


def test_baselines_order_and_transmission_gradient():
    size = 48
    g = geometry("parallel", size, 20, 1.0)
    truth = 0.5 * disk(size, 16, 0, 0) - 0.3 * disk(size, 5, 4, 4)
    projector = Projector(g, size, 1.0)
    lines = torch.from_numpy(line_integrals(np.kron(truth, np.ones((2, 2))), 0.5, g)).float()
    error = {
        name: float((image[0] - torch.from_numpy(truth)).square().mean())
        for name, image in all_baselines(projector, lines).items()
    }
    assert error["tv"] < error["sirt"] < error["fbp"]
    operator = Transmission(projector, 0.02)
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, size, size, generator=g, dtype=torch.float64).requires_grad_()
    out = operator(x)
    (slope,) = torch.autograd.grad((out**2).sum(), x)
    expected = projector.adjoint(-2 * 0.02 * out**2)
    torch.testing.assert_close(slope, expected)


def test_weights_whiten():
    from invdiff import GaussianNoise

    size = 24
    projector = Projector(geometry("parallel", size, 10, 1.0), size, 1.0)
    g = torch.Generator().manual_seed(0)
    weights = torch.rand(10, size, generator=g) + 0.2
    scaled = projector.scaled(weights)
    x = torch.rand(1, 1, size, size, generator=g)
    torch.testing.assert_close(scaled(x), scaled.whiten(projector(x)))
    chi2 = Measurement(scaled, GaussianNoise(0.1), scaled.whiten(projector(x))[0]).chi2(x)
    assert float(chi2) < 1e-6


def test_refusals():
    with pytest.raises(InputError, match="inside the image"):
        Projector(Geometry(np.zeros(1), 64, 1.0, beam="fan_flat", source_axis_mm=30), 64, 1.0)
    with pytest.raises(InputError, match="no ray meets"):
        Projector(Geometry(np.zeros(1), 2, 1e4), 64, 1.0)
    with pytest.raises(InputError, match="matrix"):
        Projector(Geometry(np.zeros(4000), 1000, 1.0), 1000, 1.0)
    with pytest.raises(InputError, match="rotation centre"):
        Geometry(np.zeros(1), 64, 1.0, centre=60)


def test_deepinv_measures_the_same():
    """Another torch projector (rotation and sum), same angles and sense: within 1 % on a smooth object."""
    deepinv = pytest.importorskip("deepinv")
    size = 64
    axis = torch.arange(size) - (size - 1) / 2
    image = torch.exp(-((axis[None] - 6) ** 2 + (axis[:, None] + 4) ** 2) / 72)
    image += 0.5 * torch.exp(-((axis[None] + 10) ** 2 + (axis[:, None] - 8) ** 2) / 50)
    degrees = torch.arange(0, 180, 7.5)
    physics = deepinv.physics.Tomography(
        angles=degrees, img_width=size, circle=True, device="cpu", normalize=False
    )
    theirs = physics.A(image[None, None])[0, 0].mT
    ours = Projector(Geometry(np.deg2rad(degrees.numpy()), size, 1.0), size, 1.0)(image[None, None])[0]
    assert float((theirs - ours).norm() / ours.norm()) < 0.01
