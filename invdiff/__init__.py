"""invdiff: samples of p(x | y) from any diffusion prior and any forward model.

Names are imported when they are first used, so `import invdiff` costs neither
torch nor any of the domain libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "make_sampler": "invdiff.api",
    "sample": "invdiff.api",
    "solve": "invdiff.api",
    "compose": "invdiff.config",
    "Config": "invdiff.domain",
    "Domain": "invdiff.domain",
    "Estimates": "invdiff.domain",
    "Figure": "invdiff.domain",
    "Pending": "invdiff.domain",
    "Problem": "invdiff.domain",
    "Summary": "invdiff.domain",
    "Tick": "invdiff.domain",
    "InputError": "invdiff.errors",
    "unknown_name": "invdiff.errors",
    "Measurement": "invdiff.measurement.measurement",
    "simulate": "invdiff.measurement.measurement",
    "candidates_of": "invdiff.measurement.candidates",
    "select": "invdiff.measurement.candidates",
    "GaussianNoise": "invdiff.measurement.noise",
    "UnknownGaussianNoise": "invdiff.measurement.noise",
    "LinearOperator": "invdiff.measurement.operator",
    "MatrixOperator": "invdiff.measurement.operator",
    "Operator": "invdiff.measurement.operator",
    "StackedOperator": "invdiff.measurement.stack",
    "as_operator": "invdiff.measurement.operator",
    "Posterior": "invdiff.posterior",
    "load_plugin": "invdiff.registry",
    "load_safetensors": "invdiff.prior.checkpoint",
    "save_prior": "invdiff.prior.checkpoint",
    "read_prior": "invdiff.prior.checkpoint",
    "card_from": "invdiff.prior.checkpoint",
    "MASK": "invdiff.prior.masked",
    "MaskedPrior": "invdiff.prior.masked",
    "NoLevels": "invdiff.prior.masked",
    "FirstHitting": "invdiff.sampler.first_hitting",
    "wrap_deepinv": "invdiff.prior.checkpoint",
    "GaussianPrior": "invdiff.prior.gaussian",
    "GaussianMixture": "invdiff.prior.mixture",
    "ChannelwisePrior": "invdiff.prior.network",
    "NetworkPrior": "invdiff.prior.network",
    "Prior": "invdiff.prior.prior",
    "PriorCard": "invdiff.prior.prior",
    "Sigma": "invdiff.prior.prior",
    "Claim": "invdiff.sampler.guidance.guidance",
    "Target": "invdiff.sampler.weighting.target",
    "filtered": "invdiff.sampler.catalog",
    "SlicewisePrior": "invdiff.prior.slicewise",
    "CrossedPrior": "invdiff.prior.slicewise",
    "TiledPrior": "invdiff.prior.tiled",
    "TrainingData": "invdiff.prior.training",
    "TrainSettings": "invdiff.prior.training",
    "Denoising": "invdiff.prior.training",
    "Acquisition": "invdiff.sampler.design",
    "Design": "invdiff.sampler.design",
    "acquire": "invdiff.sampler.design",
    "centre_block": "invdiff.sampler.design",
    "Plan": "invdiff.sampler.design",
    "exchange_folder": "invdiff.sampler.design",
    "start_size": "invdiff.sampler.design",
    "entropy_of_samples": "invdiff.sampler.design",
    "FileExchange": "invdiff.sampler.instrument",
    "keyed_stream": "invdiff.sampler.keys",
    "PoissonNoise": "invdiff.measurement.likelihoods",
    "PoissonGaussianNoise": "invdiff.measurement.likelihoods",
    "RicianNoise": "invdiff.measurement.likelihoods",
    "LaplaceNoise": "invdiff.measurement.likelihoods",
    "QuantisedNoise": "invdiff.measurement.likelihoods",
    "Noise": "invdiff.measurement.noise",
    "Magnitude": "invdiff.measurement.nonlinear",
    "PhaseRetrieval": "invdiff.measurement.nonlinear",
    "Saturation": "invdiff.measurement.nonlinear",
    "Composed": "invdiff.measurement.operator",
    "Composition": "invdiff.prior.compose",
    "MaskedComposition": "invdiff.prior.compose",
    "log_powers": "invdiff.prior.compose",
    "parts_of": "invdiff.prior.compose",
    "FilterSettings": "invdiff.sampler.feynman_kac",
    "run_filter": "invdiff.sampler.feynman_kac",
    "LatentPrior": "invdiff.sampler.latent",
    "autoencoder_maps": "invdiff.sampler.latent",
    "Unguided": "invdiff.sampler.guidance.unguided",
    "DiffusionSampler": "invdiff.sampler.loop",
    "NoiseSearch": "invdiff.sampler.noise_search",
    "ParticleSampler": "invdiff.sampler.particle_sampler",
    "posterior_mode": "invdiff.sampler.mode",
    "nuts": "invdiff.sampler.reference",
    "infer_level": "invdiff.sampler.reference",
    "NoiseLevel": "invdiff.sampler.reference",
    "Gain": "invdiff.sampler.reference",
    "RolloverSearch": "invdiff.sampler.rollover",
    "GaussianTeleport": "invdiff.sampler.teleport",
    "teleported": "invdiff.sampler.teleport",
    "sample_prior": "invdiff.sampler.unconditional",
}

_RENAMED = {
    "keyed_stream": "stream",
    "load_plugin": "load",
    "FilterSettings": "Settings",
    "run_filter": "run",
}

__all__ = [
    "MASK",
    "Acquisition",
    "ChannelwisePrior",
    "Claim",
    "Composed",
    "Composition",
    "Config",
    "CrossedPrior",
    "Denoising",
    "Design",
    "DiffusionSampler",
    "Domain",
    "Estimates",
    "Figure",
    "FileExchange",
    "FilterSettings",
    "FirstHitting",
    "Gain",
    "GaussianMixture",
    "GaussianNoise",
    "GaussianPrior",
    "GaussianTeleport",
    "InputError",
    "LaplaceNoise",
    "LatentPrior",
    "LinearOperator",
    "Magnitude",
    "MaskedComposition",
    "MaskedPrior",
    "MatrixOperator",
    "Measurement",
    "NetworkPrior",
    "NoLevels",
    "Noise",
    "NoiseLevel",
    "NoiseSearch",
    "Operator",
    "ParticleSampler",
    "Pending",
    "PhaseRetrieval",
    "Plan",
    "PoissonGaussianNoise",
    "PoissonNoise",
    "Posterior",
    "Prior",
    "PriorCard",
    "Problem",
    "QuantisedNoise",
    "RicianNoise",
    "RolloverSearch",
    "Saturation",
    "Sigma",
    "SlicewisePrior",
    "StackedOperator",
    "Summary",
    "Target",
    "Tick",
    "TiledPrior",
    "TrainSettings",
    "TrainingData",
    "Unguided",
    "UnknownGaussianNoise",
    "__version__",
    "acquire",
    "as_operator",
    "autoencoder_maps",
    "candidates_of",
    "card_from",
    "centre_block",
    "compose",
    "entropy_of_samples",
    "exchange_folder",
    "filtered",
    "infer_level",
    "keyed_stream",
    "load_plugin",
    "load_safetensors",
    "log_powers",
    "make_sampler",
    "nuts",
    "parts_of",
    "posterior_mode",
    "read_prior",
    "run_filter",
    "sample",
    "sample_prior",
    "save_prior",
    "select",
    "simulate",
    "solve",
    "start_size",
    "teleported",
    "unknown_name",
    "wrap_deepinv",
]

if TYPE_CHECKING:
    from invdiff.api import make_sampler, sample, solve
    from invdiff.config import compose
    from invdiff.domain import Config, Domain, Estimates, Figure, Pending, Problem, Summary, Tick
    from invdiff.errors import InputError, unknown_name
    from invdiff.measurement.candidates import candidates_of, select
    from invdiff.measurement.likelihoods import (
        LaplaceNoise,
        PoissonGaussianNoise,
        PoissonNoise,
        QuantisedNoise,
        RicianNoise,
    )
    from invdiff.measurement.measurement import Measurement, simulate
    from invdiff.measurement.noise import GaussianNoise, Noise, UnknownGaussianNoise
    from invdiff.measurement.nonlinear import Magnitude, PhaseRetrieval, Saturation
    from invdiff.measurement.operator import Composed, LinearOperator, MatrixOperator, Operator, as_operator
    from invdiff.measurement.stack import StackedOperator
    from invdiff.posterior import Posterior
    from invdiff.prior.checkpoint import card_from, load_safetensors, read_prior, save_prior, wrap_deepinv
    from invdiff.prior.compose import Composition, MaskedComposition, log_powers, parts_of
    from invdiff.prior.gaussian import GaussianPrior
    from invdiff.prior.masked import MASK, MaskedPrior, NoLevels
    from invdiff.prior.mixture import GaussianMixture
    from invdiff.prior.network import ChannelwisePrior, NetworkPrior
    from invdiff.prior.prior import Prior, PriorCard, Sigma
    from invdiff.prior.slicewise import CrossedPrior, SlicewisePrior
    from invdiff.prior.tiled import TiledPrior
    from invdiff.prior.training import Denoising, TrainingData, TrainSettings
    from invdiff.registry import load as load_plugin
    from invdiff.sampler.catalog import filtered
    from invdiff.sampler.design import (
        Acquisition,
        Design,
        Plan,
        acquire,
        centre_block,
        entropy_of_samples,
        exchange_folder,
        start_size,
    )
    from invdiff.sampler.feynman_kac import Settings as FilterSettings
    from invdiff.sampler.feynman_kac import run as run_filter
    from invdiff.sampler.first_hitting import FirstHitting
    from invdiff.sampler.guidance.guidance import Claim
    from invdiff.sampler.guidance.unguided import Unguided
    from invdiff.sampler.instrument import FileExchange
    from invdiff.sampler.keys import stream as keyed_stream
    from invdiff.sampler.latent import LatentPrior, autoencoder_maps
    from invdiff.sampler.loop import DiffusionSampler
    from invdiff.sampler.mode import posterior_mode
    from invdiff.sampler.noise_search import NoiseSearch
    from invdiff.sampler.particle_sampler import ParticleSampler
    from invdiff.sampler.reference import Gain, NoiseLevel, infer_level, nuts
    from invdiff.sampler.rollover import RolloverSearch
    from invdiff.sampler.teleport import GaussianTeleport, teleported
    from invdiff.sampler.unconditional import sample_prior
    from invdiff.sampler.weighting.target import Target


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'invdiff' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
