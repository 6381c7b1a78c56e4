"""DICOM secondary captures (PS3.3 A.8.1): one file a slice, HU by rescale, placed as the affine says.

Nothing of a patient is in them. Identifiers are hashes of the values, so the same result has the same files.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from NIfTI's axes (right, anterior, superior), and back


def write(
    folder: Path,
    volume: Float[np.ndarray, "slice y x"],
    affine: Float[np.ndarray, "4 4"],
    name: str,
    unit: str = "HU",
) -> None:
    """`folder/0000.dcm` and on, 16 bits over the range of the values.

    Args:
        folder: made where absent.
        volume: in `unit`.
        affine: voxel (y, x, slice) to mm.
        name: series description.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    low, high = float(volume.min()), float(volume.max())
    # A decimal string holds 16 characters: the slope as it is stored is the one that is used.
    slope, intercept = float(f"{max(high - low, 1e-6) / 65535:.10g}"), float(f"{low:.10g}")
    stored = np.clip(np.rint((volume - intercept) / slope), 0, 65535).astype(np.uint16)
    patient = LPS @ affine
    pitch = np.linalg.norm(patient[:3, :3], axis=0)
    key = hashlib.sha256(volume.tobytes() + affine.tobytes()).hexdigest()
    study, series = (generate_uid(entropy_srcs=[key, part]) for part in ("study", name))
    for index, pixels in enumerate(stored):
        data = Dataset()
        data.SOPClassUID = SecondaryCaptureImageStorage
        data.SOPInstanceUID = generate_uid(entropy_srcs=[key, name, str(index)])
        data.StudyInstanceUID, data.SeriesInstanceUID = study, series
        data.Modality, data.ConversionType = "OT", "WSD"
        data.PatientName = data.PatientID = data.PatientBirthDate = data.PatientSex = ""
        data.StudyDate = data.StudyTime = data.ReferringPhysicianName = data.AccessionNumber = ""
        data.StudyID, data.SeriesNumber, data.InstanceNumber = "", 1, index + 1
        data.SeriesDescription = f"invdiff {name}; not for clinical use"
        data.Manufacturer = "invdiff"
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = slope, intercept, unit
        # A step down a column of the image runs along the first axis of the affine.
        data.PixelSpacing = [f"{pitch[0]:.10g}", f"{pitch[1]:.10g}"]
        data.SliceThickness = f"{pitch[2]:.10g}"
        cosines = np.concatenate([patient[:3, 1] / pitch[1], patient[:3, 0] / pitch[0]])
        data.ImageOrientationPatient = [f"{value:.10g}" for value in cosines]
        place = (patient @ np.array([0, 0, index, 1.0]))[:3]
        data.ImagePositionPatient = [f"{value:.10g}" for value in place]
        data.PixelData = np.ascontiguousarray(pixels).astype("<u2").tobytes()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        part = folder / f".{index:04d}.dcm"
        data.save_as(part, enforce_file_format=True)
        os.replace(part, folder / f"{index:04d}.dcm")
