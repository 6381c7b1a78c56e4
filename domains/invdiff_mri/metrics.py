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
from scipy.ndimage import binary_fill_holes, uniform_filter

CONVENTION = "fastMRI: magnitude, range = maximum of the reference volume, SSIM 7x7 uniform"


def nmse(reference: Float[np.ndarray, "y x"], image: Float[np.ndarray, "y x"]) -> float:
    """`|v - v_hat|^2 / |v|^2`."""
    return float(((reference - image) ** 2).sum() / (reference**2).sum())


def psnr(reference: Float[np.ndarray, "y x"], image: Float[np.ndarray, "y x"], peak: float) -> float:
    """`10 log10(peak^2 / mean squared error)` in dB."""
    return float(10 * np.log10(peak**2 / ((reference - image) ** 2).mean()))


def ssim_map(
    reference: Float[np.ndarray, "y x"], image: Float[np.ndarray, "y x"], peak: float
) -> Float[np.ndarray, "y x"]:
    """SSIM of every pixel (Wang et al. 2004), uniform 7 x 7 window."""
    v, w = reference.astype(np.float64), image.astype(np.float64)
    unbiased = 49 / 48
    mean_v, mean_w = uniform_filter(v, 7), uniform_filter(w, 7)
    var_v = unbiased * (uniform_filter(v * v, 7) - mean_v**2)
    var_w = unbiased * (uniform_filter(w * w, 7) - mean_w**2)
    cov = unbiased * (uniform_filter(v * w, 7) - mean_v * mean_w)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    top = (2 * mean_v * mean_w + c1) * (2 * cov + c2)
    return top / ((mean_v**2 + mean_w**2 + c1) * (var_v + var_w + c2))


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


def coverage(
    reference: Float[np.ndarray, "y x"],
    mean: Float[np.ndarray, "y x"],
    std: Float[np.ndarray, "y x"],
    mask: Bool[np.ndarray, "y x"],
    reference_noise: Float[np.ndarray, "y x"] | float = 0.0,
) -> dict[str, float]:
    """Share of object pixels within 1 and 2 std of the mean (nominal .683 and .954).

    `std_factor` is what the std would have to be multiplied by for .683.

    `reference_noise` is the std of the reference's own noise, added in quadrature:
    a measured reference is not the truth.
    """
    total = np.sqrt(std**2 + np.asarray(reference_noise) ** 2)
    z = (np.abs(reference - mean) / np.maximum(total, 1e-12))[mask]
    return {
        "within_1_std": float((z < 1).mean()),
        "within_2_std": float((z < 2).mean()),
        "std_factor": float(np.quantile(z, 0.6827)),
    }
