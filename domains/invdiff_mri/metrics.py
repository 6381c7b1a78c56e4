"""Image metrics in the fastMRI convention, and a masked SSIM.

Magnitudes; PSNR and SSIM with the maximum of the reference *volume* as data
range, SSIM with a uniform 7 x 7 window, k1 = .01, k2 = .03 and sample
covariances (as scikit-image), NMSE = |v - v_hat|^2 / |v|^2. The slice instead
of the volume as range changes the figures by decibels, so the convention is
written into every metrics file.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import binary_fill_holes

from invdiff.imaging import psnr, ssim_map

CONVENTION = "fastMRI: magnitude, range = maximum of the reference volume, SSIM 7x7 uniform"


def nmse(reference: Float[np.ndarray, "y x"], image: Float[np.ndarray, "y x"]) -> float:
    """`|v - v_hat|^2 / |v|^2`."""
    return float(((reference - image) ** 2).sum() / (reference**2).sum())


def object_mask(reference: Float[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Where the reference is above 5 % of its 99.5th percentile, holes filled."""
    return np.asarray(binary_fill_holes(reference > 0.05 * np.percentile(reference, 99.5)))


def compare(
    reference: Float[np.ndarray, "y x"],
    image: Float[np.ndarray, "y x"],
    peak: float | None = None,
) -> dict[str, float]:
    """PSNR (dB), SSIM, NMSE and SSIM inside the object; `peak` is the volume maximum."""
    peak = float(reference.max()) if peak is None else peak
    similarity = ssim_map(reference, image, peak)
    return {
        "psnr": psnr(reference, image, peak),
        "ssim": float(similarity[3:-3, 3:-3].mean()),
        "nmse": nmse(reference, image),
        "ssim_masked": float(similarity[object_mask(reference)].mean()),
    }
