"""Reference samplers for small problems: NUTS on a known density, Gibbs over an unknown level.

    nuts          p(x | y) ~ p_sigma(x) p(y | A(x)),   for priors with a `log_density`
    infer_level   p(x, theta | y), by turns  x ~ p(x | theta, y)  and  theta ~ p(theta | x, y)

with theta the variance of Gaussian noise or the gain s of y = s A(x) + sigma e, whose conditional
laws are conjugate:

    theta = sigma^2    InvGamma(a + m / 2, b + |y - A x|^2 / 2)
    theta = s          N( v (s0 / t^2 + <A x, y> / sigma^2), v ),   1 / v = 1 / t^2 + |A x|^2 / sigma^2

NUTS asks neither a denoiser nor levels, so it judges what does; it needs a connected posterior (a
chain does not cross between far modes: R-hat shows it) and up to some hundred components. The Gibbs
draws are dependent from sweep to sweep, and as good as the sampler of x that they are given.

Sources: Hoffman & Gelman, JMLR 15, 2014 (NUTS; by pyro); Gelman et al., Bayesian Data Analysis,
ch. 11 (R-hat, effective sample size) and 3 (conjugate levels).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import LinearOperator, Operator
from invdiff.prior.prior import Prior
from invdiff.sampler.keys import stream
from invdiff.sampler.loop import Sampler, draw

DrawX = Callable[[Measurement, int], Tensor]
"""One draw of x given the measurement with its level, and a seed."""


@dataclass(frozen=True)
class Chains:
    """Draws of several chains.

    Attributes:
        x: float64.
        r_hat: split R-hat of every component; above 1.01 the chains disagree.
        effective: effective sample size of all chains together, per component.
        divergences: transitions whose integration broke down; 0 in a sound run.
    """

    x: Float[Tensor, "chains samples *event"]
    r_hat: Float[Tensor, "*event"]
    effective: Float[Tensor, "*event"]
    divergences: int


@contextmanager
def global_random_state() -> Iterator[None]:
    """Restore the global generators of torch, numpy and random; pyro, even its import, draws from them."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        random.setstate(kept[2])


def nuts(
    prior: Prior,
    measurement: Measurement,
    shape: tuple[int, ...],
    *,
    samples: int = 1000,
    warmup: int = 300,
    chains: int = 4,
    seed: int = 0,
    sigma: float = 0.0,
) -> Chains:
    """Draws of `p_sigma(x) p(y | A(x))` by the No-U-Turn sampler with a dense mass matrix.

    Args:
        prior: with `log_density(x, sigma)`, such as `GaussianPrior` and `GaussianMixture`.
        measurement: any operator and noise with a gradient.
        shape: of an event.
        samples: of each chain, after `warmup` adapting ones.
        chains: run one after the other, from N(mean, std) of the prior's card.
        seed: of all random numbers; the global generators are left as they were.
        sigma: level at which the prior is taken.

    Raises:
        InputError: for a prior without a density.
    """
    log_density = getattr(prior, "log_density", None)
    if log_density is None:
        raise InputError(
            f"nuts needs a prior with a log_density and {prior.card.name} has none; use a sampler"
        )

    def potential(values: dict[str, Tensor]) -> Tensor:
        x = values["x"][None]
        energy: Tensor = -(log_density(x, sigma) + measurement.log_likelihood(x))[0]
        return energy

    drawn, divergences = [], 0
    with global_random_state(), torch.enable_grad():
        mcmc: Any = import_module("pyro.infer.mcmc")
        statistics: Any = import_module("pyro.ops.stats")
        for chain in range(chains):
            own = stream(seed, chain)
            torch.manual_seed(own.initial_seed())  # pyro draws from the global generator
            white = torch.randn(shape, generator=own, dtype=torch.float64)
            first = prior.card.mean + prior.card.std * white
            run = mcmc.MCMC(
                mcmc.NUTS(potential_fn=potential, full_mass=True),
                num_samples=samples,
                warmup_steps=warmup,
                initial_params={"x": first},
                disable_progbar=True,
            )
            run.run()
            drawn.append(run.get_samples()["x"])
            broken = run.diagnostics()["divergences"]  # by chain: the numbers of the transitions
            divergences += len(broken["chain 0"])
    x = torch.stack(drawn)
    r_hat = statistics.split_gelman_rubin(x, chain_dim=0, sample_dim=1)
    effective = statistics.effective_sample_size(x, chain_dim=0, sample_dim=1)
    return Chains(x, r_hat, effective, divergences)


class Scaled(Operator):
    """`s A` of any operator."""

    def __init__(self, operator: Operator, gain: float) -> None:
        self.operator, self.gain, self.event_shape = operator, gain, operator.event_shape

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *data"]:
        return self.gain * self.operator(x)

    def data_size(self, y: Float[Tensor, "*data"]) -> int:
        return self.operator.data_size(y)


class ScaledLinear(Scaled, LinearOperator):
    """`s A` of a linear operator."""

    operator: LinearOperator

    def adjoint(self, y: Float[Tensor, "batch *data"]) -> Float[Tensor, "batch *event"]:
        return self.gain * self.operator.adjoint(y)


@runtime_checkable
class Level(Protocol):
    """An unknown number of a measurement with a conjugate law."""

    def apply(self, measurement: Measurement, value: float) -> Measurement:
        """The measurement with the number set."""

    def draw(self, measurement: Measurement, x: Tensor, generator: np.random.Generator) -> float:
        """A draw of the number given one x `[1, *event]`; `measurement` has operator and noise as given."""


@dataclass(frozen=True)
class NoiseLevel:
    """sigma of Gaussian noise under sigma^2 ~ InvGamma(a, b); a = b = 0 is the scale-free 1 / sigma^2.

    Attributes:
        a, b: shape and scale of the prior, b in squared units of y.
    """

    a: float = 0.0
    b: float = 0.0

    def apply(self, measurement: Measurement, value: float) -> Measurement:
        return replace(measurement, noise=GaussianNoise(value))

    def draw(self, measurement: Measurement, x: Tensor, generator: np.random.Generator) -> float:
        square = float(measurement.residual(x).double().square().sum())
        shape = self.a + 0.5 * measurement.size
        return math.sqrt((self.b + 0.5 * square) / generator.gamma(shape))


@dataclass(frozen=True)
class Gain:
    """The gain s of y = s A(x) + sigma e under s ~ N(mean, std^2), sigma known."""

    mean: float = 1.0
    std: float = 1.0

    def apply(self, measurement: Measurement, value: float) -> Measurement:
        operator = measurement.operator
        if isinstance(operator, LinearOperator):
            return replace(measurement, operator=ScaledLinear(operator, value))
        return replace(measurement, operator=Scaled(operator, value))

    def draw(self, measurement: Measurement, x: Tensor, generator: np.random.Generator) -> float:
        if not isinstance(measurement.noise, GaussianNoise):
            name = type(measurement.noise).__name__
            raise InputError(
                f"an unknown gain is inferred under Gaussian noise and this is {name}; give a GaussianNoise"
            )
        variance = measurement.noise.variance()
        clean = measurement.operator(x).double()
        precision = self.std**-2 + float(clean.square().sum()) / variance
        along = self.mean / self.std**2 + float((clean * measurement.y.to(clean)).sum()) / variance
        return float(generator.normal(along / precision, precision**-0.5))


def drawing(sampler: Sampler, prior: Prior, shape: tuple[int, ...]) -> DrawX:
    """One float64 draw a call from a sampler, as `infer_level` takes it."""

    def draw_x(measurement: Measurement, seed: int) -> Tensor:
        drawn = draw(sampler, prior, measurement, shape, particles=[0], seed=seed, dtype=torch.float64)
        return drawn.x[0]

    return draw_x


def infer_level(
    unknown: Level,
    measurement: Measurement,
    draw_x: DrawX,
    *,
    start: float,
    sweeps: int = 1000,
    burn: int = 100,
    seed: int = 0,
) -> tuple[Float[Tensor, "sweeps *event"], Float[Tensor, "sweeps"]]:
    """Draws of x and of an unknown level, after `burn` sweeps from `start`.

    Args:
        unknown: `NoiseLevel` or `Gain`.
        measurement: its noise level or gain is where the unknown one is put.
        draw_x: (measurement, seed) to one draw of p(x | y, level), exact or of a sampler (see `drawing`).
    """
    generator = np.random.default_rng([seed, 1])
    level, states, levels = start, [], []
    for sweep in range(burn + sweeps):
        x = draw_x(unknown.apply(measurement, level), int(generator.integers(2**62)))
        level = unknown.draw(measurement, x[None], generator)
        if sweep >= burn:
            states.append(x)
            levels.append(level)
    return torch.stack(states), torch.tensor(levels, dtype=torch.float64)
