"""ISMRMRD raw data: acquisitions sorted into k-space by their encoding counters."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch

from invdiff import InputError
from invdiff_mri.formats.options import ReadOptions
from invdiff_mri.scan import Scan, arrange


def matches(path: Path) -> bool:
    """Whether an HDF5 file holds an ISMRMRD `dataset` group."""
    try:
        with h5py.File(path) as file:
            return "dataset" in file and "data" in file["dataset"]
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be read as HDF5 ({error}); the file is truncated or damaged"
        ) from None


def read(path: Path, options: ReadOptions) -> Scan:
    """Cartesian 2-D slices of the first contrast, averages summed; noise scans kept apart.

    Raises:
        InputError: for 3-D encodings, or a file without imaging acquisitions.
    """
    import ismrmrd
    import ismrmrd.xsd

    dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=False)
    try:
        header = ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header())
        count = dataset.number_of_acquisitions()
        acquisitions = [dataset.read_acquisition(index) for index in range(count)]
    finally:
        dataset.close()
    encoding = header.encoding[0]
    matrix, recon = encoding.encodedSpace.matrixSize, encoding.reconSpace.matrixSize
    if matrix.z > 1:
        raise InputError(
            f"{path.name} is a 3-D acquisition ({matrix.x}x{matrix.y}x{matrix.z}); "
            "inverse-transform it along the partitions and give the slices"
        )
    skipped = (
        ismrmrd.ACQ_IS_PARALLEL_CALIBRATION,
        ismrmrd.ACQ_IS_NAVIGATION_DATA,
        ismrmrd.ACQ_IS_PHASECORR_DATA,
        ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
    )
    noise, lines = [], []
    for acquisition in acquisitions:
        if acquisition.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            noise.append(np.array(acquisition.data))
        elif not any(acquisition.is_flag_set(flag) for flag in skipped) and (
            acquisition.idx.contrast == 0 and acquisition.idx.repetition == 0
        ):
            lines.append(acquisition)
    if not lines:
        raise InputError(f"{path.name} holds no imaging acquisition (of {count} in all)")
    samples = {line.data.shape for line in lines}
    if len(samples) != 1:
        raise InputError(f"{path.name} mixes acquisitions of shapes {sorted(samples)}")
    coils, readout = samples.pop()
    slices = max(line.idx.slice for line in lines) + 1
    limits = encoding.encodingLimits.kspace_encoding_step_1
    # The line of zero phase encode goes to the centre of the grid.
    offset = 0 if limits is None else matrix.y // 2 - limits.center
    array = np.zeros((slices, coils, readout, matrix.y), dtype=np.complex64)
    averages = np.zeros((slices, matrix.y), dtype=int)
    for line in lines:
        position = line.idx.kspace_encode_step_1 + offset
        if not 0 <= position < matrix.y:
            raise InputError(
                f"{path.name}: phase encode {line.idx.kspace_encode_step_1} falls outside the "
                f"encoded matrix of {matrix.y} lines"
            )
        data = np.array(line.data)
        if line.is_flag_set(ismrmrd.ACQ_IS_REVERSE):
            data = data[:, ::-1]
        array[line.idx.slice, :, :, position] += data
        averages[line.idx.slice, position] += 1
    array /= np.maximum(averages, 1)[:, None, None, :]
    kspace = arrange(array, "slice,coil,y,x", path.name)
    measured = torch.from_numpy(averages.min(axis=0) > 0)
    mask = measured[None, :].expand(readout, matrix.y).clone()
    crop = (recon.x, recon.y) if recon.x <= readout and recon.y <= matrix.y else None
    scan_noise = torch.from_numpy(np.concatenate(noise, axis=1)) if noise else None
    return Scan(kspace, mask=mask, noise=scan_noise, crop=crop, meta={"format": "ISMRMRD"})
