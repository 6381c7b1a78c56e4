"""Image metrics of CT in the `hu_window` convention.

Images are clipped to the window (default -1000 to 1000 HU, that is x in [0, 1])
and PSNR and SSIM take its width as data range; SSIM with a uniform 7 x 7 window,
k1 = .01, k2 = .03 and sample covariances (as scikit-image). Errors and bias in HU
are of the clipped images too, inside the field of view.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import binary_fill_holes, label

from invdiff.imaging import plane_psnr, psnr, ssim_map

CONVENTION = (
    "hu_window: clipped to the HU window, range = its width, SSIM 7x7 uniform; psnr and ssim over the "
    "square, the others inside the circular field of view"
)


def body_mask(reference: Float[np.ndarray, "*slice y x"]) -> Bool[np.ndarray, "*slice y x"]:
    """The largest connected part above -500 HU, holes (lungs) filled."""
    parts, count = label(reference > 0.25)
    if count == 0:
        return np.ones(reference.shape, dtype=bool)
    sizes = np.bincount(parts.ravel())[1:]
    return np.asarray(binary_fill_holes(parts == 1 + int(sizes.argmax())))


def compare_volumes(
    reference: Float[np.ndarray, "z y x"],
    image: Float[np.ndarray, "z y x"],
    inside: Bool[np.ndarray, "y x"],
    width: float,
) -> dict[str, float]:
    """PSNR (dB) over the volume and, as the mean over planes with body in them, in all three directions.

    A plane counts where more than a twentieth of it is body (-500 HU and above); SSIM is of axial planes.
    """
    v, w = np.clip(reference, 0, 1), np.clip(image, 0, 1)
    row = {"psnr": psnr(v, w), **plane_psnr(v, w, v > 0.25)}
    row["ssim"] = float(np.mean([ssim_map(a, b)[3:-3, 3:-3].mean() for a, b in zip(v, w, strict=True)]))
    error = (w - v)[:, inside] * width
    return {**row, "rmse_hu": float(np.sqrt((error**2).mean())), "bias_hu": float(error.mean())}


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
