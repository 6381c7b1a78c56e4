"""Coil sensitivities: ESPIRiT from the calibration region, simulated, or given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from invdiff import InputError
from invdiff_mri.operators import to_image


@dataclass(frozen=True)
class CoilMaps:
    """Sensitivities and where they mean something.

    Attributes:
        maps: [coil, y, x], sum of squares 1 everywhere.
        eigenvalue: ESPIRiT eigenvalue, near 1 inside the object.
        source: how they were obtained, in words.
    """

    maps: Complex[Tensor, "coil y x"]
    eigenvalue: Float[Tensor, "y x"]
    source: str

    @property
    def support(self) -> Tensor:
        """Where the eigenvalue is above .95."""
        return self.eigenvalue > 0.95


def center_crop(kspace: Complex[Tensor, "coil y x"], rows: int, columns: int) -> Tensor:
    """The centred [coil, rows, columns] part of k-space."""
    top = (kspace.shape[1] - rows + 1) // 2
    left = (kspace.shape[2] - columns + 1) // 2
    return kspace[:, top : top + rows, left : left + columns]


def espirit(
    kspace: Complex[Tensor, "coil y x"],
    region: tuple[int, int],
    *,
    kernel: int | None = None,
    threshold: float = 0.02,
    limit: int = 32,
    iterations: int = 40,
) -> CoilMaps:
    """One set of ESPIRiT maps (Uecker et al. 2014, MRM 71:990).

    The signal space of the calibration matrix, as convolution kernels, gives a
    coil x coil matrix at every pixel whose leading eigenvector is the
    sensitivity. Unlike sigpy's, the calibration region may be a rectangle
    (`region`, up to `limit` a side): with few calibration lines the readout
    direction still supplies patches. `kernel` is 6, and down to 4 where fewer than
    14 lines would leave less than eight positions for it: with 10 lines a kernel of
    6 cannot tell the null space, and its maps are off by 4 % instead of 1.7 %.
    Phase is relative to the first coil.

    Raises:
        InputError: where the region cannot hold the kernel.
    """
    coils = kspace.shape[0]
    rows, columns = min(region[0], limit), min(region[1], limit)
    short = min(rows, columns)
    size = min(max(4, min(6, short - 8)) if kernel is None else kernel, short)
    if min(rows, columns) < 4:
        raise InputError(
            f"the calibration region is {region[0]}x{region[1]} samples, too small for coil maps; "
            "acquire at least 12 central lines or give operator.coil_maps=FILE"
        )
    center = center_crop(kspace, rows, columns).to(torch.complex64)
    patches = center.unfold(1, size, 1).unfold(2, size, 1)  # [coil, ny, nx, size, size]
    matrix = patches.permute(1, 2, 0, 3, 4).reshape(-1, coils * size * size)
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    kept = vectors[values > threshold * values[0]].reshape(-1, coils, size, size)
    height, width = kspace.shape[1:]
    gram = torch.zeros(coils, coils, height, width, dtype=torch.complex64)
    for kernel_ in kept:
        padded = torch.zeros(coils, height, width, dtype=torch.complex64)
        top, left = (height - size + 1) // 2, (width - size + 1) // 2
        padded[:, top : top + size, left : left + size] = kernel_
        image = to_image(padded)
        gram += image[:, None] * image[None].conj()
    gram *= height * width / size**2
    gram = gram.permute(2, 3, 0, 1)
    vector = torch.ones(height, width, coils, 1, dtype=torch.complex64)
    eigenvalue = torch.ones(height, width)
    for _ in range(iterations):
        vector = gram @ vector
        eigenvalue = vector.norm(dim=(-2, -1))
        vector = vector / eigenvalue.clamp_min(1e-12)[..., None, None]
    maps = vector[..., 0].permute(2, 0, 1)
    maps = maps * torch.exp(-1j * maps[:1].angle())
    return CoilMaps(maps.contiguous(), eigenvalue, f"ESPIRiT, calibration {rows}x{columns}")


def simulate_coils(coils: int, height: int, width: int) -> Complex[Tensor, "coil y x"]:
    """Gaussian profiles on a circle of radius 1.2 (field of view [-1, 1]), linear phase.

    Width .8; normalised to a sum of squares of 1.
    """
    u = torch.linspace(-1, 1, height)[:, None]
    v = torch.linspace(-1, 1, width)[None, :]
    maps = []
    for c in range(coils):
        t = 2 * math.pi * c / coils
        distance = (u - 1.2 * math.cos(t)) ** 2 + (v - 1.2 * math.sin(t)) ** 2
        phase = t + 0.5 * (u * math.cos(t) + v * math.sin(t))
        maps.append(torch.exp(-distance / (2 * 0.8**2)) * torch.exp(1j * phase))
    stack = torch.stack(maps).to(torch.complex64)
    return stack / stack.abs().square().sum(dim=0).sqrt()


def normalised(maps: Complex[Tensor, "coil y x"]) -> Complex[Tensor, "coil y x"]:
    """Maps divided by their root sum of squares; ones in the first coil where that is zero."""
    total = maps.abs().square().sum(dim=0).sqrt()
    out = maps / total.clamp_min(1e-12)
    empty = total <= 1e-6 * total.max()
    out[:, empty] = 0
    out[0, empty] = 1
    return out


def low_resolution_phase(
    kspace: Complex[Tensor, "coil y x"], maps: Complex[Tensor, "coil y x"], region: tuple[int, int]
) -> Float[Tensor, "y x"]:
    """Phase of the Hann-windowed calibration image, in radians."""
    rows, columns = region
    window = torch.zeros(kspace.shape[1:])
    top, left = (kspace.shape[1] - rows + 1) // 2, (kspace.shape[2] - columns + 1) // 2
    hann = torch.hann_window(rows + 2, False)[1:-1, None] * torch.hann_window(columns + 2, False)[1:-1]
    window[top : top + rows, left : left + columns] = hann
    return (maps.conj() * to_image(kspace * window)).sum(dim=0).angle()
