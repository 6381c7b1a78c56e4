"""Resampling against dense algebra and other packages; the classical rows against the benchmarks' figures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff import GaussianNoise, InputError, Measurement, compose
from invdiff.measurement.contract import check_operator
from invdiff_superres import metrics, resampling
from invdiff_superres.baselines import all_baselines, grey_of
from invdiff_superres.operators import LUMA, Separable, matrices, resample

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "superres"


def bicubic(scale: int, height: int, width: int, channels: int = 3, **rest) -> Separable:
    settings = {"kernel": "bicubic", "scale": scale, "antialias": True, **rest}
    rows, columns, kind = matrices(settings, height, width)
    return Separable(rows, columns, channels, kind=kind)


@pytest.mark.parametrize("kernel", [*resampling.KERNELS, "blur", "slices"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_constants_stay_and_ramps_stay_inside(kernel, scale):
    size = 12 * scale
    settings = {"kernel": kernel, "scale": scale, "antialias": True, "blur": 1.3}
    settings |= {"axis": "y", "thickness": None, "profile": "gaussian"}
    rows, _, _ = matrices(settings, size, size)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-12)
    ramp = rows @ np.arange(size)
    expected = (np.arange(12) + 0.5) * scale - 0.5
    np.testing.assert_allclose(ramp[4:-4], expected[4:-4], atol=1e-9)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_bicubic_is_that_of_the_field(scale):
    """deepinv's reimplementation of the MATLAB convention, single precision, inside and at the border."""
    deepinv = pytest.importorskip("deepinv")
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 6 * scale, 8 * scale, generator=g)
    theirs = deepinv.physics.DownsamplingMatlab(factor=scale)(x)
    assert float((bicubic(scale, 6 * scale, 8 * scale)(x) - theirs).abs().max()) < 1e-6


def test_against_pillow():
    from PIL import Image

    g = np.random.default_rng(0)
    x = g.random((48, 40)).astype(np.float32)
    theirs = np.asarray(Image.fromarray(x).resize((10, 12), Image.Resampling.BICUBIC))
    ours = bicubic(4, 48, 40, 1)(torch.from_numpy(x)[None, None])[0, 0].numpy()
    # Pillow cuts the kernel at the border where the field reflects it.
    assert np.abs(ours - theirs)[3:-3, 3:-3].max() < 1e-5


@pytest.mark.parametrize("mix", [None, LUMA])
def test_closed_forms_against_dense_algebra(mix):
    g = torch.Generator().manual_seed(1)
    plain = bicubic(3, 12, 15)
    operator = Separable(plain._rows.numpy(), plain._columns.numpy(), 3, mix)
    size = 3 * 12 * 15
    matrix = operator(torch.eye(size, dtype=torch.float64).reshape(size, 3, 12, 15)).flatten(1).T
    data = operator.data_shape
    assert matrix.shape == (np.prod(data), size)
    y = torch.randn(2, *data, generator=g, dtype=torch.float64)
    x = torch.randn(2, 3, 12, 15, generator=g, dtype=torch.float64)
    torch.testing.assert_close(operator.adjoint(y).flatten(1), y.flatten(1) @ matrix)
    square = matrix @ matrix.T
    for gain, offset in ((0.7, 0.01), (1e-6, 1e-8)):
        expected = torch.linalg.solve(
            gain * square + offset * torch.eye(len(square), dtype=torch.float64), y.flatten(1).T
        ).T
        close = 1e-11 * float(expected.abs().max())
        torch.testing.assert_close(operator.solve(y, gain, offset).flatten(1), expected, rtol=0, atol=close)
        value = torch.logdet(gain * square + offset * torch.eye(len(square), dtype=torch.float64))
        assert operator.log_det(gain, offset) == pytest.approx(float(value), rel=1e-10)
    pseudo = y.flatten(1) @ torch.linalg.pinv(matrix).T
    torch.testing.assert_close(operator.minimum_norm(y).flatten(1), pseudo, rtol=1e-8, atol=1e-9)
    gamma = 37.0
    expected = torch.linalg.solve(
        torch.eye(size, dtype=torch.float64) + gamma * matrix.T @ matrix, x.flatten(1).T
    ).T
    torch.testing.assert_close(operator.resolvent(x, gamma).flatten(1), expected, rtol=1e-9, atol=1e-9)
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    assert operator.norm((3, 12, 15)) == pytest.approx(largest, rel=1e-10)


def test_singular_values_are_those_of_the_design():
    """x2, x4, x8: .500 to .237, .250 to .122, .125 to .062: undetermined, not ill-conditioned."""
    for scale, high, low in ((2, 0.5, 0.237), (4, 0.25, 0.122), (8, 0.125, 0.062)):
        values = np.linalg.svd(resampling.down(128, scale, "bicubic"), compute_uv=False)
        assert values.max() ** 2 == pytest.approx(high, abs=0.002)
        assert values.min() ** 2 == pytest.approx(low, abs=0.003)


@pytest.mark.parametrize("name", ["bicubic", "lanczos", "bilinear", "average", "blur", "thick_slices"])
def test_registered_operators_pass_the_contract(name):
    operator = resample(compose([f"operator={name}", "operator.scale=2"])["operator"], (3, 16, 12))
    for check in check_operator(operator, (3, 16, 12)):
        assert check.passed, check


def test_proximal_step_is_the_closed_form():
    """The measurement's proximal step through the resolvent, against a dense solve."""
    g = torch.Generator().manual_seed(2)
    operator = bicubic(2, 8, 8, 1)
    y = torch.rand(1, 4, 4, generator=g, dtype=torch.float64)
    centre = torch.rand(2, 1, 8, 8, generator=g, dtype=torch.float64)
    found = Measurement(operator, GaussianNoise(0.01), y).proximal(centre, 50.0).x
    matrix = operator(torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)).flatten(1).T
    right = centre.flatten(1) + 50 * y.flatten() @ matrix
    expected = torch.linalg.solve(torch.eye(64) + 50 * matrix.T @ matrix, right.T).T
    torch.testing.assert_close(found.flatten(1), expected)


def test_slice_profiles():
    """A Gaussian of that full width at half maximum; a box covers parts of samples by their share."""
    row = resampling.slices(64, 4, 6.0, "gaussian")[8]
    centre = 8.5 * 4 - 0.5
    place = np.arange(64)
    variance = float((row * (place - centre) ** 2).sum())
    assert variance**0.5 * resampling.FWHM == pytest.approx(6.0, rel=0.01)
    box = resampling.slices(64, 4, 5.0, "box")[8]
    np.testing.assert_allclose(box[box > 0] * 5, [0.5, 1, 1, 1, 1, 0.5])


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="multiple of the scale"):
        bicubic(4, 30, 32)
    with pytest.raises(InputError, match="whole number"):
        bicubic(2.5, 30, 30)
    with pytest.raises(InputError, match=r"operator\.kernel"):
        bicubic(2, 30, 30, kernel="sinc")
    with pytest.raises(InputError, match="blur is 0"):
        bicubic(2, 30, 30, kernel="blur", blur=0)
    with pytest.raises(InputError, match="slice profile"):
        resampling.slices(8, 2, 2.0, "round")


def test_luminance():
    """White is 235, black 16, and grey is its own."""
    image = np.stack([np.full((4, 4), value) for value in (1.0, 1.0, 1.0)])
    assert metrics.luminance(image)[0, 0] == pytest.approx(235, abs=1e-9)
    assert metrics.luminance(0 * image)[0, 0] == 16
    assert metrics.luminance(image[:1])[0, 0] == 255
    g = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(grey_of(g)[:, 0], 0.299 * g[:, 0] + 0.587 * g[:, 1] + 0.114 * g[:, 2])


def test_ssim_is_scikit_images():
    from skimage.metrics import structural_similarity

    g = np.random.default_rng(0)
    a = 255 * g.random((40, 52))
    b = np.clip(a + 20 * g.standard_normal(a.shape), 0, 255)
    theirs, whole = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
    )
    assert metrics.ssim(a, b) == pytest.approx(float(whole[5:-5, 5:-5].mean()), abs=1e-7)
    assert theirs


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data folder")
@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (2, {"bicubic": (33.68, 0.9305), "lanczos": (34.32, 0.9366)}),
        (4, {"bicubic": (28.43, 0.8113), "lanczos": (28.81, 0.8183), "consistent": (29.39, 0.8287)}),
        (8, {"bicubic": (24.40, 0.6582), "lanczos": (24.64, 0.6628)}),
    ],
)
def test_set5_has_the_known_figures(scale, expected):
    """PSNR-Y and SSIM-Y of classical rows. Published for bicubic: 33.66, 28.42 and 24.40 dB."""
    rows: dict[str, list[tuple[float, float]]] = {}
    with np.load(DATA / "set5_hr_mod4.npz") as file:
        for key in file:
            x = np.moveaxis(file[key], 2, 0) / 255.0
            x = x[:, : x.shape[1] // scale * scale, : x.shape[2] // scale * scale]
            operator = bicubic(scale, *x.shape[1:])
            y = (operator(torch.from_numpy(x)[None])[0].clamp(0, 1) * 255).round() / 255
            for name, image in all_baselines(operator, y, lambda: None).items():
                row = metrics.compare(x, image.numpy(), scale)
                rows.setdefault(name, []).append((row["psnr_y"], row["ssim_y"]))
    for name, (psnr, ssim) in expected.items():
        found = np.mean(rows[name], axis=0)
        assert found[0] == pytest.approx(psnr, abs=0.01)
        assert found[1] == pytest.approx(ssim, abs=0.0005)
