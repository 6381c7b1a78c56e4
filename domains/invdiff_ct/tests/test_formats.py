"""Readers: round trips, and one sentence for everything that cannot be CT."""

from __future__ import annotations

import numpy as np
import pytest

from invdiff import InputError
from invdiff_ct.formats import ReadOptions, read
from invdiff_ct.scan import Projections, Volume

SIDE = 32


def hu_volume(slices: int = 3) -> np.ndarray:
    axis = np.linspace(-1, 1, SIDE)
    inside = axis[:, None] ** 2 + axis[None] ** 2 < 0.6
    volume = np.where(inside, 40, -1000) + np.zeros((slices, 1, 1))
    return (volume + 50 * inside * axis[:, None] * np.arange(1, slices + 1)[:, None, None]).astype(np.int16)


def write_series(folder, volume, positions, tilt=0.0, **changes):
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir()
    series = generate_uid()
    for number, (image, z) in enumerate(zip(volume, positions, strict=True)):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        name = folder / f"{(number * 7) % 11:02d}.dcm"  # not in the order of positions
        dataset = FileDataset(str(name), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.Modality = series, "CT"
        dataset.Rows, dataset.Columns = image.shape
        dataset.PixelSpacing, dataset.SliceThickness = [1.5, 1.5], 2.0
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-20.0, -30.0 + tilt * number, float(z)]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        for key, value in changes.items():
            setattr(dataset, key, value)
        dataset.PixelData = (image.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        dataset.save_as(name, enforce_file_format=True)
    assert pydicom
    return folder


def test_dicom_series_is_ordered_by_position_and_rescaled(tmp_path):
    pytest.importorskip("pydicom")
    volume = hu_volume(4)
    scan = read(write_series(tmp_path / "series", volume[::-1], [30, 28, 26, 24]))
    assert isinstance(scan, Volume)
    np.testing.assert_array_equal(scan.hu, volume)
    assert scan.pixel_mm == 1.5
    # Voxel (0, 0, 0) is the first pixel of the lowest slice, left-posterior turned to right-anterior.
    np.testing.assert_allclose(scan.affine[:3, 3], [20, 30, 24])
    np.testing.assert_allclose(scan.affine @ [1, 0, 0, 0], [0, -1.5, 0, 0])
    np.testing.assert_allclose(scan.affine @ [0, 0, 1, 0], [0, 0, 2, 0])


@pytest.mark.parametrize(
    ("positions", "tilt", "changes", "message"),
    [
        ([0, 2, 6, 8], 0.0, {}, "slices are missing"),
        ([0, 2, 4, 4], 0.0, {}, "several slices at one position"),
        ([0, 2, 4, 6], 0.5, {}, "gantry tilt"),
        ([0, 2, 4, 6], 0.0, {"GantryDetectorTilt": 12.0}, "gantry tilt"),
        ([0, 2, 4, 6], 0.0, {"PixelSpacing": [1.0, 1.5]}, "square"),
        ([0, 2, 4, 6], 0.0, {"RescaleIntercept": 0}, "not HU"),
    ],
)
def test_dicom_refusals(tmp_path, positions, tilt, changes, message):
    pytest.importorskip("pydicom")
    folder = write_series(tmp_path / "series", hu_volume(4), positions, tilt, **changes)
    with pytest.raises(InputError, match=message):
        read(folder)


def test_nifti_keeps_its_affine(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    affine = np.array([[0, 1.5, 0, -7], [-1.5, 0, 0, 3], [0, 0, 4, 1], [0, 0, 0, 1.0]])
    volume = hu_volume()
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(volume, 0, 2), affine), tmp_path / "scan.nii.gz")
    scan = read(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(scan.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(scan.hu, volume)


def sinogram(views: int = 20, detectors: int = 32) -> np.ndarray:
    s = np.linspace(-1, 1, detectors)
    return np.broadcast_to(2 * np.sqrt(np.clip(0.5 - s**2, 0, None)), (views, detectors)).copy()


def test_npz_and_yaml_give_the_same_projections(tmp_path):
    degrees = np.arange(20) * 9.0
    np.savez(tmp_path / "a.npz", sinogram=sinogram(), angles_deg=degrees, pitch_mm=1.5, centre=15.0)
    np.save(tmp_path / "b.npy", sinogram())
    (tmp_path / "b.yaml").write_text(
        "angles_deg: {start: 0, stop: 180, count: 20}\npitch_mm: 1.5\ncentre: 15\nbeam: parallel\n"
    )
    a, b = read(tmp_path / "a.npz"), read(tmp_path / "b.npy")
    assert isinstance(a, Projections) and isinstance(b, Projections)
    np.testing.assert_array_equal(a.sinogram, b.sinogram)
    np.testing.assert_allclose(a.geometry.angles, b.geometry.angles)
    assert a.geometry.centre == b.geometry.centre == 15 and a.calibrated


def test_named_axes_and_the_tomopy_layout(tmp_path):
    degrees = np.arange(20) * 9.0
    np.savez(tmp_path / "a.npz", sinogram=sinogram().T, angles_deg=degrees)
    scan = read(tmp_path / "a.npz", ReadOptions(axes="detector,angle"))
    np.testing.assert_array_equal(scan.sinogram[0], sinogram())
    np.savez(tmp_path / "t.npz", sinogram=np.stack([sinogram(), 2 * sinogram()], 1), theta_deg=degrees)
    scan = read(tmp_path / "t.npz")
    assert scan.sinogram.shape == (2, 20, 32) and not scan.calibrated
    np.testing.assert_array_equal(scan.sinogram[1], 2 * sinogram())


def test_exchange_is_normalised_by_its_fields(tmp_path):
    h5py = pytest.importorskip("h5py")
    lines = np.stack([sinogram(), 0.5 * sinogram()], axis=1)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["exchange/data"] = 100 + 1000 * np.exp(-lines)
        file["exchange/data_white"] = np.full((3, 2, 32), 1100.0)
        file["exchange/data_dark"] = np.full((2, 2, 32), 100.0)
        file["exchange/theta"] = np.arange(20) * 9.0
    scan = read(tmp_path / "scan.h5")
    np.testing.assert_allclose(scan.sinogram, np.moveaxis(lines, 1, 0), atol=1e-9)


SINOGRAM = {"sinogram": sinogram(), "angles_deg": np.arange(20) * 9.0}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({**SINOGRAM, "sinogram": sinogram().T}, "axes look swapped"),
        ({**SINOGRAM, "angles_deg": np.arange(21) * 8.0}, "no axis has that length"),
        ({**SINOGRAM, "angles_deg": np.arange(20) * 0.15}, "look like radians"),
        ({"sinogram": sinogram(), "angles_rad": np.arange(20) * 9.0}, "look like degrees"),
        ({**SINOGRAM, "angles_deg": np.r_[np.arange(19) * 9.0, 0.0]}, "repeated"),
        ({"sinogram": sinogram()}, "no angles"),
        ({**SINOGRAM, "sinogram": sinogram() * 100}, "look"),
        ({**SINOGRAM, "kind": "counts", "flux": 1e4}, "looks like line integrals"),
        ({**SINOGRAM, "sinogram": 1e3 * sinogram() - 5, "kind": "counts", "flux": 1e4}, "negative counts"),
        ({**SINOGRAM, "sinogram": 1e3 * sinogram(), "kind": "counts"}, "flux"),
        ({**SINOGRAM, "sinogram": 1e3 * sinogram(), "kind": "counts", "flux": 0.0}, "flux"),
        ({**SINOGRAM, "sinogram": np.where(sinogram() > 1, np.nan, 1.0)}, "NaN"),
        ({**SINOGRAM, "sinogram": sinogram() + 1j}, "real sinogram"),
        ({**SINOGRAM, "centre": 2.0}, "rotation centre"),
        ({**SINOGRAM, "beam": "cone"}, "expected one of parallel"),
        ({"hu": np.full((32, 32), 100.0) * np.eye(32)}, "grey values"),
        ({"hu": 1024.0 + hu_volume()}, "offset"),
        ({"hu": -5.0 * hu_volume()}, "outside the HU"),
        ({"hu": np.full((8, 8), -1000.0)}, "16 x 16"),
        ({"other": np.zeros(3)}, "expected 'sinogram'"),
    ],
)
def test_bad_arrays_are_refused_with_one_sentence(tmp_path, arrays, message):
    np.savez(tmp_path / "scan.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "scan.npz")
    assert "\n" not in str(caught.value)


def test_bad_files_are_refused(tmp_path):
    for name, content in (("a.npz", b"junk"), ("a.h5", b"junk"), ("a.nii", b"junk"), ("a.npy", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            read(tmp_path / name)
    (tmp_path / "folder").mkdir()
    for name in ("folder", "missing.npz"):
        with pytest.raises(InputError):
            read(tmp_path / name)
    np.save(tmp_path / "s.npy", sinogram())
    (tmp_path / "s.yaml").write_text("angle: 3")
    with pytest.raises(InputError, match="does not know angle"):
        read(tmp_path / "s.npy")


def test_padding_is_made_air(tmp_path):
    hu = hu_volume()
    hu[:, :3] = -2000
    np.savez(tmp_path / "scan.npz", hu=hu)
    scan = read(tmp_path / "scan.npz")
    assert float(scan.hu.min()) == -1000 and "padding" in scan.notes


def test_secondary_captures_are_read_back_where_they_were(tmp_path):
    """Values to half a step of 16 bits, place and orientation kept; the same files for the same result."""
    pytest.importorskip("pydicom")
    from invdiff_ct.formats import dicom_output

    volume = np.random.default_rng(0).uniform(-1000, 900, (3, 12, 10)).astype(np.float32)
    c, s = np.cos(0.2), np.sin(0.2)
    axes = np.array([[-0.0, -1.5, 0, 20], [-1.5, 0, 0, 30], [0, 0, 2.5, -7], [0, 0, 0, 1.0]])
    affine = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ axes
    for folder in ("a", "b"):
        dicom_output.write(tmp_path / folder, volume, affine, "mean")
    scan = read(tmp_path / "a")
    np.testing.assert_allclose(scan.hu, volume, atol=0.51 * np.ptp(volume) / 65535)
    np.testing.assert_allclose(scan.affine, affine, atol=1e-6)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["0000.dcm", "0001.dcm", "0002.dcm"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
