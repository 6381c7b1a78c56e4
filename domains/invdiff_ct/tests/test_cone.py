"""Cone beam: chords, the central plane against the fan, adjoint, bad geometry; ASTRA's kernels."""

import numpy as np
import pytest
import torch

from invdiff import InputError, compose
from invdiff.measurement.contract import check_operator
from invdiff_ct.astra import KERNELS
from invdiff_ct.cone import ConeBeam, ConeGeometry
from invdiff_ct.geometry import Geometry, uniform_angles
from invdiff_ct.plugins import cone_beam
from invdiff_ct.projector import Projector


def scan(views: int = 7, rows: int = 9, columns: int = 40, **rest: float) -> ConeGeometry:
    return ConeGeometry(uniform_angles(views, "fan_flat") + 0.1, rows, columns, 2.0, 1.8, **rest)


@pytest.mark.parametrize("shape", [(6, 1, 20, 20), (5, 17, 24), (1, 24, 24)])
def test_contract_and_adjoint(shape):
    operator = cone_beam(compose(["operator=cone_beam", "operator.views=5"])["operator"], shape)
    for check in check_operator(operator, shape):
        assert check.passed, check
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, generator=g, dtype=torch.float64)
    y = torch.randn(operator(x).shape, generator=g, dtype=torch.float64)
    left, right = (operator(x) * y).sum(), (x * operator.adjoint(y)).sum()
    assert abs(float(left - right)) < 1e-12 * float(operator(x).norm() * y.norm())
    assert operator.norm(shape) == pytest.approx(1, abs=1e-3)


def test_central_row_is_a_flat_fan():
    """An object that does not change along z, the detector row in the plane of the source."""
    geometry = scan(rows=1)
    g = torch.Generator().manual_seed(1)
    plane = torch.rand(24, 24, generator=g)
    volume = plane.expand(3, 1, 24, 24)
    fan = Geometry(geometry.angles, 40, 1.8, beam="fan_flat")
    ours = ConeBeam(geometry, (3, 1, 24, 24), 1.5)(volume[None])[0, :, 0]
    torch.testing.assert_close(ours, Projector(fan, 24, 1.5)(plane[None, None])[0], rtol=1e-5, atol=1e-4)


def test_ball_has_the_chords_of_a_ball():
    """2 sqrt(r^2 - d^2), d the distance of the ray from the centre, off the axis in all three directions."""
    side, slices, voxel, slice_mm = 48, 40, 1.25, 1.5
    centre, radius = np.array([7.0, -5.0, 4.0]), 14.0
    fine = 4
    axis = (np.arange(side * fine) + 0.5) / fine * voxel - side * voxel / 2
    levels = (np.arange(slices * fine) + 0.5) / fine * slice_mm - slices * slice_mm / 2
    inside = (
        (levels[:, None, None] - centre[2]) ** 2
        + (-axis[None, :, None] - centre[1]) ** 2
        + (axis[None, None] - centre[0]) ** 2
    ) < radius**2
    ball = inside.reshape(slices, fine, side, fine, side, fine).mean(axis=(1, 3, 5))
    geometry = scan(rows=24, columns=40, source_axis_mm=120.0, axis_detector_mm=80.0)
    volume = torch.from_numpy(ball).float()[None, :, None]
    data = ConeBeam(geometry, (slices, 1, side, side), voxel, slice_mm)(volume)[0].numpy()
    for view in range(len(geometry.angles)):
        source, direction = geometry.rays(view)
        along = (centre - source) @ direction.T
        distance = np.sqrt(np.sum((centre - source) ** 2) - along**2)
        chord = 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None)).reshape(data[view].shape)
        away = distance.reshape(chord.shape) < 0.85 * radius
        assert away.sum() > 20
        assert np.abs(data[view] - chord)[away].max() < 0.02 * 2 * radius


def test_refusals():
    with pytest.raises(InputError, match="inside the volume"):
        ConeBeam(scan(source_axis_mm=10.0), (4, 1, 24, 24))
    with pytest.raises(InputError, match="matrix"):
        ConeBeam(scan(views=720, rows=512, columns=512), (256, 1, 256, 256))
    with pytest.raises(InputError, match="at least one view"):
        scan(views=1, columns=1)
    with pytest.raises(InputError, match="steeper"):
        ConeBeam(scan(rows=2000), (4, 1, 24, 24))
    with pytest.raises(InputError, match="above zero"):
        cone_beam(compose(["operator=cone_beam", "operator.voxel_mm=0"])["operator"], (4, 24, 24))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("centre", [None, 30.2])
def test_astra_measures_the_same(kernel, centre):
    pytest.importorskip("astra", reason="the astra-toolbox is not installed")
    size = 48
    axis = np.arange(size) - (size - 1) / 2
    image = np.exp(-((axis[None] - 6) ** 2 + (axis[:, None] + 4) ** 2) / 72)
    x = torch.from_numpy(image).float()[None, None]
    scan = Geometry(np.arange(9) * 0.33 + 0.1, 60, 0.9, centre=centre)
    ours, theirs = Projector(scan, size, 1.1)(x), Projector(scan, size, 1.1, kernel)(x)
    limit = 2e-5 if kernel == "astra_linear" else 0.005
    assert float((ours - theirs).norm() / ours.norm()) < limit
    fan = Geometry(np.arange(9) * 0.7, 60, 1.6, beam="fan_flat")
    if kernel == "astra_line":
        difference = Projector(fan, size, 1.1)(x) - Projector(fan, size, 1.1, kernel)(x)
        assert float(difference.norm() / Projector(fan, size, 1.1)(x).norm()) < 0.01
    else:
        with pytest.raises(InputError, match="no kernel"):
            Projector(fan, size, 1.1, kernel)


def test_kernel_is_refused_by_name():
    with pytest.raises(InputError, match="siddon"):
        Projector(Geometry(np.zeros(1), 16, 1.0), 16, 1.0, "siddon")
