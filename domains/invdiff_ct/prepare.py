"""From projections to a measurement in prior units, and from an image back to HU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invdiff import GaussianNoise, InputError, Measurement, Noise, UnknownGaussianNoise, load_plugin
from invdiff_ct.hu import Window
from invdiff_ct.noise import Transmission, logarithm, sinogram_noise
from invdiff_ct.projector import Projector

COUNTING = ("poisson", "poisson_gaussian")


@dataclass(frozen=True)
class Prepared:
    """A measurement in prior units, and the way back.

    Attributes:
        measurement: what the sampler sees.
        projector: line integrals in mm, unweighted.
        lines: line integrals of x in mm, for the classical methods.
        window: HU of x, None where lengths are relative and there are none.
        unit: attenuation of x = 1, in 1/mm (1/detector spacing without lengths).
        field: pixels that are shown; zero outside.
        notes: for the report.
        noisy: False for line integrals that are simulated without noise.
    """

    measurement: Measurement
    projector: Projector
    lines: Float[Tensor, "*slice view detector"]
    window: Window | None
    unit: float
    field: Bool[np.ndarray, "y x"]
    notes: dict[str, Any] = field(default_factory=dict)
    noisy: bool = True

    def image(self, x: Float[Tensor, "*batch 1 y x"]) -> Float[np.ndarray, "*batch y x"]:
        """x inside the field of view, air outside."""
        return np.where(self.field, x[..., 0, :, :].numpy(), 0).astype(np.float32)

    def shown(self, x: Float[np.ndarray, "*batch y x"]) -> Float[np.ndarray, "*batch y x"]:
        """x in HU, or in units of attenuation where there are none."""
        return self.window.to_hu(x) if self.window else (x * np.float32(self.unit)).astype(np.float32)


def counting_noise(settings: Mapping[str, Any]) -> Noise:
    """The core's noise model for counts."""
    noise: Noise = load_plugin("noises", str(settings["name"]))(settings)
    return noise


def flux_of(noise: Mapping[str, Any], flux: float | None) -> float | None:
    """Photons of an unattenuated ray, from the noise settings (`gain`) or the operator's."""
    if noise["name"] not in COUNTING:
        return flux
    gain = float(noise["gain"])
    if flux is not None and flux != gain:
        raise InputError(
            f"noise.gain is {gain:g} and operator.flux {flux:g}; they are the same photons, give one"
        )
    return gain


def prepare(
    data: Float[np.ndarray, "*slice view detector"],
    kind: str,
    projector: Projector,
    *,
    noise: Mapping[str, Any],
    flux: float | None,
    unit: float,
    window: Window | None,
    field_of_view: Bool[np.ndarray, "y x"],
    exact: bool,
    grid_error: float,
) -> Prepared:
    """Counts or line integrals to a measurement.

    Args:
        noise: the configuration's noise group; `auto` and `gaussian` make a Gaussian one.
        unit: attenuation of x = 1 per unit of length.
        exact: the line integrals are simulated without noise.
        grid_error: rms error of the projector's line integrals, in pixels; added to the noise.

    Raises:
        InputError: for a noise that does not fit the data, or a level that is not positive.
    """
    name = str(noise["name"])
    notes: dict[str, Any] = {}
    projector = projector.stacked(len(data)) if data.ndim == 3 else projector
    background = float(noise.get("background") or 0.0)
    if name in COUNTING:
        if kind != "counts":
            raise InputError(f"noise={name} is for counts and the data are line integrals; leave noise=auto")
        assert flux is not None
        lines, _, _ = logarithm(data, flux, background)
        measurement = Measurement(
            Transmission(projector, unit), counting_noise(noise), torch.from_numpy(data).float()
        )
        notes["noise"] = f"{name} counts, {flux:g} photons a ray"
        return _done(measurement, projector, lines, window, unit, field_of_view, notes)
    if name not in ("auto", "gaussian"):
        raise InputError(
            f"CT noise is Gaussian or counts and this run asks for noise={name}; leave noise=auto"
        )
    sigma = noise.get("sigma")
    if sigma is not None and not float(sigma) > 0:
        raise InputError(
            f"noise.sigma is {float(sigma):g}; give a level above zero, or leave it out to have it found"
        )
    grid = grid_error * projector.pixel_mm * unit
    if kind == "counts":
        assert flux is not None
        lines, std, few = logarithm(data, flux, background)
        source = f"counting, {flux:g} photons a ray, {100 * few:.2g} % of rays below 10 counts"
        if few > 0.01:
            notes["photon starvation"] = f"{100 * few:.1f} % of rays below 10 counts: use noise=poisson"
    else:
        lines = data
        if sigma is not None:
            level, source = float(sigma), "given"
        elif exact:
            level, source = 0.0, "none"
        else:
            level, source = sinogram_noise(data), "second differences along the detector"
        std = np.full(data.shape, level)
    total = np.sqrt(std**2 + grid**2)
    level = float(np.sqrt((total**2).mean()))
    equal = float(np.ptp(total)) == 0
    operator = projector.scaled(None if equal else torch.from_numpy(level / total).float())
    y = operator.whiten(torch.from_numpy(lines / unit).float())
    kind_of_noise = UnknownGaussianNoise if noise.get("infer") else GaussianNoise
    measurement = Measurement(operator, kind_of_noise(level / unit * operator.scale), y)
    notes["noise"] = source
    notes["noise of a line integral, rms"] = f"{level:.3g} (of it {grid:.2g} for the pixel grid)"
    notes["sigma_y in prior units"] = float(f"{measurement.noise.variance() ** 0.5:.4g}")
    notes["norm of A"] = f"{1 / operator.scale:.5g}, divided out"
    done = _done(measurement, projector, lines, window, unit, field_of_view, notes)
    return replace(done, noisy=kind == "counts" or not exact or sigma is not None)


def _done(
    measurement: Measurement,
    projector: Projector,
    lines: Float[np.ndarray, "*slice view detector"],
    window: Window | None,
    unit: float,
    field_of_view: Bool[np.ndarray, "y x"],
    notes: dict[str, Any],
) -> Prepared:
    scaled = torch.from_numpy(lines / unit).float()
    return Prepared(measurement, projector, scaled, window, unit, field_of_view, notes)
