"""The classical reconstructions that stand beside every result.

All in the units of the scaled measurement (99.5th percentile of the image near
1, ||A|| <= 1), so that one lambda serves every scan. The defaults were chosen on
training subjects (`benchmarks/mri.py tune-baselines DATA`); they are within .15 dB
of the best of a grid for one coil and eight, at 4x and 8x.

    zero-filled   A^T y
    CG-SENSE      argmin |A x - y|^2 / 2 + lambda |x|^2 / 2
    L1-wavelet    argmin |A x - y|^2 / 2 + lambda |W x|_1          FISTA
    TV            argmin |A x - y|^2 / 2 + lambda |grad x|_1       Chambolle-Pock
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pywt
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from invdiff import Measurement
from invdiff_mri.operators import to_complex, to_real

Tick = Callable[[], None]


@dataclass(frozen=True)
class BaselineSettings:
    """Regularisation weights in scaled units, and iteration counts."""

    sense: float = 0.01
    wavelet: float = 0.008
    tv: float = 0.012
    wavelet_iterations: int = 60
    tv_iterations: int = 120
    wavelet_name: str = "db4"
    levels: int = 4


def zero_filled(measurement: Measurement) -> Float[Tensor, "2 y x"]:
    """`A^T y`."""
    operator = measurement.linear("zero_filled")
    return operator.adjoint(measurement.y[None])[0]


def cg_sense(measurement: Measurement, weight: float = 0.01) -> Float[Tensor, "2 y x"]:
    """Tikhonov-regularised SENSE (Pruessmann et al. 2001)."""
    data = zero_filled(measurement)[None]
    solution = measurement.proximal(
        torch.zeros_like(data), 1 / weight, data=data, iterations=60, tolerance=1e-5
    )
    return solution.x[0]


def _soft(z: np.ndarray, threshold: float) -> np.ndarray:
    size = np.abs(z)
    return z * (np.maximum(size - threshold, 0) / np.maximum(size, 1e-12))


def _shrink(
    image: Complex[np.ndarray, "y x"], threshold: float, settings: BaselineSettings
) -> Complex[np.ndarray, "y x"]:
    height, width = image.shape
    block = 2**settings.levels
    padded = np.pad(image, ((0, -height % block), (0, -width % block)))
    coefficients = pywt.wavedec2(padded, settings.wavelet_name, mode="periodization", level=settings.levels)
    shrunk = [coefficients[0]] + [
        tuple(_soft(band, threshold) for band in bands) for bands in coefficients[1:]
    ]
    out = pywt.waverec2(shrunk, settings.wavelet_name, mode="periodization")
    return out[:height, :width]


def l1_wavelet(measurement: Measurement, settings: BaselineSettings | None = None) -> Float[Tensor, "2 y x"]:
    """L1-wavelet by FISTA (Lustig et al. 2007; Beck & Teboulle 2009), orthonormal wavelets."""
    settings = settings or BaselineSettings()
    operator = measurement.linear("l1_wavelet")
    data = zero_filled(measurement)[None]
    x, z, t = data, data, 1.0
    for _ in range(settings.wavelet_iterations):
        step = z - operator.normal(z) + data
        image = to_complex(step)[0].numpy()
        shrunk = torch.from_numpy(_shrink(image, settings.wavelet, settings))
        fresh = to_real(shrunk[None]).to(data.dtype)
        t_next = 0.5 * (1 + (1 + 4 * t**2) ** 0.5)
        z = fresh + (t - 1) / t_next * (fresh - x)
        x, t = fresh, t_next
    return x[0]


def _gradient(x: Float[Tensor, "2 y x"]) -> Float[Tensor, "2 2 y x"]:
    down = torch.zeros_like(x)
    right = torch.zeros_like(x)
    down[:, :-1] = x[:, 1:] - x[:, :-1]
    right[:, :, :-1] = x[:, :, 1:] - x[:, :, :-1]
    return torch.stack([down, right])


def _divergence(p: Float[Tensor, "2 2 y x"]) -> Float[Tensor, "2 y x"]:
    out = torch.zeros_like(p[0])
    out[:, :-1] -= p[0][:, :-1]
    out[:, 1:] += p[0][:, :-1]
    out[:, :, :-1] -= p[1][:, :, :-1]
    out[:, :, 1:] += p[1][:, :, :-1]
    return out


def total_variation(
    measurement: Measurement, settings: BaselineSettings | None = None
) -> Float[Tensor, "2 y x"]:
    """Isotropic complex TV by Condat-Vu primal-dual steps (Condat 2013), step 1/||A||^2 = 1."""
    settings = settings or BaselineSettings()
    operator = measurement.linear("total_variation")
    data = zero_filled(measurement)[None]
    weight = settings.tv
    # Condat-Vu: 1/tau - sigma |grad|^2 >= |A|^2 / 2, with |grad|^2 <= 8 and |A| <= 1; sigma
    # of the size weight / (typical gradient) balances the two.
    tau = 0.9
    sigma = (1 / tau - 0.5) / 8
    x = data
    dual = torch.zeros(2, 2, *data.shape[-2:], dtype=data.dtype)
    for _ in range(settings.tv_iterations):
        slope = operator.normal(x) - data
        fresh = x - tau * (slope + _divergence(dual)[None])
        dual = dual + sigma * _gradient((2 * fresh - x)[0])
        size = dual.square().sum(dim=(0, 1), keepdim=True).sqrt()
        dual = dual / (size / weight).clamp_min(1.0)
        x = fresh
    return x[0]


def all_baselines(
    measurement: Measurement, settings: BaselineSettings | None = None, tick: Tick = lambda: None
) -> dict[str, Float[Tensor, "2 y x"]]:
    """Every baseline by its name."""
    settings = settings or BaselineSettings()
    out = {"zero_filled": zero_filled(measurement)}
    tick()
    out["cg_sense"] = cg_sense(measurement, settings.sense)
    tick()
    out["l1_wavelet"] = l1_wavelet(measurement, settings)
    tick()
    out["tv"] = total_variation(measurement, settings)
    tick()
    return out
