"""Cartesian MR acquisition: `A x = M F (S_c x)`, one image and its coils.

x is real [batch, 2, y, x] (Re, Im), data are real [batch, 2, coil, y, x] with
zeros where nothing was measured. The FFT is orthonormal and centred,

    image = fftshift(ifft2(ifftshift(kspace))),

so with sum_c |S_c|^2 = 1 the norm of A is at most 1. Noise levels are per real
component.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from invdiff import InputError, LinearOperator


def to_complex(x: Float[Tensor, "batch 2 *rest"]) -> Complex[Tensor, "batch *rest"]:
    """Channels (Re, Im) to a complex tensor."""
    return torch.complex(x[:, 0], x[:, 1])


def to_real(z: Complex[Tensor, "batch *rest"]) -> Float[Tensor, "batch 2 *rest"]:
    """A complex tensor to channels (Re, Im)."""
    return torch.stack([z.real, z.imag], dim=1)


def to_kspace(image: Complex[Tensor, "*batch y x"]) -> Complex[Tensor, "*batch y x"]:
    """Centred orthonormal 2-D FFT."""
    axes = (-2, -1)
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, dim=axes), norm="ortho"), dim=axes)


def to_image(kspace: Complex[Tensor, "*batch y x"]) -> Complex[Tensor, "*batch y x"]:
    """Centred orthonormal 2-D inverse FFT."""
    axes = (-2, -1)
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=axes), norm="ortho"), dim=axes)


class CartesianSense(LinearOperator):
    """Undersampled Cartesian k-space of one or several coils.

    Args:
        mask: which samples of [y, x] k-space were acquired (centred).
        coil_maps: sensitivities [coil, y, x], sum of squares 1 in the support.

    Raises:
        InputError: for a mask that selects nothing or has another shape than the maps.
    """

    def __init__(self, mask: Bool[Tensor, "rows columns"], coil_maps: Complex[Tensor, "coil y x"]) -> None:
        if tuple(mask.shape) != tuple(coil_maps.shape[-2:]):
            raise InputError(
                f"the mask has shape {tuple(mask.shape)} and the coil maps are "
                f"{tuple(coil_maps.shape[-2:])}; give both on the k-space grid"
            )
        if not bool(mask.any()):
            raise InputError(
                "the mask selects no sample at all; check the file or use operator.mask=from_data"
            )
        self.mask, self.coil_maps = mask, coil_maps
        height, width = mask.shape
        self.event_shape = (2, height, width)
        # Inside, everything is stored with the origin first, so that one application
        # shifts x once instead of every coil twice; and an axis along which the mask
        # does not vary needs no transform in A^T A.
        self._mask = torch.fft.ifftshift(mask)
        self._maps = torch.fft.ifftshift(coil_maps, dim=(-2, -1))
        if bool((mask == mask[:1]).all()):
            self._axes: tuple[int, ...] = (-1,)
        elif bool((mask == mask[:, :1]).all()):
            self._axes = (-2,)
        else:
            self._axes = (-2, -1)
        self._spectrum: tuple[Tensor, Tensor] | None = None

    def data_size(self, y: Float[Tensor, "*data"]) -> int:
        return 2 * self.coil_maps.shape[0] * int(self.mask.sum())

    def _stored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        return self._mask.to(x.device), self._maps.to(x.device, dtype)

    def forward(self, x: Float[Tensor, "batch 2 y x"]) -> Float[Tensor, "batch 2 coil y x"]:
        mask, maps = self._stored(x)
        image = torch.fft.ifftshift(to_complex(x), dim=(-2, -1))
        kspace = torch.fft.fft2(maps * image[:, None], norm="ortho") * mask
        return to_real(torch.fft.fftshift(kspace, dim=(-2, -1)))

    def adjoint(self, y: Float[Tensor, "batch 2 coil y x"]) -> Float[Tensor, "batch 2 y x"]:
        mask, maps = self._stored(y)
        kspace = torch.fft.ifftshift(to_complex(y), dim=(-2, -1)) * mask
        image = (maps.conj() * torch.fft.ifft2(kspace, norm="ortho")).sum(dim=1)
        return to_real(torch.fft.fftshift(image, dim=(-2, -1)))

    def normal(self, x: Float[Tensor, "batch 2 y x"]) -> Float[Tensor, "batch 2 y x"]:
        mask, maps = self._stored(x)
        image = torch.fft.ifftshift(to_complex(x), dim=(-2, -1))
        kspace = torch.fft.fftn(maps * image[:, None], dim=self._axes, norm="ortho")
        coils = torch.fft.ifftn(kspace * mask, dim=self._axes, norm="ortho")
        out = (maps.conj() * coils).sum(dim=1)
        return to_real(torch.fft.fftshift(out, dim=(-2, -1)))

    def resolvent(self, rhs: Float[Tensor, "batch 2 y x"], gamma: float) -> Tensor | None:
        """`(1 + gamma A^H A)^-1 rhs` in closed form, for one coil or whole phase-encode lines.

        One coil with |S| = 1: diagonal in k-space. Several coils and a mask that is
        constant along one axis: A^H A couples pixels along the other axis only, so
        it is one small Hermitian matrix a line, decomposed once (float32; None in
        float64, on a GPU, and above half a gigabyte).
        """
        if self.coil_maps.shape[0] == 1:
            mask, maps = self._stored(rhs)
            if not torch.allclose(maps.abs(), torch.ones_like(maps.real), atol=1e-6):
                return None
            image = maps[0] * torch.fft.ifftshift(to_complex(rhs), dim=(-2, -1))
            kspace = torch.fft.fft2(image, norm="ortho") / (1 + gamma * mask)
            out = maps[0].conj() * torch.fft.ifft2(kspace, norm="ortho")
            return to_real(torch.fft.fftshift(out, dim=(-2, -1)))
        lines, length = self.mask.shape if self._axes == (-1,) else self.mask.shape[::-1]
        if len(self._axes) > 1 or rhs.dtype != torch.float32 or rhs.device.type != "cpu":
            return None
        if lines * length**2 * 8 > 5e8:
            return None
        if self._spectrum is None:
            self._spectrum = self._decompose()
        values, vectors = self._spectrum
        image = torch.fft.ifftshift(to_complex(rhs), dim=(-2, -1))
        rows = (image if self._axes == (-1,) else image.mT).permute(1, 2, 0)
        # (rows^H V)^H is V^H rows without a conjugated copy of all the vectors.
        coefficients = (rows.mH @ vectors).mH / (1 + gamma * values)[..., None]
        solved = (vectors @ coefficients).permute(2, 0, 1)
        solved = solved if self._axes == (-1,) else solved.mT
        return to_real(torch.fft.fftshift(solved, dim=(-2, -1)))

    def _decompose(self) -> tuple[Tensor, Tensor]:
        # Along one line A^H A = sum_c conj(S_c) T S_c with T the circulant matrix of the mask.
        along_x = self._axes == (-1,)
        line = self._mask[0] if along_x else self._mask[:, 0]
        maps = self._maps.to(torch.complex64) if along_x else self._maps.to(torch.complex64).mT
        kernel = torch.fft.ifft(line.to(torch.complex64))
        index = torch.arange(len(line))
        circulant = kernel[(index[:, None] - index[None, :]) % len(line)]
        gram = torch.einsum("cyi,cyj->yij", maps.conj(), maps) * circulant
        values, vectors = torch.linalg.eigh(gram)
        return values.clamp_min(0), vectors.contiguous()
