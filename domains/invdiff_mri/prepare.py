"""From a scan to a scaled measurement, and from an image back to the scan's units.

In this order: noise covariance, prewhitening, mask, coil maps, phase, data
scale. Everything that was decided is kept in `Prepared.notes`, which the report
prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from invdiff import GaussianNoise, InputError, Measurement, UnknownGaussianNoise
from invdiff_mri.baselines import cg_sense
from invdiff_mri.coils import CoilMaps, espirit, low_resolution_phase, normalised
from invdiff_mri.masks import calibration_region, effective_acceleration
from invdiff_mri.noise import NoiseCovariance, from_periphery, from_samples, whitening
from invdiff_mri.operators import CartesianSense, to_complex, to_image, to_kspace, to_real

PHASE_LINES = 8  # of the calibration region that a low-resolution phase needs


@dataclass(frozen=True)
class Prepared:
    """A measurement in prior units, and the way back.

    Attributes:
        measurement: data divided by `scale`, prewhitened.
        gain: per pixel, root-sum-of-squares coil image over |x| (1 without prewhitening).
        scale: data scale s: x in scan units is s times x in prior units.
        phase: phase folded into the maps, radians; zero for `phase="none"`.
        unmix: L, from whitened coils back to the scan's.
        coils: maps used, with their support.
        notes: what was found and decided, for the report.
    """

    measurement: Measurement
    gain: Float[Tensor, "y x"]
    scale: float
    phase: Float[Tensor, "y x"]
    unmix: Complex[Tensor, "coil coil"]
    coils: CoilMaps
    notes: dict[str, Any] = field(default_factory=dict)

    def image(self, x: Float[Tensor, "batch 2 y x"]) -> Complex[Tensor, "batch y x"]:
        """Complex image in scan units: its magnitude is the root-sum-of-squares image."""
        return to_complex(x) * self.gain * self.scale * torch.exp(1j * self.phase)

    def expected_rss(self, x: Float[Tensor, "batch 2 y x"]) -> Float[Tensor, "batch y x"]:
        """The root-sum-of-squares image that a full scan of x would have shown.

        Its k-space is y where it was measured and A x elsewhere; the noise of what
        was not measured adds its power, 2 tr(Psi) times the missing share. This is
        what a reference made from a full, noisy scan is to be compared with: such an
        image has a noise floor where |x| has none.
        """
        operator = self.measurement.operator
        assert isinstance(operator, CartesianSense)
        maps = self.coils.maps * torch.exp(1j * self.phase)
        predicted = to_kspace(maps * to_complex(x)[:, None])
        measured = to_complex(self.measurement.y[None])
        white = torch.where(operator.mask, measured, predicted)
        coils = torch.einsum("ij,bjyx->biyx", self.unmix, to_image(white)) * self.scale
        missing = 1 - float(operator.mask.float().mean())
        floor = 2 * float(self.unmix.abs().square().sum()) * missing
        return (coils.abs().square().sum(dim=1) + floor).sqrt()


@dataclass(frozen=True)
class PrepareSettings:
    """How a scan is made into a measurement.

    Attributes:
        infer: take the noise level as unknown, starting from the one found.
        sigma: noise per real component and coil in the scan's units; None estimates it.
        scale: data scale by hand; None takes the 99.5th percentile of |CG-SENSE|.
        phase: "none" (complex prior), "low_resolution", or "auto": that, where the calibration region
            has at least `PHASE_LINES` lines each way (below, it won nothing on training subjects).
        kernel, threshold: of ESPIRiT.
    """

    sigma: float | None = None
    scale: float | None = None
    infer: bool = False
    phase: str = "none"
    kernel: int | None = None
    threshold: float = 0.02


def noise_covariance(
    kspace: Complex[Tensor, "coil y x"],
    mask: Bool[Tensor, "y x"],
    settings: PrepareSettings,
    noise_scan: Complex[Tensor, "coil count"] | None,
) -> NoiseCovariance:
    """Psi from the user, a noise scan, or the k-space periphery, in that order."""
    coils = kspace.shape[0]
    if settings.sigma is not None:
        if not settings.sigma > 0:
            raise InputError(
                f"noise.sigma is {settings.sigma:g}; a posterior needs a level above zero "
                "(leave it out to have it estimated)"
            )
        matrix = settings.sigma**2 * torch.eye(coils, dtype=torch.complex128)
        return NoiseCovariance(matrix, f"given (sigma {settings.sigma:g} per real component)")
    if noise_scan is not None:
        return from_samples(noise_scan, f"noise scan ({noise_scan.shape[1]} samples)")
    return from_periphery(kspace, mask)


def percentile(x: Complex[Tensor, "*shape"], q: float) -> float:
    """The q-th percentile of |x|, q in [0, 100]."""
    return float(torch.quantile(x.abs().flatten().double(), q / 100))


def prepare(
    kspace: Complex[Tensor, "coil y x"],
    mask: Bool[Tensor, "y x"],
    settings: PrepareSettings,
    *,
    coil_maps: Complex[Tensor, "coil y x"] | None = None,
    noise_scan: Complex[Tensor, "coil count"] | None = None,
    covariance: NoiseCovariance | None = None,
    single_coil: bool = False,
) -> Prepared:
    """Prewhiten, find the coil maps, scale.

    `covariance` is the noise's where it is known already, else see `noise_covariance`.

    `single_coil` takes maps of ones. Given maps belong to the scan as it is (not
    prewhitened); they are whitened with it and normalised.
    """
    kspace = (kspace * mask).to(torch.complex64)
    covariance = covariance or noise_covariance(kspace, mask, settings, noise_scan)
    whiten = whitening(covariance).to(torch.complex64)
    white = torch.einsum("ij,jyx->iyx", whiten, kspace)
    region = calibration_region(mask)
    if single_coil or len(kspace) == 1:
        shape = tuple(kspace.shape[1:])
        coils = CoilMaps(torch.ones(1, *shape, dtype=torch.complex64), torch.ones(shape), "single coil")
    elif coil_maps is not None:
        if coil_maps.shape != kspace.shape:
            raise InputError(
                f"the coil maps have shape {tuple(coil_maps.shape)} and the k-space "
                f"{tuple(kspace.shape)}; give maps as [coil, y, x] on the same grid"
            )
        mixed = torch.einsum("ij,jyx->iyx", whiten, coil_maps.to(torch.complex64))
        total = coil_maps.abs().square().sum(dim=0).sqrt()
        inside = (total > 1e-3 * total.max()).float()
        coils = CoilMaps(normalised(mixed), inside, "given")
    else:
        coils = espirit(white, region, kernel=settings.kernel, threshold=settings.threshold)
    phase = torch.zeros(kspace.shape[1:])
    maps = coils.maps
    if settings.phase not in ("auto", "low_resolution", "none"):
        raise InputError(f"phase is {settings.phase!r}; expected auto, low_resolution or none")
    removed = settings.phase == "low_resolution" or (settings.phase == "auto" and min(region) >= PHASE_LINES)
    if removed:
        phase = low_resolution_phase(white, maps, region)
        maps = maps * torch.exp(1j * phase)
    unmix = torch.linalg.inv(whiten)
    gain = torch.einsum("ij,jyx->iyx", unmix, coils.maps).abs().square().sum(dim=0).sqrt()
    operator = CartesianSense(mask, maps)
    y = to_real(white[None])[0]
    scale = settings.scale
    source = "given"
    if scale is None:
        image = cg_sense(Measurement(operator, GaussianNoise(1.0), y), 0.01)
        scale = percentile(to_complex(image[None])[0], 99.5)
        source = "99.5th percentile of |CG-SENSE|"
        if scale == 0:
            raise InputError("the k-space is all zeros where the mask is set; check the file")
    else:
        scale = scale / float(gain.mean())
    notes = {
        "acceleration": round(effective_acceleration(mask), 2),
        "samples": f"{100 * float(mask.float().mean()):.1f} %",
        "calibration": f"{region[0]}x{region[1]}",
        "coils": len(kspace),
        "coil maps": coils.source,
        "noise": f"{covariance.source}, {covariance.level():.3g} per real component",
        "sigma_y in prior units": round(1 / scale, 5),
        "data scale": f"{scale * float(gain.mean()):.4g} ({source})",
        "phase": "low-resolution phase taken out" if removed else "as it is",
    }
    kind = UnknownGaussianNoise if settings.infer else GaussianNoise
    measurement = Measurement(operator, kind(1 / scale), y / scale)
    return Prepared(measurement, gain, float(scale), phase, unmix, coils, notes)
