"""Readers: round trips, and one clear sentence for everything that is wrong."""

from __future__ import annotations

import gzip

import h5py
import numpy as np
import pytest
import torch

from invdiff import InputError
from invdiff.imaging import write_nifti
from invdiff_mri import formats
from invdiff_mri.formats import bart
from invdiff_mri.formats.images import SimulateOptions
from invdiff_mri.formats.images import read as read_image
from invdiff_mri.formats.options import ReadOptions
from invdiff_mri.operators import to_kspace
from tests.data import shared

RNG = np.random.default_rng(0)


def kspace(coils: int = 4, height: int = 96, width: int = 80) -> np.ndarray:
    image = RNG.random((coils, height, width)) + 1.0
    return to_kspace(torch.from_numpy(image).to(torch.complex64)).numpy()


def test_npz_round_trip(tmp_path):
    data = kspace()
    mask = np.zeros(80, bool)
    mask[::2] = mask[36:44] = True
    np.savez(tmp_path / "scan.npz", kspace=data * mask, mask=mask)
    scan = formats.read(tmp_path / "scan.npz")
    assert scan.kspace.shape == (1, 4, 96, 80)
    np.testing.assert_array_equal(scan.kspace[0].numpy(), data * mask)
    assert scan.mask is not None
    np.testing.assert_array_equal(scan.mask[3].numpy(), mask)


def test_npy_guesses_the_coil_axis(tmp_path):
    np.save(tmp_path / "scan.npy", kspace())
    assert formats.read(tmp_path / "scan.npy").kspace.shape == (1, 4, 96, 80)


def test_coils_on_another_axis_are_suggested(tmp_path):
    np.save(tmp_path / "scan.npy", np.moveaxis(kspace(), 0, 2))
    with pytest.raises(InputError, match=r'input.axes="y,x,coil"'):
        formats.read(tmp_path / "scan.npy")
    scan = formats.read(tmp_path / "scan.npy", ReadOptions(axes="y,x,coil"))
    assert scan.kspace.shape == (1, 4, 96, 80)


def test_fastmri_round_trip(tmp_path):
    data = np.stack([kspace(), kspace()])
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = data
        file.attrs["acquisition"] = "AXT1"
    scan = formats.read(tmp_path / "scan.h5")
    assert scan.mask is None  # not a mask of zeros
    np.testing.assert_array_equal(scan.kspace.numpy(), data)
    assert scan.meta["acquisition"] == "AXT1"


def test_fastmri_single_coil_and_crop(tmp_path):
    header = (
        "<ismrmrdHeader><encoding><encodedSpace><matrixSize><x>96</x><y>80</y></matrixSize>"
        "</encodedSpace><reconSpace><matrixSize><x>48</x><y>80</y><z>1</z></matrixSize></reconSpace>"
        "</encoding></ismrmrdHeader>"
    )
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace(1)
        file["ismrmrd_header"] = header
    scan = formats.read(tmp_path / "scan.h5")
    assert scan.kspace.shape == (1, 1, 96, 80)
    assert scan.crop == (48, 80)


def test_fastmri_file_equals_the_npz():
    h5 = formats.read(shared("mri_kspace/head8ch_full_fastmri.h5"))
    npz = formats.read(shared("mri_kspace/head8ch_full.npz"))
    ratio = h5.kspace.abs().max() / npz.kspace.abs().max()
    torch.testing.assert_close(h5.kspace / ratio, npz.kspace, rtol=1e-4, atol=1e-6)


def test_bart_round_trip_and_dimensions(tmp_path):
    data = kspace()
    bart.save(tmp_path / "scan", np.moveaxis(data, 0, 2)[:, :, None, :])
    scan = formats.read(tmp_path / "scan.cfl")
    np.testing.assert_array_equal(scan.kspace[0].numpy(), data)
    assert len((tmp_path / "scan.hdr").read_text().splitlines()[1].split()) == 16


def test_bart_wrong_coil_axis_is_seen(tmp_path):
    bart.save(tmp_path / "scan", kspace()[:, :, None, :].transpose(1, 0, 2, 3).reshape(96, 4, 1, 80))
    with pytest.raises(InputError, match="dimension"):
        formats.read(tmp_path / "scan.cfl")


def test_bart_truncated(tmp_path):
    bart.save(tmp_path / "scan", np.moveaxis(kspace(), 0, 2)[:, :, None, :])
    raw = (tmp_path / "scan.cfl").read_bytes()
    (tmp_path / "scan.cfl").write_bytes(raw[:-100])
    with pytest.raises(InputError, match="truncated"):
        formats.read(tmp_path / "scan.cfl")


def test_ismrmrd_round_trip_with_shuffled_lines(tmp_path):
    import ismrmrd

    data = kspace()
    coils, height, width = data.shape
    lines = RNG.permutation(np.flatnonzero(np.arange(width) % 3 != 2))
    xml = f"""<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
    <experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>
    <encoding><encodedSpace><matrixSize><x>{height}</x><y>{width}</y><z>1</z></matrixSize>
    <fieldOfView_mm><x>1</x><y>1</y><z>1</z></fieldOfView_mm></encodedSpace>
    <reconSpace><matrixSize><x>{height}</x><y>{width}</y><z>1</z></matrixSize>
    <fieldOfView_mm><x>1</x><y>1</y><z>1</z></fieldOfView_mm></reconSpace>
    <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{width - 1}</maximum>
    <center>{width // 2}</center></kspace_encoding_step_1></encodingLimits>
    <trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"""
    dataset = ismrmrd.Dataset(str(tmp_path / "scan.h5"), "dataset", create_if_needed=True)
    dataset.write_xml_header(xml.encode())
    noise = (RNG.standard_normal((coils, height)) + 0j).astype(np.complex64)
    acquisition = ismrmrd.Acquisition.from_array(noise)
    acquisition.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    dataset.append_acquisition(acquisition)
    for line in lines:
        acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data[:, :, line]))
        acquisition.idx.kspace_encode_step_1 = int(line)
        dataset.append_acquisition(acquisition)
    dataset.close()
    scan = formats.read(tmp_path / "scan.h5")
    expected = np.zeros_like(data)
    expected[:, :, lines] = data[:, :, lines]
    np.testing.assert_array_equal(scan.kspace[0].numpy(), expected)
    assert scan.mask is not None
    assert int(scan.mask[0].sum()) == len(lines)
    assert scan.noise is not None
    np.testing.assert_array_equal(scan.noise.numpy(), noise)


def nan(data):
    data[1, 2, 3] = np.nan
    return data


BAD = {
    "not hdf5": ("scan.h5", lambda p: p.write_bytes(b"not a file"), "not an HDF5 file"),
    "empty": ("scan.npz", lambda p: p.write_bytes(b""), "empty"),
    "not numpy": ("scan.npy", lambda p: p.write_bytes(b"hello there"), "not a numpy file"),
    "nan": ("scan.npy", lambda p: np.save(p, nan(kspace())), r"NaN or infinite.*\(0, 1, 2, 3\)"),
    "real": ("scan.npy", lambda p: np.save(p, kspace().real), "real-valued"),
    "zeros": ("scan.npy", lambda p: np.save(p, 0 * kspace()), "zero everywhere"),
    "ambiguous": ("scan.npy", lambda p: np.save(p, kspace(4, 40, 40)), "input.axes"),
    "not centred": (
        "scan.npy",
        lambda p: np.save(p, np.fft.ifftshift(kspace(), axes=(1, 2))),
        "input.shift=true",
    ),
    "zero mask": (
        "scan.npz",
        lambda p: np.savez(p, kspace=kspace(), mask=np.zeros(80)),
        "all zeros",
    ),
    "mask shape": (
        "scan.npz",
        lambda p: np.savez(p, kspace=kspace(), mask=np.ones((80, 96))),
        r"shape \(80, 96\); expected \(96, 80\)",
    ),
    "ending": ("scan.docx", lambda p: p.write_bytes(b"x"), "ends in '.docx'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(case, tmp_path):
    name, make, message = BAD[case]
    make(tmp_path / name)
    with pytest.raises(InputError, match=message):
        formats.read(tmp_path / name)


def test_truncated_hdf5(tmp_path):
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["kspace"] = kspace()[None]
    raw = (tmp_path / "whole.h5").read_bytes()
    (tmp_path / "scan.h5").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match="truncated"):
        formats.read(tmp_path / "scan.h5")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no file"):
        formats.read(tmp_path / "scan.h5")


def test_nifti_is_a_labelled_simulation_and_keeps_its_affine(tmp_path):
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    volume = RNG.random((3, 32, 40)).astype(np.float32)
    write_nifti(tmp_path / "image.nii.gz", volume, affine)
    scan = read_image(tmp_path / "image.nii.gz", SimulateOptions(coils=4, slices=(0, None, None)))
    assert scan.kspace.shape == (3, 4, 32, 40)
    assert scan.simulated is not None and "simulated from magnitude" in scan.simulated
    np.testing.assert_allclose(scan.affine, affine, atol=1e-6)
    again = read_image(tmp_path / "image.nii.gz", SimulateOptions(coils=4, slices=(0, None, None)))
    assert torch.equal(scan.kspace, again.kspace)


def test_simulated_kspace_is_not_conjugate_symmetric(tmp_path):
    from PIL import Image

    Image.fromarray((RNG.random((48, 48)) * 255).astype(np.uint8)).save(tmp_path / "image.png")
    scan = read_image(tmp_path / "image.png", SimulateOptions(coils=1, sigma=0.0))
    k = scan.kspace[0, 0][1:, 1:]
    mirrored = k.flip(0, 1).conj()
    assert float((k - mirrored).abs().mean() / k.abs().mean()) > 0.3


def test_damaged_image(tmp_path):
    (tmp_path / "image.nii.gz").write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_image(tmp_path / "image.nii.gz", SimulateOptions())


def dicom(path, position, value):
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    file.Rows, file.Columns = 24, 20
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation, file.SamplesPerPixel = 15, 0, 1
    file.PhotometricInterpretation = "MONOCHROME2"
    file.ImagePositionPatient = [0, 0, position]
    file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    file.PixelData = np.full((24, 20), value, np.uint16).tobytes()
    assert pydicom.__version__
    file.save_as(path, enforce_file_format=True)


def test_dicom_series_is_sorted_by_position(tmp_path):
    for number, position in enumerate((20, 0, 10)):
        dicom(tmp_path / f"{number}.dcm", position, 100 + position)
    scan = read_image(tmp_path, SimulateOptions(coils=1, slices=(None, None, None)))
    assert scan.reference is not None
    levels = scan.reference[:, 0, 0]
    assert bool((levels.diff() > 0).all())
