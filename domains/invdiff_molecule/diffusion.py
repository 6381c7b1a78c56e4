"""Reverse diffusion of graphs whose parts have noise levels of their own, steered by rewards.

With levels s of every column, D = D(x; s) and s' the next level, one move is

    corrector   x <- x + e c + kappa sqrt(2 e) z,    c = (D - x) / s^2,   e = 2 snr^2 d / |c|^2    (each part)
    predictor   x' = D + (s' / s)^2 (x - D) + s' sqrt(1 - (s' / s)^2) z                  (exact noise, DDPM)
                x' = x + delta c + sqrt(delta) z,    delta = s^2 - s'^2                  (Euler noise)

d is the number of free entries of the part. The step e depends on the particle alone; released code takes
means over its batch, which couples the samples, and the norm of the drawn z, after which the move has no
density. With `reuse` one score serves corrector and predictor; with Euler noise besides, that is the
splitting that GDSS calls S4. The corrector's stationary law is p^(1 / kappa^2): with kappa < 1 the samples
are those of a sharpened prior, and the published validity of GDSS comes from kappa = .7.

A forward model that knows entries of the graph (`impose`) has them put into every D.

Potentials exp(r(D)) on the molecule that D rounds to, at the levels of the edges from `below` down, turn it
into Feynman-Kac steering (arXiv 2501.06848): the target is (law of this sampler) exp(r), whatever its moves
are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff import Claim, InputError, Prior, Target, filtered
from invdiff_molecule.levels import GraphDiffusionPrior
from invdiff_molecule.state import nodes_of, support

Reward = Callable[[Float[Tensor, "n N C"]], Float[Tensor, "n"]]


@dataclass(frozen=True)
class GraphParticles:
    """States, their denoised graphs, and log psi of each."""

    x: Float[Tensor, "n N C"]
    denoised: Float[Tensor, "n N C"]
    log_twist: Float[Tensor, "n"]


@dataclass(frozen=True)
class GraphDiffusion:
    """Settings of the method.

    Attributes:
        steps: levels, uniform in the prior's own time.
        corrector: whether a Langevin move comes before every predictor.
        snr: of the corrector's step.
        temperature: kappa, the scale of the corrector's noise.
        reuse: whether corrector and predictor share one call of the networks.
        noise: of the predictor, exact or euler.
        start: `moments`, the Gaussian with the training set's mean and variance at the first level, or
            `published`, N(0, 1) in the networks' units whatever the mean.
        below: level of the edges from which potentials are renewed.
        every: at every so many levels.
    """

    steps: int = 50
    corrector: bool = True
    snr: float = 0.2
    temperature: float = 0.7
    reuse: bool = True
    noise: str = "euler"
    start: str = "moments"
    below: float = 0.6
    every: int = 1
    name: ClassVar[str] = "graph_diffusion"
    claim: ClassVar[Claim] = "heuristic"
    needs_linear: ClassVar[bool] = False
    needs_gaussian: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.noise not in ("exact", "euler") or self.start not in ("moments", "published"):
            raise InputError(
                f"graph_diffusion knows noise exact and euler and start moments and published; found "
                f"{self.noise!r} and {self.start!r}"
            )
        if self.steps < 2 or self.every < 1 or not self.snr > 0 or not self.temperature > 0:
            raise InputError("graph_diffusion needs steps >= 2, every >= 1, and snr and temperature above 0")

    def require(self, prior: Prior) -> None:
        """Refuse other priors.

        Raises:
            InputError: for a prior without levels of graphs.
        """
        if not isinstance(bare(prior), GraphDiffusionPrior):
            raise InputError(
                f"sampler 'graph_diffusion' needs a diffusion prior of graphs such as prior=gdss and "
                f"{prior.card.name!r} is none; use sampler=first_hitting for masked priors"
            )

    def model(self, target: Target, generator: torch.Generator) -> GraphModel:
        prior, measurement = bare(target.prior), target.measurement
        assert isinstance(prior, GraphDiffusionPrior)  # `require` has refused others

        def reward(x: Tensor) -> Tensor:
            return measurement.log_likelihood(x.to(target.device)).double()

        impose = getattr(measurement.operator, "impose", None)
        known = None if impose is None else functools.partial(impose, y=measurement.y)
        return GraphModel(self, prior, reward, target.prior, known)


def bare(prior: Prior) -> Prior:
    """The prior inside what counts its calls."""
    while (inner := getattr(prior, "inner", None)) is not None:
        prior = inner
    return prior


@dataclass(frozen=True)
class GraphModel:
    """The Feynman-Kac model.

    Attributes:
        settings: of the moves.
        prior: a graph prior.
        reward: r of denoised states; None for the prior alone.
        asked: what is called for D, where calls are counted; None for the prior itself.
        known: puts known entries into D; None where there are none.
    """

    settings: GraphDiffusion
    prior: GraphDiffusionPrior
    reward: Reward | None = None
    asked: Prior | None = None
    known: Callable[[Float[Tensor, "n N C"]], Float[Tensor, "n N C"]] | None = None

    @functools.cached_property
    def levels(self) -> list[Float[Tensor, "1 1 C"]]:
        """Decreasing levels."""
        return self.prior.levels(self.steps)

    @property
    def steps(self) -> int:
        return self.settings.steps

    def state(self, particles: GraphParticles) -> Float[Tensor, "n N C"]:
        """The graphs that the particles round to, as packed states."""
        return self.prior.rounded(particles.denoised)

    def start(self, count: int, generator: torch.Generator) -> tuple[GraphParticles, Float[Tensor, "n"]]:
        prior = self.prior
        there = support(prior.start_sizes(count, generator), prior.most, prior.features)
        level = prior.level(1.0)
        mean, variance = prior.moments.columns()
        if self.settings.start == "published":
            mean, variance = torch.zeros_like(mean), prior.unit_noise() - level**2
        normal = torch.randn((count, *prior.event_shape), generator=generator)
        x = there * (mean + (level**2 + variance).sqrt() * normal)
        denoised = self.denoise(x, level)
        nothing = torch.zeros(count, dtype=torch.float64)
        return GraphParticles(x, denoised, nothing), nothing

    def denoise(self, x: Float[Tensor, "n N C"], level: Float[Tensor, "1 1 C"]) -> Float[Tensor, "n N C"]:
        """D without gradient.

        Raises:
            FloatingPointError: where it is not finite.
        """
        with torch.no_grad():
            found = (self.asked or self.prior).denoise(x, level)
        if not bool(torch.isfinite(found).all()):
            raise FloatingPointError("the graph prior returned values that are not finite")
        return found if self.known is None else self.known(found)

    def move(
        self, k: int, particles: GraphParticles, generator: torch.Generator
    ) -> tuple[GraphParticles, Float[Tensor, "n"]]:
        """From level k to level k + 1; the last move weighs the graph that D rounds to."""
        if k == self.steps - 1:
            return self.weighed(particles, True)
        settings, level, after = self.settings, self.levels[k], self.levels[k + 1]
        x, denoised = particles.x, particles.denoised
        there = self.free(x)

        def normal() -> Tensor:
            return torch.randn(x.shape, generator=generator) * there

        score = (denoised - x) / level**2
        if settings.corrector:
            x = self.corrected(x, score, there, normal())
            if not settings.reuse:
                denoised = self.denoise(x, level)
                score = (denoised - x) / level**2
        ratio = (after / level) ** 2
        if settings.noise == "euler":
            step = level**2 - after**2
            x = x + step * score + step.sqrt() * normal()
        else:
            x = x + (1 - ratio) * level**2 * score + after * (1 - ratio).sqrt() * normal()
        moved = GraphParticles(x, self.denoise(x, after), particles.log_twist)
        edge = float(after[..., -1])
        if edge <= settings.below and (self.steps - 1 - k) % settings.every == 0:
            return self.weighed(moved, False)
        return moved, torch.zeros(len(x), dtype=torch.float64)

    def free(self, x: Float[Tensor, "n N C"]) -> Float[Tensor, "n N C"]:
        """1 on the free coordinates."""
        sizes = nodes_of(x, self.prior.features).sum(1)
        return support(sizes, self.prior.most, self.prior.features)

    def corrected(
        self, x: Float[Tensor, "n N C"], score: Tensor, there: Tensor, normal: Tensor
    ) -> Float[Tensor, "n N C"]:
        """One Langevin move of both parts, each with its own step."""
        settings, features = self.settings, self.prior.features
        steps = []
        for part in (slice(None, features), slice(features, None)):
            one, free = score[..., part], there[..., part]
            count, square = free.sum((1, 2)), one.square().sum((1, 2)).clamp_min(1e-20)
            steps.append((2 * settings.snr**2 * count / square)[:, None, None].expand(one.shape))
        step = torch.cat(steps, dim=-1)
        return x + step * score + settings.temperature * (2 * step).sqrt() * normal

    def weighed(self, p: GraphParticles, last: bool) -> tuple[GraphParticles, Float[Tensor, "n"]]:
        """Particles with a new log psi, and its increment."""
        if self.reward is None:
            return p, torch.zeros(len(p.x), dtype=torch.float64)
        twist = self.reward(self.prior.rounded(p.denoised) if last else p.denoised)
        return replace(p, log_twist=twist), twist - p.log_twist


graph_diffusion = filtered(GraphDiffusion)
