"""First-hitting sampling of masked diffusions, weighted by the Feynman-Kac engine.

A masked diffusion is simulated without a time grid: the next site to appear is uniform among the
masked ones, its token is drawn from p(x_i | unmasked), and L moves finish a sequence of L sites
(Zheng et al., arXiv 2409.02908). The time of the move, which only networks with a time input need,
is tau u^(1/n) with n masked sites left. Categoricals are drawn in float64: float32 uniforms cap the
Gumbel variable at 16.6 and sharpen the law.

Target p(x) exp(r(x)) for a log-likelihood or reward r of complete sequences. With the twist
log psi = log mean_j exp(r(completion_j)) over completions that fill the masked sites independently,

    prior proposal    log w += log psi(x') - log psi(x)
    lookahead         v ~ p(v | x) psi(x with v),   log w += log sum_v p(v | x) psi(x with v) - log psi(x)

and at the end psi = exp(r). psi may be random, as long as it is positive wherever the target is: the
increments telescope to r(x0) whatever it was, so samples are consistent and the evidence
sum_x p(x) exp(r(x)) is unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invdiff.errors import InputError
from invdiff.prior.masked import MASK, MaskedPrior
from invdiff.sampler.particles import log_mean

Reward = Callable[[Int[Tensor, "batch sites"]], Float[Tensor, "batch"]]


@dataclass(frozen=True)
class Sequences:
    """Partly masked sequences with log psi and the time of each."""

    tokens: Int[Tensor, "n sites"]
    log_twist: Float[Tensor, "n"]
    time: Float[Tensor, "n"]


@dataclass(frozen=True)
class FirstHitting:
    """The Feynman-Kac model of p(x) exp(r(x)).

    Attributes:
        prior: conditional laws of masked sites.
        reward: r of complete sequences; minus infinity where a sequence is impossible.
        completions: independent completions that a twist averages over; 0 for no twist before the end.
        lookahead: draw the token in proportion to p(v) psi(x with v) instead of p(v).
    """

    prior: MaskedPrior
    reward: Reward
    completions: int = 4
    lookahead: bool = False

    def __post_init__(self) -> None:
        if self.lookahead and not self.completions:
            raise InputError("lookahead needs a twist: set completions to at least 1")

    @property
    def steps(self) -> int:
        return self.prior.sites

    def start(self, count: int, generator: torch.Generator) -> tuple[Sequences, Float[Tensor, "n"]]:
        tokens = torch.full((count, self.prior.sites), MASK)
        twist = self.twist(tokens, generator)
        return Sequences(tokens, twist, torch.ones(count, dtype=torch.float64)), twist

    def move(
        self, k: int, particles: Sequences, generator: torch.Generator
    ) -> tuple[Sequences, Float[Tensor, "n"]]:
        p, count = particles, len(particles.tokens)
        rows = torch.arange(count)
        masked = (p.tokens == MASK).double()
        site = torch.multinomial(masked, 1, generator=generator)[:, 0]
        left = self.prior.sites - k
        uniform = torch.rand(count, generator=generator, dtype=torch.float64)
        time = p.time * uniform ** (1 / left)
        log_p = self.prior.log_conditionals(p.tokens).double()[rows, site]
        if not self.lookahead:
            token = categorical(log_p, generator)
            tokens = p.tokens.clone()
            tokens[rows, site] = token
            twist = self.twist(tokens, generator)
            return Sequences(tokens, twist, time), difference(twist, p.log_twist)
        many = self.prior.vocabulary
        children = p.tokens.repeat_interleave(many, dim=0)
        children[torch.arange(count * many), site.repeat_interleave(many)] = torch.arange(many).repeat(count)
        # The prior is not asked about sequences that it calls impossible.
        possible = torch.isfinite(log_p).flatten()
        twists = torch.full((count * many,), -math.inf, dtype=torch.float64)
        twists[possible] = self.twist(children[possible], generator)
        twists = twists.reshape(count, many)
        joint = log_p + twists
        total = torch.logsumexp(joint, dim=1)
        # A particle without any possible child keeps weight zero; its token is drawn from the prior.
        usable = torch.where(torch.isfinite(total)[:, None], joint, log_p)
        token = categorical(usable, generator)
        tokens = p.tokens.clone()
        tokens[rows, site] = token
        return Sequences(tokens, twists[rows, token], time), difference(total, p.log_twist)

    def twist(self, tokens: Int[Tensor, "n sites"], generator: torch.Generator) -> Float[Tensor, "n"]:
        """log psi: r itself where nothing is masked, else the log mean over completions; 0 without."""
        if not bool((tokens == MASK).any()):
            return self.reward(tokens).double()
        if not self.completions:
            return torch.zeros(len(tokens), dtype=torch.float64)
        masked = tokens == MASK
        log_p = self.prior.log_conditionals(tokens).double()[masked]
        found = []
        for _ in range(self.completions):
            complete = tokens.clone()
            complete[masked] = categorical(log_p, generator)
            found.append(self.reward(complete).double())
        values = torch.stack(found)
        mean = torch.logsumexp(values, dim=0) - math.log(self.completions)
        # A few impossible completions do not make a partial sequence impossible: psi stays positive.
        possible = values[torch.isfinite(values)]
        floor = log_mean(possible) - 1.0 if len(possible) else 0.0
        return torch.logaddexp(mean, torch.full_like(mean, floor))


def categorical(log_p: Float[Tensor, "n vocabulary"], generator: torch.Generator) -> Int[Tensor, "n"]:
    """One index a row by inversion in float64; log_p need not be normalised.

    Raises:
        FloatingPointError: for NaN.
    """
    if bool(torch.isnan(log_p).any()):
        raise FloatingPointError("the prior's conditional probabilities hold nan")
    edges = torch.softmax(log_p.double(), dim=1).cumsum(dim=1)
    uniform = torch.rand(len(log_p), 1, generator=generator, dtype=torch.float64) * edges[:, -1:]
    return (edges <= uniform).sum(dim=1).clamp_max(log_p.shape[1] - 1)


def difference(after: Float[Tensor, "n"], before: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """after - before, minus infinity where a particle is dead or dies."""
    dead = torch.isneginf(after) | torch.isneginf(before)
    return torch.where(dead, -math.inf, after - torch.where(dead, 0.0, before))


def without_twist(model: FirstHitting) -> FirstHitting:
    """The same model weighted at its end only: importance sampling from the prior."""
    return replace(model, completions=0, lookahead=False)
