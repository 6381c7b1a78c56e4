"""Image metrics of CT in the `hu_window` convention.

Images are clipped to the window (default -1000 to 1000 HU, that is x in [0, 1])
and PSNR and SSIM take its width as data range; SSIM with a uniform 7 x 7 window,
k1 = .01, k2 = .03 and sample covariances (as scikit-image). Errors and bias in HU
are of the clipped images too, inside the field of view.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import binary_fill_holes, label, uniform_filter

CONVENTION = (
    "hu_window: clipped to the HU window, range = its width, SSIM 7x7 uniform; psnr and ssim over the "
    "square, the others inside the circular field of view"
)


def psnr(reference: Float[np.ndarray, "*shape"], image: Float[np.ndarray, "*shape"]) -> float:
    """`-10 log10(mean squared error)` in dB, data range 1."""
    error = float(((reference.astype(np.float64) - image) ** 2).mean())
    return float(-10 * np.log10(max(error, 1e-20)))


def ssim_map(reference: Float[np.ndarray, "y x"], image: Float[np.ndarray, "y x"]) -> np.ndarray:
    """SSIM of every pixel (Wang et al. 2004), uniform 7 x 7 window, data range 1."""
    v, w = reference.astype(np.float64), image.astype(np.float64)
    unbiased = 49 / 48
    mean_v, mean_w = uniform_filter(v, 7), uniform_filter(w, 7)
    var_v = unbiased * (uniform_filter(v * v, 7) - mean_v**2)
    var_w = unbiased * (uniform_filter(w * w, 7) - mean_w**2)
    cov = unbiased * (uniform_filter(v * w, 7) - mean_v * mean_w)
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_v * mean_w + c1) * (2 * cov + c2)
    out: np.ndarray = top / ((mean_v**2 + mean_w**2 + c1) * (var_v + var_w + c2))
    return out


def body_mask(reference: Float[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """The largest connected part above -500 HU, holes (lungs) filled."""
    parts, count = label(reference > 0.25)
    if count == 0:
        return np.ones(reference.shape, dtype=bool)
    sizes = np.bincount(parts.ravel())[1:]
    return np.asarray(binary_fill_holes(parts == 1 + int(sizes.argmax())))


def compare(
    reference: Float[np.ndarray, "y x"],
    image: Float[np.ndarray, "y x"],
    inside: Bool[np.ndarray, "y x"],
    width: float,
) -> dict[str, float]:
    """PSNR (dB) and SSIM over the square and inside the field of view, RMSE and bias in HU; x units."""
    v, w = np.clip(reference, 0, 1), np.clip(image, 0, 1)
    similarity = ssim_map(v, w)
    error = (w - v)[inside] * width
    return {
        "psnr": psnr(v, w),
        "ssim": float(similarity[3:-3, 3:-3].mean()),
        "psnr_fov": psnr(v[inside], w[inside]),
        "ssim_fov": float(similarity[inside].mean()),
        "rmse_hu": float(np.sqrt((error**2).mean())),
        "bias_hu": float(error.mean()),
    }


def coverage(
    reference: Float[np.ndarray, "y x"],
    mean: Float[np.ndarray, "y x"],
    std: Float[np.ndarray, "y x"],
    mask: Bool[np.ndarray, "y x"],
) -> dict[str, float]:
    """Share of the mask's pixels within 1 and 2 std of the mean (nominal .683 and .954).

    `std_factor` is what the std would have to be multiplied by for .683.
    """
    z = (np.abs(reference - mean) / np.maximum(std, 1e-12))[mask]
    return {
        "within_1_std": float((z < 1).mean()),
        "within_2_std": float((z < 2).mean()),
        "std_factor": float(np.quantile(z, 0.6827)),
    }
