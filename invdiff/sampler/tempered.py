"""Tempered particles with Hamiltonian moves, for Gaussian priors and any differentiable likelihood.

    gamma_lambda(w) ~ exp( -|w|^2 / 2 - lambda Psi(w) ),   lambda: 0 -> 1

w are standard normal coordinates of a reference: the prior (z = w, Psi = Phi = -log p(y | x)), or the Laplace
approximation at the mode (z = z* + Sigma^(1/2) w, Psi = Phi + |z|^2 / 2 - |w|^2 / 2 - log |Sigma^(1/2)|).
Both bridges end in the posterior, and the normalising constant of the last is p(y). Weights carry the
particles from one lambda to the next; at each, Hamiltonian moves leave gamma_lambda invariant:

    p ~ N(0, I);  `leapfrogs` times:  p -= eps lambda grad Psi / 2;  (w, p) turned by eps;  p -= that again

The turn solves the Gaussian part exactly, so a likelihood that says nothing costs nothing. A pilot run
places the lambdas (each to an effective sample size of `ess`) and sets the step lengths (acceptance
`accept`); the run itself has them fixed, so that its estimate of p(y) is unbiased.

Law: `consistent`: right for many particles, whatever the Laplace approximation is worth; with few particles
the modes that the reference does not reach are missing. For linear operators and Gaussian noise the
Laplace reference is the posterior (where `rank` does not cut it) and the samples are exact.

With `sweeps=0` nothing is tempered: the draws of the Laplace approximation itself are the samples, with the
curvature of Gauss and Newton (`mode.GaussNewton`), for problems where a gradient costs a second and the
coordinates are a hundred thousand. They are exact where everything is linear and Gaussian; elsewhere they
know one mode and no curved law around it, carry no weight and estimate no p(y): `heuristic`.

Sources: Neal, Statistics and Computing 11, 2001 (annealed weights); Del Moral, Doucet & Jasra, JRSS B 68,
2006 (samplers of a sequence); Shahbaba et al., Statistics and Computing 24, 2014 (split Hamiltonian moves).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invdiff.errors import InputError
from invdiff.measurement.measurement import Measurement
from invdiff.prior.gaussian import GaussianPrior
from invdiff.prior.prior import Prior
from invdiff.sampler.feynman_kac import choose, gather
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.mode import (
    CHUNK,
    GaussNewton,
    Laplace,
    curvature_at,
    gauss_newton,
    gaussian_of,
    posterior_mode,
    standard,
    unwhiten,
)
from invdiff.sampler.particles import ancestors, effective_fraction
from invdiff.sampler.weighting.target import Target

REFERENCES = ("laplace", "prior")
WHOLE, CUT = 1024, 64  # dimensions up to which the Hessian is computed whole, and eigenvalues kept beyond
STAGES = 400  # a pilot that needs more is stuck


@dataclass(frozen=True)
class State:
    """Particles with what their last evaluation cost.

    Attributes:
        w: standard normal coordinates of the reference.
        psi, gradient: Psi and its gradient there.
    """

    w: Float[Tensor, "n *event"]
    psi: Float[Tensor, "n"]
    gradient: Float[Tensor, "n *event"]


@dataclass(frozen=True)
class Bridge:
    """Psi in the coordinates of a reference."""

    target: Target
    prior: GaussianPrior
    reference: Laplace
    chunk: int = CHUNK

    def x(self, w: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        """Events of coordinates."""
        return unwhiten(self.prior, self.reference(w))

    def psi(self, w: Float[Tensor, "n *event"]) -> Float[Tensor, "n"]:
        """Psi, float64."""
        z = self.reference(w)
        phi = -self.target.measurement.log_likelihood(unwhiten(self.prior, z))
        squares = z.double().flatten(1).square().sum(dim=1) - w.double().flatten(1).square().sum(dim=1)
        return phi + 0.5 * squares - self.reference.log_determinant

    def evaluated(self, w: Float[Tensor, "n *event"]) -> State:
        """Psi and its gradient, a few particles at a time."""
        values, gradients = [], []
        for part in torch.split(w, self.chunk):
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                psi = self.psi(leaf)
                (gradient,) = torch.autograd.grad(psi.sum(), leaf)
            values.append(psi.detach())
            gradients.append(gradient)
        return State(w, torch.cat(values), torch.cat(gradients))


def hamiltonian_move(
    bridge: Bridge,
    state: State,
    power: float,
    step: float,
    leapfrogs: int,
    generator: torch.Generator,
) -> tuple[State, Bool[Tensor, "n"], Float[Tensor, "n"]]:
    """One move that leaves gamma_power invariant: the new state, who moved, and the acceptance probabilities.

    A trajectory that leaves where Psi is finite is rejected.
    """
    shape = tuple(state.w.shape)
    momentum = torch.randn(shape, generator=generator, dtype=state.w.dtype).to(state.w)
    uniform = torch.rand(len(state.w), generator=generator, dtype=torch.float64).to(state.psi)
    here, speed = state, momentum
    cosine, sine = math.cos(step), math.sin(step)
    for _ in range(leapfrogs):
        speed = speed - 0.5 * step * power * here.gradient
        w, speed = cosine * here.w + sine * speed, cosine * speed - sine * here.w
        here = bridge.evaluated(w)
        speed = speed - 0.5 * step * power * here.gradient

    def energy(at: State, p: Tensor) -> Tensor:
        squares = at.w.double().flatten(1).square().sum(dim=1) + p.double().flatten(1).square().sum(dim=1)
        return power * at.psi + 0.5 * squares

    drop = energy(state, momentum) - energy(here, speed)
    chance = torch.where(torch.isfinite(drop), drop.clamp(max=0).exp(), 0.0)
    moved = uniform < chance
    return choose(moved, here, state), moved, chance


@dataclass(frozen=True)
class TemperedModel:
    """The Feynman-Kac model with its powers and step lengths fixed."""

    bridge: Bridge
    powers: tuple[float, ...]
    lengths: tuple[float, ...]
    sweeps: int
    leapfrogs: int

    @property
    def steps(self) -> int:
        return len(self.powers)

    def start(self, count: int, generator: torch.Generator) -> tuple[State, Float[Tensor, "particles"]]:
        state = self.bridge.evaluated(self.bridge.target.normal(count, generator))
        return state, -self.powers[0] * state.psi

    def move(
        self, k: int, particles: State, generator: torch.Generator
    ) -> tuple[State, Float[Tensor, "particles"]]:
        power = self.powers[k]
        for _ in range(self.sweeps):
            particles, _, _ = hamiltonian_move(
                self.bridge, particles, power, self.lengths[k], self.leapfrogs, generator
            )
        ahead = self.powers[k + 1] - power if k + 1 < len(self.powers) else 0.0
        return particles, -ahead * particles.psi

    def state(self, particles: State) -> Float[Tensor, "particles *event"]:
        """Particles as events."""
        return self.bridge.x(particles.w)


@dataclass(frozen=True)
class ReferenceModel:
    """The draws of the Laplace approximation as they are: no moves, no weights, no evidence."""

    prior: GaussianPrior
    reference: GaussNewton
    steps: ClassVar[int] = 0
    weighted: ClassVar[bool] = False

    def start(self, count: int, generator: torch.Generator) -> tuple[Tensor, Float[Tensor, "particles"]]:
        return self.reference.draws(count, generator), torch.zeros(count, dtype=torch.float64)

    def move(
        self, k: int, particles: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Float[Tensor, "particles"]]:
        """None."""
        return particles, torch.zeros(len(particles), dtype=torch.float64)

    def state(self, particles: Tensor) -> Float[Tensor, "particles *event"]:
        """Draws as events."""
        return unwhiten(self.prior, particles)


def next_power(psi: Float[Tensor, "n"], power: float, share: float) -> float:
    """The largest power up to 1 to which the weights keep an effective share of `share`, by bisection."""

    def kept(to: float) -> float:
        return effective_fraction(-(to - power) * psi)

    if kept(1.0) >= share:
        return 1.0
    low, high = power, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if kept(middle) >= share else (low, middle)
    return low


@dataclass(frozen=True)
class Tempered:
    """Settings of the method.

    Attributes:
        reference: `laplace` or `prior`: where the particles start.
        sweeps: Hamiltonian moves at each power; 0: the draws of the Laplace approximation are the samples.
        leapfrogs: steps of a move.
        ess: effective share of the pilot's particles from one power to the next.
        accept: acceptance that the step lengths aim at.
        pilot: particles of the pilot run.
        rank: eigenvalues of the Hessian that the Laplace reference keeps; None: all where they are at most
            1024 (a linear forward model has no more of them than data), else 64. Without sweeps: the products
            with J^T J of a draw, at most; None: 64.
        chunk: particles that are differentiated together; lower it where memory is short.
        iterations: of L-BFGS to the mode, where the forward model offers no `guess`.
    """

    reference: str = "laplace"
    sweeps: int = 6
    leapfrogs: int = 6
    ess: float = 0.6
    accept: float = 0.7
    pilot: int = 32
    rank: int | None = None
    iterations: int = 100
    chunk: int = CHUNK
    name: ClassVar[str] = "tempered"
    reach: ClassVar[float] = (
        2e3  # beyond, the Hessian of a linear problem is as a rule too large to be kept whole
    )
    needs_linear: ClassVar[bool] = False
    needs_gaussian: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.reference not in REFERENCES:
            raise InputError(f"sampler.reference is {self.reference!r}; expected laplace or prior")
        if self.sweeps == 0 and self.reference != "laplace":
            raise InputError("without sweeps the samples are those of the reference; it must be laplace")
        if (
            min(self.sweeps + 1, self.leapfrogs, self.rank or 1, self.iterations, self.chunk) < 1
            or self.pilot < 4
        ):
            raise InputError(
                "tempered needs sweeps >= 0, leapfrogs, rank, iterations and chunk >= 1 and pilot >= 4"
            )
        if not (0 < self.ess < 1 and 0 < self.accept < 1):
            raise InputError("tempered needs 0 < ess < 1 and 0 < accept < 1")

    @property
    def claim(self) -> Claim:
        """What the samples are worth."""
        return "consistent" if self.sweeps else "heuristic"

    @property
    def steps(self) -> int:
        return 1

    def require(self, prior: Prior) -> None:
        """A Gaussian prior in closed form."""
        gaussian_of(prior, self.name)

    def model(self, target: Target, generator: torch.Generator) -> TemperedModel | ReferenceModel:
        """The mode and its curvature where asked for, then the pilot run."""
        prior = gaussian_of(target.prior, self.name)
        reference = standard(target.shape, target.dtype, target.device)
        if self.reference == "laplace":
            measurement = target.measurement
            offered = getattr(measurement.operator, "guess", None)
            mode = None if offered is None else offered().to(target.device, target.dtype)
            if mode is None or self.sweeps:
                mode = posterior_mode(
                    prior,
                    [measurement],
                    target.shape,
                    start=mode,
                    iterations=self.iterations,
                    dtype=target.dtype,
                    device=target.device,
                )
            if self.sweeps == 0:
                nearby = getattr(measurement.operator, "gaussian", lambda: measurement)()
                seen = getattr(measurement.operator, "seen", None)
                return ReferenceModel(
                    prior, gauss_newton(prior, nearby, mode, self.name, self.rank or CUT, seen)
                )

            def potential(z: Tensor) -> Tensor:
                return -measurement.log_likelihood(unwhiten(prior, z))

            rank = self.kept(mode.numel(), measurement) if self.rank is None else self.rank
            reference = curvature_at(potential, mode, rank, generator, chunk=self.chunk)
        bridge = Bridge(target, prior, reference, self.chunk)
        powers, lengths = self.piloted(bridge, generator)
        return TemperedModel(bridge, powers, lengths, self.sweeps, self.leapfrogs)

    @staticmethod
    def kept(size: int, measurement: Measurement) -> int:
        """Eigenvalues that are kept where nobody says."""
        most = min(size, measurement.size) if measurement.operator.linear else size
        return most if most <= WHOLE else CUT

    def piloted(
        self, bridge: Bridge, generator: torch.Generator
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Powers and step lengths, from a run of `pilot` particles that adapts both as it goes."""
        state = bridge.evaluated(bridge.target.normal(self.pilot, generator))
        power, step = 0.0, 0.5
        powers: list[float] = []
        lengths: list[float] = []
        while power < 1:
            if len(powers) == STAGES:
                raise FloatingPointError(
                    f"tempering reached power {power:.3g} after {STAGES} stages; the likelihood is too sharp "
                    "for these particles: raise sampler.pilot, or the noise level"
                )
            fresh = next_power(state.psi, power, self.ess)
            state = gather(state, ancestors(-(fresh - power) * state.psi, self.pilot, generator))
            power = fresh
            for _ in range(self.sweeps):
                state, _, chance = hamiltonian_move(bridge, state, power, step, self.leapfrogs, generator)
                step = min(max(step * math.exp(0.5 * (float(chance.mean()) - self.accept)), 1e-4), 1.5)
            powers.append(power)
            lengths.append(step)
        return tuple(powers), tuple(lengths)
