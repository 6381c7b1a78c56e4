"""One exponential multistep integrator of the reverse diffusion.

    dx = (1 + eta)(D - x) dlambda + sqrt(2 eta) sigma dW,      lambda = -log sigma

eta = 0 is the probability-flow ODE, eta = 1 the ancestral (DDPM) SDE. With
h = lambda' - lambda one step is

    x' = E x + sum_j w_j g_j + std z,    w_j = int E(t -> lambda') q(t) l_j(t) dt,
    std = sigma' sqrt(1 - exp(-2 eta h))

    data form    g = D             E(t -> b) = exp(-(1 + eta)(b - t))    q = 1 + eta
    noise form   g = (x - D)/sigma E = 1                                 q = -sigma(t)   (eta = 0)

l_j is the Lagrange basis on the stored levels; a corrector adds the new level.
The weights come from 16-point Gauss-Legendre quadrature in float64 and
reproduce the published tables, so that

    DDIM, DDPM            data, order 1, eta = 0, 1            (arXiv 2010.02502, 2006.11239)
    DPM-Solver++ 2M       data, order 2, midpoint              (arXiv 2211.01095)
    2M-SDE                the same with eta > 0
    DEIS AB2, AB3         noise, order 2, 3                    (arXiv 2204.13902)
    UniPC-p               data, order p, corrector             (arXiv 2302.04867)

are settings of it. `churn="published"` sets std = eta sigma', as released codes
of DDIM-based solvers do: that noise does not vanish with the step and the
result is under-dispersed at any number of steps (for a Gaussian prior without
data its std tends to sqrt((1 + sqrt(1 - eta^2)) / 2) of the prior's).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff.errors import InputError, unknown_name

Form: TypeAlias = Literal["data", "noise"]
Normal = Callable[[tuple[int, ...]], Tensor]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@lru_cache(maxsize=4096)
def quadrature_weights(
    nodes: tuple[float, ...], begin: float, end: float, eta: float, form: Form
) -> tuple[float, ...]:
    """Weights of `g` at the lambda `nodes` for the step from lambda `begin` to `end`."""
    t = 0.5 * (end - begin) * _NODES + 0.5 * (end + begin)
    scale = 0.5 * (end - begin) * _WEIGHTS
    kernel = (1 + eta) * np.exp(-(1 + eta) * (end - t)) if form == "data" else -np.exp(-t)
    weights = []
    for j, node in enumerate(nodes):
        basis = np.ones_like(t)
        for k, other in enumerate(nodes):
            if k != j:
                basis = basis * (t - other) / (node - other)
        weights.append(float(np.sum(scale * kernel * basis)))
    return tuple(weights)


@dataclass(frozen=True)
class State:
    """Where the integrator is.

    Attributes:
        x: state at `sigma`.
        sigma: its level.
        history: (lambda, g) of past evaluations, newest first.
        anchor: (x, lambda) that the last predictor step left from; for correctors.
    """

    x: Float[Tensor, "batch *event"]
    sigma: float
    history: tuple[tuple[float, Tensor], ...] = ()
    anchor: tuple[Tensor, float] | None = None

    def gather(self, ancestors: Int[Tensor, "batch"]) -> State:
        """The state after resampling: history and anchor follow their particles."""
        anchor = None if self.anchor is None else (self.anchor[0][ancestors], self.anchor[1])
        history = tuple((level, g[ancestors]) for level, g in self.history)
        return replace(self, x=self.x[ancestors], history=history, anchor=anchor)


@dataclass(frozen=True)
class ExponentialMultistep:
    """Settings of the integrator.

    Attributes:
        order: number of evaluations that a predictor step uses.
        eta: 0 for the ODE, 1 for the ancestral SDE, anything from 0 up.
        form: interpolate D ("data") or the noise ("noise", eta = 0 only).
        corrector: 0 for none, else past evaluations that the corrector uses
            besides the new one (UniPC; the new evaluation is reused, not repeated).
        midpoint: the midpoint form of 2M instead of the exact integral (order 2).
        churn: "exact", or "published" for std = eta sigma' (order 1, under-dispersed).
    """

    order: int = 1
    eta: float = 0.0
    form: Form = "data"
    corrector: int = 0
    midpoint: bool = False
    churn: Literal["exact", "published"] = "exact"

    def __post_init__(self) -> None:
        if self.order < 1 or self.eta < 0 or self.corrector < 0:
            raise InputError("an integrator needs order >= 1, eta >= 0 and corrector >= 0")
        if self.form == "noise" and self.eta > 0:
            raise InputError("form=noise is an ODE form; set eta=0 or form=data")
        if self.midpoint and (self.order != 2 or self.form != "data"):
            raise InputError("midpoint is the 2M form: it needs order=2 and form=data")
        if self.churn == "published" and (self.order > 1 or self.corrector or self.eta > 1):
            raise InputError("churn=published is defined for order=1 and 0 <= eta <= 1")

    def start(self, x: Float[Tensor, "batch *event"], sigma: float) -> State:
        """The state at the first level."""
        return State(x, sigma)

    def std(self, sigma: float, sigma_next: float) -> float:
        """Standard deviation of the noise that a step adds."""
        if self.churn == "published":
            return self.eta * sigma_next
        if self.eta == 0 or sigma_next == 0:
            return 0.0
        return sigma_next * math.sqrt(-math.expm1(2 * self.eta * math.log(sigma_next / sigma)))

    def step(
        self,
        state: State,
        denoised: Float[Tensor, "batch *event"],
        sigma_next: float,
        normal: Normal,
        direction: Float[Tensor, "batch *event"] | None = None,
    ) -> State:
        """One step to `sigma_next`; to 0 it returns the denoised state itself.

        `normal` draws the step's noise. `direction`, if given, is the denoised
        state that the noise direction is taken from (DDS takes the prior's).
        """
        if sigma_next == 0:
            return State(denoised, 0.0)
        mean, std, history, anchor = self._mean(state, denoised, sigma_next, direction)
        if std > 0:
            mean = mean + std * normal(tuple(mean.shape[1:]))
        return State(mean, sigma_next, history, anchor)

    def kernel(
        self, state: State, denoised: Float[Tensor, "batch *event"], sigma_next: float
    ) -> tuple[Float[Tensor, "batch *event"], float]:
        """(mean, std) of the Gaussian that `step` draws from, given its history.

        Raises:
            InputError: where the step has no such density (eta = 0, a corrector).
        """
        if self.eta == 0 or self.corrector:
            raise InputError("weights need a step with a density: eta > 0 and no corrector")
        mean, std, _, _ = self._mean(state, denoised, sigma_next, None)
        return mean, std

    def _mean(
        self,
        state: State,
        denoised: Tensor,
        sigma_next: float,
        direction: Tensor | None,
    ) -> tuple[Tensor, float, tuple[tuple[float, Tensor], ...], tuple[Tensor, float] | None]:
        sigma = state.sigma
        std = self.std(sigma, sigma_next)
        if direction is not None or self.churn == "published" or (self.order == 1 and not self.corrector):
            source = denoised if direction is None else direction
            slope = math.sqrt(max(sigma_next**2 - std**2, 0.0)) / sigma
            if source is denoised:
                return torch.lerp(denoised, state.x, slope), std, (), None
            return denoised + slope * (state.x - source), std, (), None
        here, there = -math.log(sigma), -math.log(sigma_next)
        g = denoised if self.form == "data" else (state.x - denoised) / sigma
        history = ((here, g), *state.history)
        x = state.x
        if self.corrector and state.anchor is not None:
            origin, begin = state.anchor
            nodes = history[: self.corrector + 1]
            x = self._integrate(origin, nodes, begin, here)
        history = history[: max(self.order, self.corrector + 1 if self.corrector else 0)]
        mean = self._integrate(x, history[: self.order], here, there)
        return mean, std, history, (x, here) if self.corrector else None

    def _integrate(
        self, x: Tensor, nodes: tuple[tuple[float, Tensor], ...], begin: float, end: float
    ) -> Tensor:
        if self.midpoint and len(nodes) == 2:
            decay = math.exp(-(1 + self.eta) * (end - begin))
            ratio = (nodes[0][0] - nodes[1][0]) / (end - begin)
            tilt = 0.5 / ratio
            weights: tuple[float, ...] = ((1 - decay) * (1 + tilt), -(1 - decay) * tilt)
        else:
            weights = quadrature_weights(tuple(level for level, _ in nodes), begin, end, self.eta, self.form)
        decay = math.exp(-(1 + self.eta) * (end - begin)) if self.form == "data" else 1.0
        total = decay * x
        for weight, (_, g) in zip(weights, nodes, strict=True):
            total = total.add(g, alpha=weight)
        return total


def named(name: str, eta: float | None = None) -> ExponentialMultistep:
    """An integrator by its usual name: ddim, ddpm, 2m, 2m_sde, deis2, deis3, unipc2, unipc3."""
    table = {
        "ddim": ExponentialMultistep(),
        "ddpm": ExponentialMultistep(eta=1.0),
        "2m": ExponentialMultistep(order=2, midpoint=True),
        "2m_sde": ExponentialMultistep(order=2, midpoint=True, eta=1.0),
        "deis2": ExponentialMultistep(order=2, form="noise"),
        "deis3": ExponentialMultistep(order=3, form="noise"),
        "unipc2": ExponentialMultistep(order=2, corrector=2),
        "unipc3": ExponentialMultistep(order=3, corrector=3),
    }
    if name not in table:
        raise unknown_name("integrator", name, table)
    return table[name] if eta is None else replace(table[name], eta=eta)
