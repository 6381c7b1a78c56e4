"""How super-resolution is measured.

PSNR-Y and SSIM-Y in the benchmarks' convention: images rounded to 8 bits, luminance
Y = 16 + 65.481 R + 128.553 G + 24.966 B (ITU-R BT.601), as many pixels as the scale cropped at every border,
range 255; SSIM with a Gaussian window of 11 x 11, sigma 1.5, constants .01 and .03, valid region. A grey
image is its own luminance. HaarPSI (higher is better) and GMSD (lower) are deepinv's, on all channels,
uncropped.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import correlate1d

from invdiff.imaging import psnr

CONVENTION = (
    "PSNR-Y and SSIM-Y: 8-bit luminance (BT.601), borders of one scale cropped. HaarPSI and GMSD on all "
    "channels; higher and lower is better"
)
CRITERIA = {"haarpsi": 1.0, "psnr_y": 1.0, "ssim_y": 1.0, "gmsd": -1.0}  # and their direction
Image = Float[np.ndarray, "channel y x"]


def rounded(image: Image) -> Image:
    """As an 8-bit file would hold it, in [0, 1]."""
    return np.round(np.clip(image.astype(np.float64), 0, 1) * 255) / 255


def luminance(image: Image) -> Float[np.ndarray, "y x"]:
    """Y in 0 .. 255 of an RGB image (BT.601, 16 to 235), or the image itself times 255."""
    if len(image) == 1:
        return 255 * image[0].astype(np.float64)
    red, green, blue = image.astype(np.float64)
    return 16 + 65.481 * red + 128.553 * green + 24.966 * blue


def ssim(reference: Float[np.ndarray, "y x"], image: Float[np.ndarray, "y x"], peak: float = 255.0) -> float:
    """Mean SSIM (Wang et al., IEEE TIP 13:600, 2004), Gaussian window, valid region."""
    axis = np.arange(-5, 6)
    window = np.exp(-(axis**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(values: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(values, window, axis=0), window, axis=1)[5:-5, 5:-5]

    a, b = mean(reference), mean(image)
    aa, bb, ab = mean(reference**2) - a**2, mean(image**2) - b**2, mean(reference * image) - a * b
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    top, bottom = (2 * a * b + c1) * (2 * ab + c2), (a**2 + b**2 + c1) * (aa + bb + c2)
    return float((top / bottom).mean())


def compare(reference: Image, image: Image, border: int) -> dict[str, float]:
    """All metrics of an image in [0, 1] against its reference; NaN-free, keys without values are left out."""
    exact, shown = rounded(reference), rounded(image)
    y, z = (luminance(one)[border : -border or None, border : -border or None] for one in (exact, shown))
    row = {"psnr_y": psnr(y, z, 255.0)}
    if min(y.shape) >= 11:
        row["ssim_y"] = ssim(y, z)
    if len(exact) == 3:
        row["psnr_rgb"] = psnr(exact, shown)
    if min(exact.shape[1:]) >= 32:
        row |= perceptual(exact, shown)
    return row


def perceptual(reference: Image, image: Image) -> dict[str, float]:
    """HaarPSI and GMSD, which need no trained weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepinv.loss.metric import GMSD, HaarPSI

        pair = [torch.from_numpy(one).float()[None] for one in (image, reference)]
        return {"haarpsi": float(HaarPSI(norm_inputs=None)(*pair)), "gmsd": float(GMSD()(*pair))}
