"""Sampling in a latent space: x = Dec(z), z from any prior.

Sampling happens in the latent space, where the forward model is A(Dec(z)): a nonlinear operator even for
linear A. Samplers that take any operator (dps, likelihood_gradient, stsl, steering, moment_twisted for few
data) run on it unchanged, and their draws are decoded at the end:

    latent = LatentPrior(prior, decode, shape)
    posterior = sample(latent.prior, latent.measurement(measurement), latent.shape, sampler="stsl")
    x = latent.decode(posterior.samples)

The law is that of the decoded latents; what the decoder cannot draw has probability zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.operator import Composed
from invdiff.prior.prior import Prior

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LatentPrior:
    """A prior over latents and the maps to and from images.

    Attributes:
        prior: over z.
        decode: z -> x, differentiable, per sample.
        shape: event shape of z.
        encode: x -> z, where there is one; for warm starts.
    """

    prior: Prior
    decode: Map
    shape: tuple[int, ...]
    encode: Map | None = None

    def measurement(self, measurement: Measurement) -> Measurement:
        """The same data as a measurement of z."""
        return replace(
            measurement, operator=Composed(self.decode, measurement.operator, event_shape=self.shape)
        )


def autoencoder_maps(network: nn.Module, scale: float = 1.0) -> tuple[Map, Map]:
    """(encode, decode) of a MONAI `AutoencoderKL`: the mean of its encoder, its decoder; frozen.

    Args:
        network: with `encode(x) -> (mean, std)` and `decode(z)`.
        scale: factor between the decoder's latents and the prior's, z = scale * mean.

    Raises:
        InputError: for a network without these methods.
    """
    for method in ("encode", "decode"):
        if not callable(getattr(network, method, None)):
            raise InputError(
                f"a {type(network).__name__} has no {method}(); expected an autoencoder such as "
                "MONAI's AutoencoderKL"
            )
    frozen: Any = network.eval().requires_grad_(False)

    def encode(x: Tensor) -> Tensor:
        with torch.no_grad():
            mean: Tensor = frozen.encode(x)[0]
        return scale * mean

    def decode(z: Tensor) -> Tensor:
        x: Tensor = frozen.decode(z / scale)
        return x

    return encode, decode
