"""Observations of deformations against closed forms, and the laws that every likelihood keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from invdiff import GaussianNoise, InputError, Measurement, sample
from invdiff.sampler.mode import gauss_newton, hessian_rows
from invdiff_deformation.grid import Grid
from invdiff_deformation.item import registered
from invdiff_deformation.jacobian import jacobian
from invdiff_deformation.judge import row_of
from invdiff_deformation.likelihoods import Joined, Scored, TemperedNoise
from invdiff_deformation.operators import (
    Displacements,
    Images,
    Labels,
    LocalCorrelation,
    MutualInformation,
    Transform,
    observed,
    splines,
    window_mean,
)
from invdiff_deformation.prior import Modes, Spectrum
from invdiff_deformation.regions import Surface, Volume
from invdiff_deformation.register import blurred, coarse_to_fine, residual_of

SHAPE = (24, 20)
GRID = Grid(SHAPE, np.diag([1.5, 2.0, 1.0, 1.0]))


def modes() -> Modes:
    return Modes(Spectrum(lengths=(4.0, 8.0), omitted=0.01, strain=0.4), GRID)


def picture(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    raw = np.random.default_rng(seed).normal(size=shape)
    smooth = blurred(raw, 2.0)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def everywhere(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def test_points_have_the_likelihood_of_a_multivariate_normal() -> None:
    state = modes()
    transform = Transform(state)
    points = torch.tensor([[3.2, 4.7], [10.0, 12.5], [20.1, 3.3]], dtype=torch.float64)
    root = torch.linalg.cholesky(
        torch.tensor([[[0.5, 0.1], [0.1, 0.3]], [[1.0, 0.0], [0.0, 0.2]], [[0.2, -0.1], [-0.1, 0.4]]])
    ).double()
    whitening = torch.linalg.inv(root)
    to_mm = torch.diag(torch.tensor(GRID.spacing, dtype=torch.float64))
    operator = observed(transform, [Displacements(points, to_mm, whitening)])
    z = torch.randn((1, *state.event_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    from invdiff_deformation.flow import sample_at

    u = transform.displacement(z)
    predicted = (sample_at(u, points.mT[None])[0].mT @ to_mm).numpy()
    seen = predicted + 0.3
    y = torch.einsum("nij,nj->ni", whitening, torch.from_numpy(seen)).flatten()
    found = float(Measurement(operator, GaussianNoise(1.0), y).log_likelihood(z)[0])
    expected = sum(
        multivariate_normal(predicted[k], (root[k] @ root[k].mT).numpy()).logpdf(seen[k]) for k in range(3)
    ) + float(
        torch.linalg.slogdet(root)[1].sum()
    )  # whitened data have the density of the others times |W|^-1
    assert found == pytest.approx(expected, abs=1e-9)


def test_linear_where_it_is_linear_and_only_there() -> None:
    points = torch.tensor([[3.2, 4.7]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    term = Displacements(points, eye, eye[None])
    assert observed(Transform(modes(), "displacement"), [term]).linear
    assert not observed(Transform(modes()), [term]).linear
    image = Images(picture(), picture(), everywhere())
    assert not observed(Transform(modes(), "displacement"), [term, image]).linear


def terms() -> dict[str, tuple[object, object, Tensor]]:
    fixed, moving = picture(0), picture(1)
    labels = (4 * picture(2)).long().clamp_max(3)
    size = fixed.numel()
    common = (moving, fixed, everywhere())
    return {
        "mse": (Images(*common), TemperedNoise.of(0.1, 0.5), fixed.flatten()),
        "lncc": (LocalCorrelation(*common, window=5), Scored(), torch.zeros(size)),
        "mi": (MutualInformation(*common, bins=16), Scored(), torch.zeros(1)),
        "labels": (
            Labels(labels, labels.flip(0), 4, everywhere()),
            Scored(),
            torch.zeros(size),
        ),
    }


@pytest.mark.parametrize("name", ["mse", "lncc", "mi", "labels"])
def test_likelihoods_are_per_sample_differentiable_and_never_above_zero(name: str) -> None:
    term, noise, y = terms()[name]
    state = modes()
    measurement = Measurement(observed(Transform(state), [term]), noise, y)
    z = 0.5 * torch.randn(
        (3, *state.event_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    both = measurement.log_likelihood(z)
    alone = torch.cat([measurement.log_likelihood(row[None]) for row in z])
    assert torch.allclose(both, alone, rtol=1e-12, atol=1e-9)
    assert bool(torch.isfinite(measurement.chi2(z)).all())
    if name != "mse":
        assert float(measurement.operator(z).max()) <= 1e-9
    direction = torch.randn(z[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaf = z[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(measurement.log_likelihood(leaf).sum(), leaf)
    step = 1e-6
    ends = [float(measurement.log_likelihood(z[:1] + s * step * direction)[0]) for s in (1, -1)]
    assert float((gradient[0] * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("name", ["lncc", "mi"])
def test_invariant_to_gain_and_offset(name: str) -> None:
    kind = {"lncc": LocalCorrelation, "mi": MutualInformation}[name]
    state = modes()
    z = 0.3 * torch.randn(
        (2, *state.event_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    found = [
        observed(
            Transform(state), [kind(gain * picture(1).double() + offset, picture(0).double(), everywhere())]
        )(z)
        for gain, offset in ((1.0, 0.0), (3.0, -0.7))
    ]
    assert torch.allclose(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_best_where_the_images_are_one() -> None:
    """The largest value of each similarity is at the deformation that makes the images equal."""
    state = modes()
    z = torch.zeros((2, *state.event_shape))
    z[1] = 0.3 * torch.randn(state.event_shape, generator=torch.Generator().manual_seed(0))
    image = picture()
    for term in (
        LocalCorrelation(image, image, everywhere()),
        MutualInformation(image, image, everywhere()),
        Labels((3 * image).long(), (3 * image).long(), 4, everywhere()),
    ):
        still, moved = observed(Transform(state), [term])(z).sum(dim=1)
        assert float(still) > float(moved)


def test_label_chances_add_up_to_one() -> None:
    state = modes()
    z = 0.4 * torch.randn(
        (1, *state.event_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    moving = (3 * picture(1)).long()
    total = torch.zeros(moving.numel(), dtype=torch.float64)
    for label in range(4):
        term = Labels(moving, torch.full(SHAPE, label), 4, everywhere(), beta=1.0)
        total += observed(Transform(state), [term])(z)[0].exp()
    assert torch.allclose(total, torch.ones_like(total), atol=1e-9)


def test_splines_add_up_to_one() -> None:
    weights = splines(torch.linspace(0, 1, 101, dtype=torch.float64), 16)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(101, dtype=torch.float64), atol=1e-12)
    assert float(weights.min()) >= 0


def test_several_observations_add_up() -> None:
    state = modes()
    parts = [terms()[name] for name in ("mse", "labels")]
    joined = Measurement(
        observed(Transform(state), [term for term, _, _ in parts]),
        Joined([(noise, len(y)) for _, noise, y in parts]),
        torch.cat([y for _, _, y in parts]),
    )
    z = 0.3 * torch.randn((2, *state.event_shape), generator=torch.Generator().manual_seed(0))
    each = [Measurement(observed(Transform(state), [t]), n, y).log_likelihood(z) for t, n, y in parts]
    assert torch.allclose(joined.log_likelihood(z), sum(each), rtol=1e-6)
    assert bool(torch.isfinite(joined.chi2(z)).all())


def test_tempering_is_a_power_of_the_likelihood() -> None:
    plain, tempered = GaussianNoise(0.2), TemperedNoise.of(0.2, 0.25)
    clean, y = torch.tensor([[0.1, 0.5], [0.4, 0.2]]), torch.tensor([0.0, 0.3])
    difference = [noise.log_likelihood(clean, y, 2) for noise in (plain, tempered)]
    assert float(difference[1][0] - difference[1][1]) == pytest.approx(
        0.25 * float(difference[0][0] - difference[0][1]), rel=1e-6
    )
    assert tempered.residual == pytest.approx(0.2) and float(tempered.variance_at(y)[0]) == pytest.approx(
        0.04
    )
    for sigma, beta in ((0.0, 1.0), (0.1, 0.0), (0.1, 2.0)):
        with pytest.raises(InputError):
            TemperedNoise.of(sigma, beta)


def test_moving_mask_leaves_the_outside_alone() -> None:
    seen = torch.zeros(SHAPE)
    seen[:, :10] = 1
    masked = Images(picture(1), picture(0), everywhere(), seen=seen)
    u = torch.zeros(1, 2, *SHAPE)
    found = masked.of(u)[0].reshape(SHAPE)
    assert torch.allclose(found[:, :10], picture(1)[:, :10], atol=1e-6)
    assert torch.allclose(found[:, 10:], picture(0)[:, 10:], atol=1e-6)


def test_one_image_under_two_affines_needs_no_deformation() -> None:
    """A moving image that is the fixed one on a grid of half the spacing, turned over: u = 0 explains it."""
    from invdiff_deformation.grid import between

    fine = np.linspace(0, 1, 64)
    values = torch.from_numpy(np.sin(7 * fine)[:, None] * np.cos(5 * fine)[None, :])
    moving = Grid((64, 64), np.diag([-0.5, 0.5, 1.0, 1.0]) + np.eye(4, k=3) * 0.0)
    affine = np.eye(4)
    affine[0, 3] = -0.5 * 62
    fixed = Grid((32, 32), affine)
    to_moving = torch.from_numpy(between(fixed, moving))
    expected = values.flip(0)[1::2, ::2]
    term = Images(values, expected, everywhere((32, 32)), to_moving)
    found = term.of(torch.zeros(1, 2, 32, 32, dtype=torch.float64))[0]
    assert torch.allclose(found, expected.flatten(), atol=1e-12)


def test_the_mode_finds_a_known_deformation() -> None:
    grid = Grid((48, 48), np.eye(4))
    state = Modes(Spectrum(lengths=(6.0, 12.0), strain=0.4), grid)
    transform = Transform(state)
    z = torch.randn((1, *state.event_shape), generator=torch.Generator().manual_seed(0))
    moving = picture(3, (48, 48))
    truth = transform.displacement(z)
    fixed = Images(moving, moving, everywhere((48, 48))).warped(truth)[0]
    steps = [
        Measurement(
            observed(
                transform,
                [Images(blurred(moving.numpy(), b), blurred(fixed.numpy(), b), everywhere((48, 48)))],
            ),
            TemperedNoise.of(0.02, 0.3),
            blurred(fixed.numpy(), b).flatten(),
        )
        for b in (2.0, 0.0)
    ]
    found = transform.displacement(coarse_to_fine(state.prior, steps)[None])
    before = float(truth.norm(dim=1).mean())
    assert float((found - truth).norm(dim=1).mean()) < 0.3 * before


def test_draws_of_the_laplace_approximation_spread_as_tempered_particles_do() -> None:
    """A plane with noise of known std: std of u beside the consistent sampler's, 48 draws of each."""
    generator = torch.Generator().manual_seed(2)
    state = modes()
    transform = Transform(state)
    moving = picture(3)
    truth = transform.displacement(torch.randn((1, *state.event_shape), generator=generator))
    fixed = Images(moving, moving, everywhere()).warped(truth)[0]
    fixed = fixed + 0.05 * torch.randn(SHAPE, generator=generator)

    def seen(blur: float) -> Measurement:
        pair = [blurred(image.numpy(), blur) for image in (moving, fixed)]
        operator = observed(transform, [Images(pair[0], pair[1], everywhere())])
        return Measurement(operator, GaussianNoise(0.05), pair[1].flatten())

    mode = coarse_to_fine(state.prior, [seen(blur) for blur in (2.0, 1.0, 0.0)], seen=state.seen)
    measurement = seen(0.0)
    vars(measurement.operator)["guess"] = lambda: mode
    settings = {"sampler": "tempered", "samples": 48, "particles": 48, "keep": 48}
    spreads = []
    for more in ({"sweeps": 0}, {"pilot": 16}):
        z = sample(state.prior, measurement, state.event_shape, **settings, **more).samples
        spreads.append(transform.displacement(z).var(dim=0).sum(dim=0).sqrt())
    laplace, tempered = spreads
    assert 0.85 < float(laplace.mean() / tempered.mean()) < 1.15
    assert float(torch.corrcoef(torch.stack([one.flatten() for one in spreads]))[0, 1]) > 0.8


def test_curvature_of_local_correlation_is_that_of_its_gaussian() -> None:
    """Along draws of its own at the mode of two noisy images; other similarities refuse."""
    rng = np.random.default_rng(0)
    shape = (48, 40)
    still = picture(4, shape).numpy()
    fixed, moving = ((gain * still + 0.02 * rng.normal(size=shape)).astype(np.float32) for gain in (1.0, 3.0))
    grid = Grid(shape, np.eye(4))
    item, measurement, mode = registered(fixed, moving, grid, None, ["operator=register_subjects"])
    assert mode is not None
    nearby = measurement.operator.gaussian()
    law = gauss_newton(item.prior, nearby, mode, "tempered", 60, measurement.operator.seen)
    rows = law.draws(8, torch.Generator().manual_seed(0)) - mode
    exact = hessian_rows(lambda z: -measurement.log_likelihood(z), mode, rows)
    ratio = sum(float(law.push(row).square().sum()) for row in rows) / float((rows * exact).sum())
    assert 0.75 < ratio < 1.5, ratio
    item, measurement, mode = registered(fixed, moving, grid, None, ["operator.similarity=mi"])
    with pytest.raises(InputError, match="sweeps"):
        measurement.operator.gaussian()


@pytest.mark.parametrize("shape", [(9, 14), (7, 10, 5)])
def test_window_means_are_those_of_boxes_cut_by_the_border(shape: tuple[int, ...]) -> None:
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, *shape)))
    found = window_mean(images, 5)
    for place in [(0,) * len(shape), tuple(n - 1 for n in shape), tuple(n // 2 for n in shape)]:
        box = images[(slice(None), *[slice(max(k - 2, 0), k + 3) for k in place])]
        assert torch.allclose(found[(slice(None), *place)], box.flatten(1).mean(dim=1))


def test_residual_of_white_and_of_smooth_noise() -> None:
    """White noise varies voxel by voxel; blurred by s its area is 4 pi s^2, less the smooth part taken off.

    A slow drift on top changes the level and not the area.
    """
    raw = np.random.default_rng(0).normal(size=(128, 128))
    inside = np.ones(raw.shape, dtype=bool)
    white = residual_of(raw, inside)
    assert white.area == pytest.approx(1.0, abs=0.05) and white.std == pytest.approx(1.0, abs=0.03)
    smooth = blurred(raw, 2.0).numpy()
    area = residual_of(smooth, inside).area
    assert 0.5 < area / (4 * np.pi * 4) < 1
    drift = residual_of(smooth + 0.5 * np.linspace(-1, 1, 128)[:, None], inside)
    assert drift.area == pytest.approx(area, rel=0.1) and drift.std > residual_of(smooth, inside).std


def test_a_surface_under_a_shift_lies_that_far_away() -> None:
    """A half space moved by 1.5 voxels of 2 mm: 3 mm, over a std of .5; gradients by finite differences."""
    distance = ((torch.arange(12, dtype=torch.float64) - 5.5) * 2)[:, None].expand(12, 9)
    points = torch.tensor([[5, 2], [5, 4], [5, 6]])
    u = torch.zeros((1, 2, 12, 9), dtype=torch.float64)
    u[:, 0] = 1.5
    found = Surface(distance, points, 0.5, half=1.0).of(u)
    assert torch.allclose(found, torch.full((1, 3), 6.0, dtype=torch.float64))
    u = (u + 0.1 * torch.from_numpy(np.random.default_rng(0).normal(size=u.shape))).requires_grad_()
    assert torch.autograd.gradcheck(Surface(distance, points, 0.5).of, (u,))


def test_a_region_scaled_grows_by_the_determinant() -> None:
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in (10, 8)], indexing="ij")
    u = torch.stack([0.2 * axes[0], -0.1 * axes[1]])[None]
    region = torch.zeros((10, 8), dtype=torch.bool)
    region[2:7, 3:6] = True
    assert float(Volume(region, 0.1).of(u)) == pytest.approx(np.log(1.2 * 0.9) / 0.1, rel=1e-9)
    u = (u + 0.05 * torch.from_numpy(np.random.default_rng(0).normal(size=u.shape))).requires_grad_()
    assert torch.autograd.gradcheck(Volume(region, 0.1).of, (u,))


def test_surfaces_and_volumes_alone_bring_a_square_onto_a_larger_one() -> None:
    """Flat images say nothing; the label maps' rims and sizes do."""
    grid = Grid((32, 32), np.eye(4))
    labels = [np.zeros((32, 32), dtype=np.int64) for _ in range(2)]
    labels[0][12:20, 12:20], labels[1][9:23, 9:23] = 1, 1
    image = np.random.default_rng(0).random((32, 32))
    options = ["operator.sigma=100", "operator.beta=1", "operator.surfaces=true", "operator.volumes=true"]
    item, _, mode = registered(image, image, grid, (labels[0], labels[1]), options)
    assert mode is not None
    u = item.transform.displacement(mode[None])[0]
    assert row_of(item, u)["dice"] > 0.9 > 0.6 > row_of(item, torch.zeros_like(u))["dice"]
    growth = float(jacobian(u[None])[0][torch.from_numpy(labels[0] == 1)].mean())
    assert growth == pytest.approx(14**2 / 8**2, rel=0.1)
