"""Pictures in and out: depths, colours, alpha, damage."""

import struct
import zlib

import numpy as np
import pytest

from invdiff import InputError
from invdiff_superres import formats

RANDOM = np.random.default_rng(0)


def png16(path, image):
    """A PNG of 16 bits, written by hand: Pillow does not write colour ones."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 16, 2 if image.ndim == 3 else 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
@pytest.mark.parametrize("bits", [8, 16])
def test_files_come_back(tmp_path, shape, bits):
    image = RANDOM.integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)
    values = np.moveaxis(image.reshape(9, 7, -1), 2, 0) / (2**bits - 1)
    written = formats.write(tmp_path / "a", values, bits)
    assert written.suffix == (".png" if bits == 8 else ".tif")
    back = formats.read(written)
    assert back.bits == bits
    np.testing.assert_allclose(back.values, values, atol=1e-7)
    assert formats.write(tmp_path / "b", back.values, bits).read_bytes() == written.read_bytes()
    if bits == 16:
        png16(tmp_path / "c.png", image)
        np.testing.assert_array_equal(formats.read(tmp_path / "c.png").values, back.values)


def test_rounding_is_that_of_the_file():
    picture = formats.picture(np.zeros((8, 8), np.uint8), "p")
    assert picture.rounding == pytest.approx(0.00113, abs=1e-5)
    assert formats.picture(np.zeros((8, 8), np.uint16), "p").rounding < 1e-5
    assert formats.picture(np.zeros((8, 8), np.float32), "p").rounding == 0


def test_alpha_is_split_off(tmp_path):
    from PIL import Image

    image = RANDOM.integers(0, 256, (6, 5, 4)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    found = formats.read(tmp_path / "a.png")
    assert found.values.shape == (3, 6, 5)
    np.testing.assert_allclose(found.alpha[0], image[..., 3] / 255, atol=1e-7)


def test_jpeg_says_so(tmp_path):
    from PIL import Image

    Image.fromarray(RANDOM.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(tmp_path / "a.jpg")
    assert "JPEG" in formats.read(tmp_path / "a.jpg").notes["format"]


def test_channels_first_arrays_are_read(tmp_path):
    image = RANDOM.random((3, 8, 10)).astype(np.float32)
    np.save(tmp_path / "a.npy", image)
    np.testing.assert_array_equal(formats.read(tmp_path / "a.npy").values, image)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((8, 8), np.nan), "NaN"),
        (np.full((8, 8), 200.0), "from 200 to 200"),
        (np.zeros((8, 8), np.int32) - 1, "from -1"),
        (np.zeros((8, 8, 7), np.uint8), "shape"),
        (np.zeros((2, 8), np.uint8), "at least 4 x 4"),
        (np.zeros((8, 8), bool), "one bit"),
        (np.zeros((8, 8), complex), "real"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=message):
        formats.read(tmp_path / "a.npy")


def test_bad_files_are_refused(tmp_path):
    for name, content in (
        ("a.png", b"nothing"),
        ("b.tif", b"II*\0"),
        ("c.npy", b"\x93NUMPY"),
        ("d.png", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read|is empty"):
            formats.read(tmp_path / name)
    (tmp_path / "e.gif").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match=r"\.gif"):
        formats.read(tmp_path / "e.gif")
    with pytest.raises(InputError, match="there is no file"):
        formats.read(tmp_path / "f.png")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        formats.files(tmp_path / "folder")
