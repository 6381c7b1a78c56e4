"""The JPEG forward model against the encoder itself."""

import io

import numpy as np
import pytest
import torch

from invdiff import InputError
from invdiff.measurement.contract import check_operator
from invdiff_superres import jpeg
from invdiff_superres.operators import LUMA, Separable


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    g = np.random.default_rng(0)
    image = gaussian_filter(g.standard_normal((channels, height, width)), (0, 2, 2))
    return 0.5 + 0.3 * image / np.abs(image).max()


def identity(shape: tuple[int, ...], mix=None) -> Separable:
    return Separable(np.eye(shape[-2]), np.eye(shape[-1]), shape[0], mix, "bicubic x1")


@pytest.mark.parametrize("shape", [(3, 32, 48), (3, 19, 26), (1, 21, 16)])
@pytest.mark.parametrize("quality", [30, 90])
def test_contract(shape, quality):
    file = jpeg.read(jpeg.encode(smooth(shape[1], shape[2], shape[0]), quality), "j")
    operator = jpeg.Jpeg(identity(shape), file)
    for check in check_operator(operator, shape):
        assert check.passed, check


@pytest.mark.parametrize("quality", [40, 85, 95])
@pytest.mark.parametrize("shape", [(1, 40, 32), (3, 40, 32), (3, 37, 30)])
def test_the_picture_lies_in_the_cells_of_its_file(shape, quality):
    """|A x - y| is at most half a step for luminance, but for the rounding of pixels to 8 bits in between."""
    image = np.rint(255 * smooth(shape[1], shape[2], shape[0])) / 255
    file = jpeg.read(jpeg.encode(image, quality), "j")
    operator = jpeg.Jpeg(identity(shape), file)
    off = operator(torch.from_numpy(image)[None])[0] - operator.data(file)
    luminance = off[: file.planes[0].size]
    inside = luminance.abs() < 0.5 + 1.5 / file.steps[0].min()
    assert float(inside.double().mean()) > 0.995
    assert 0.3 * jpeg.STD < float(off.std()) < 1.6 * jpeg.STD


def test_grey_files_measure_the_luminance_of_colours():
    image = smooth(24, 24)
    grey = (np.array(LUMA)[:, None, None] * image).sum(axis=0, keepdims=True)
    file = jpeg.read(jpeg.encode(grey, 90), "j")
    operator = jpeg.Jpeg(identity((3, 24, 24), LUMA), file)
    off = operator(torch.from_numpy(image)[None])[0] - operator.data(file)
    assert float(off.abs().max()) < 1.5


def test_cosines_are_orthonormal_and_scipys():
    from scipy.fft import dctn

    block = np.random.default_rng(1).standard_normal((8, 8))
    c = jpeg.cosine()
    np.testing.assert_allclose(c @ c.T, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(c @ block @ c.T, dctn(block, norm="ortho"), atol=1e-12)


def test_refusals(tmp_path):
    from PIL import Image

    with pytest.raises(InputError, match="from 1 to 100"):
        jpeg.encode(smooth(16, 16), 0)
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 4), np.uint8), "CMYK").save(buffer, "JPEG")
    with pytest.raises(InputError, match="expected a grey or RGB JPEG"):
        jpeg.read(buffer.getvalue(), "c.jpg")
    with pytest.raises(InputError, match="damaged"):
        jpeg.read(b"nothing", "n.jpg")
