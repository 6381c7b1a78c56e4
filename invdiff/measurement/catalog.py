"""From the settings of a YAML to a noise model or a nonlinear operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from invdiff.measurement.likelihoods import (
    LaplaceNoise,
    PoissonGaussianNoise,
    PoissonNoise,
    QuantisedNoise,
    RicianNoise,
)
from invdiff.measurement.noise import GaussianNoise, Noise
from invdiff.measurement.nonlinear import Magnitude, PhaseRetrieval, Saturation
from invdiff.measurement.operator import Operator
from invdiff.registry import construct


def noise(kind: type[Any]) -> Callable[[Mapping[str, Any]], Noise]:
    """The builder of a noise model, whose parameters are in the units of the data."""

    def build(settings: Mapping[str, Any]) -> Noise:
        made: Noise = construct(kind, settings, {"name"}, f"noise {settings.get('name')!r}")
        return made

    return build


gaussian = noise(GaussianNoise)
poisson = noise(PoissonNoise)
poisson_gaussian = noise(PoissonGaussianNoise)
rician = noise(RicianNoise)
laplace = noise(LaplaceNoise)
quantised = noise(QuantisedNoise)


def magnitude(settings: Mapping[str, Any], shape: tuple[int, ...] | None) -> Operator:
    """|x| of complex images [2, ...]."""
    return Magnitude()


def phase_retrieval(settings: Mapping[str, Any], shape: tuple[int, ...] | None) -> Operator:
    """|F x| on a padded grid."""
    return PhaseRetrieval(float(settings["oversampling"]), complex_images=bool(settings["complex_images"]))


def saturation(settings: Mapping[str, Any], shape: tuple[int, ...] | None) -> Operator:
    """A detector that saturates."""
    return Saturation(float(settings["level"]), float(settings["sharpness"]))
