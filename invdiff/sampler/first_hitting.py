"""First-hitting sampling of masked diffusions, weighted by the Feynman-Kac engine.

A masked diffusion is simulated without a time grid: the next site to appear is uniform among the
masked ones, its token is drawn from p(x_i | unmasked), and L moves finish a sequence of L sites
(Zheng et al., arXiv 2409.02908). Their networks know no time, so the times themselves (the k-th of L
uniforms) are not drawn. Categoricals are drawn in float64: float32 uniforms cap the Gumbel variable at
16.6 and sharpen the law.

Target p(x) exp(r(x)) for a log-likelihood or reward r of complete sequences. With the twist
log psi = log mean_j exp(r(completion_j)) over completions that fill the masked sites independently,

    prior proposal    log w += log psi(x') - log psi(x)
    lookahead         v ~ p(v | x) psi(x with v),   log w += log sum_v p(v | x) psi(x with v) - log psi(x)
    own proposal q    v ~ q(v | x),                 log w += log p(v | x) - log q(v | x) + the first line

and at the end psi = exp(r). psi may be random, and may be carried unchanged over some moves, as long as it
is positive wherever the target is: the increments telescope to r(x0) whatever it was, so samples are
consistent and the evidence sum_x p(x) exp(r(x)) is unbiased. A proposal may choose the next site too, from
the sequence as it is; q must be positive where p exp(r) is.

A proposal that has learned p(x | y) is itself the best twist: psi(x) = q(x) / p(x) of the decided sites, so
that nothing is weighed before the end, where the weight is p exp(r) / q (`Proposal.learned`).

Of a composition prod_i q_i^(b_i) the conditionals add up to Z instead of 1, and the first two lines gain
log Z: the Feynman-Kac corrector of a masked diffusion (`prior/compose.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invdiff.errors import InputError
from invdiff.prior.masked import MASK, MaskedPrior
from invdiff.prior.prior import Prior
from invdiff.sampler.guidance.guidance import Claim
from invdiff.sampler.particles import log_mean
from invdiff.sampler.weighting.target import Target

Reward = Callable[[Int[Tensor, "batch sites"]], Float[Tensor, "batch"]]


@runtime_checkable
class Proposal(Protocol):
    """Where and what to decide next, by what is known of the data.

    One with an attribute `learned` that is true draws from an approximation of p(x | y), and is weighed at
    the end alone.
    """

    def sites(self, tokens: Int[Tensor, "batch sites"]) -> Bool[Tensor, "batch sites"]:
        """Masked sites that may come next; at least one where any is masked."""

    def law(
        self,
        tokens: Int[Tensor, "batch sites"],
        site: Int[Tensor, "batch"],
        log_p: Float[Tensor, "batch sites vocabulary"],
    ) -> Float[Tensor, "batch vocabulary"]:
        """Normalised log q of the token at `site`."""


@dataclass(frozen=True)
class Sequences:
    """Partly masked sequences with the prior's conditionals and log psi of each."""

    tokens: Int[Tensor, "n sites"]
    log_p: Float[Tensor, "n sites vocabulary"]
    log_twist: Float[Tensor, "n"]


@dataclass(frozen=True)
class FirstHitting:
    """The Feynman-Kac model of p(x) exp(r(x)).

    Attributes:
        prior: conditional laws of masked sites.
        reward: r of complete sequences; minus infinity where a sequence is impossible.
        completions: independent completions that a twist averages over; 0 for no twist before the end.
        lookahead: draw the token in proportion to p(v) psi(x with v) instead of p(v).
        proposal: q; None for the prior's own.
        every, last: the twist is renewed when the number of masked sites is a multiple of `every` and at
            most `last`.
    """

    prior: MaskedPrior
    reward: Reward
    completions: int = 4
    lookahead: bool = False
    proposal: Proposal | None = None
    every: int = 1
    last: int | None = None

    def __post_init__(self) -> None:
        if self.lookahead and not self.completions:
            raise InputError("lookahead needs a twist: set completions to at least 1")
        if self.lookahead and self.proposal is not None:
            raise InputError("lookahead has a proposal of its own; set lookahead=false")

    @property
    def steps(self) -> int:
        return self.prior.sites

    def state(self, particles: Sequences) -> Float[Tensor, "n *event"]:
        """Complete sequences as events."""
        return self.prior.embed(particles.tokens)

    def start(self, count: int, generator: torch.Generator) -> tuple[Sequences, Float[Tensor, "n"]]:
        tokens = self.prior.start(count, generator)
        log_p = self.conditionals(tokens)
        twist = self.twist(tokens, log_p, torch.zeros(count, dtype=torch.float64), generator)
        return Sequences(tokens, log_p, twist), twist

    def move(
        self, k: int, particles: Sequences, generator: torch.Generator
    ) -> tuple[Sequences, Float[Tensor, "n"]]:
        moved, increment = self._moved(particles, generator)
        if k + 1 == self.steps and not self.completions:
            final = self.reward(moved.tokens).double()
            return replace(moved, log_twist=final), increment + difference(final, moved.log_twist)
        return moved, increment

    def _moved(
        self, particles: Sequences, generator: torch.Generator
    ) -> tuple[Sequences, Float[Tensor, "n"]]:
        """One site more where any is masked; sequences may be of different lengths."""
        open_rows = (particles.tokens == MASK).any(dim=1)
        increment = torch.zeros(len(open_rows), dtype=torch.float64)
        if not bool(open_rows.any()):
            return particles, increment
        rows = open_rows.nonzero()[:, 0]
        p = Sequences(particles.tokens[rows], particles.log_p[rows], particles.log_twist[rows])
        masked = p.tokens == MASK
        free = masked if self.proposal is None else masked & self.proposal.sites(p.tokens)
        site = torch.multinomial(free.double(), 1, generator=generator)[:, 0]
        step = self._looking_ahead if self.lookahead else self._drawing
        moved, gained = step(p, site, generator)
        increment[rows] = gained

        def put(old: Tensor, new: Tensor) -> Tensor:
            return old.index_copy(0, rows, new)

        tokens, log_p = put(particles.tokens, moved.tokens), put(particles.log_p, moved.log_p)
        return Sequences(tokens, log_p, put(particles.log_twist, moved.log_twist)), increment

    def _drawing(
        self, p: Sequences, site: Int[Tensor, "n"], generator: torch.Generator
    ) -> tuple[Sequences, Float[Tensor, "n"]]:
        """The token from the prior, or from the proposal with its weight."""
        rows = torch.arange(len(site))
        law = p.log_p[rows, site]
        total = law.logsumexp(1)
        chosen = law if self.proposal is None else self.proposal.law(p.tokens, site, p.log_p).double()
        # Where a composition leaves no token the weight is zero, whatever is drawn.
        token = categorical(torch.where(torch.isneginf(total)[:, None], 0.0, chosen), generator)
        tokens = p.tokens.clone()
        tokens[rows, site] = token
        log_p = self.conditionals(tokens)
        ratio = total if self.proposal is None else law[rows, token] - chosen[rows, token]
        carried = p.log_twist - ratio if getattr(self.proposal, "learned", False) else p.log_twist
        twist = self.twist(tokens, log_p, carried, generator)
        return Sequences(tokens, log_p, twist), difference(twist, p.log_twist) + ratio

    def _looking_ahead(
        self, p: Sequences, site: Int[Tensor, "n"], generator: torch.Generator
    ) -> tuple[Sequences, Float[Tensor, "n"]]:
        """The token in proportion to p(v) psi(x with v)."""
        count, many = len(site), self.prior.vocabulary
        rows = torch.arange(count)
        law = p.log_p[rows, site]
        children = p.tokens.repeat_interleave(many, dim=0)
        children[torch.arange(count * many), site.repeat_interleave(many)] = torch.arange(many).repeat(count)
        # The prior is not asked about sequences that it calls impossible.
        possible = torch.isfinite(law).flatten()
        twists = torch.full((count * many,), -math.inf, dtype=torch.float64)
        carried = p.log_twist.repeat_interleave(many)[possible]
        asked = self.conditionals(children[possible])
        twists[possible] = self.twist(children[possible], asked, carried, generator)
        place = torch.cumsum(possible, 0) - 1
        twists = twists.reshape(count, many)
        joint = law + twists
        total = torch.logsumexp(joint, dim=1)
        # A particle without any possible child keeps weight zero; its token is drawn from the prior.
        usable = torch.where(torch.isfinite(total)[:, None], joint, law)
        token = categorical(usable, generator)
        chosen = rows * many + token
        tokens, log_p = children[chosen], asked[place[chosen]]
        return Sequences(tokens, log_p, twists[rows, token]), difference(total, p.log_twist)

    def conditionals(self, tokens: Int[Tensor, "n sites"]) -> Float[Tensor, "n sites vocabulary"]:
        """The prior's, asked only about sequences with a masked site; zeros elsewhere."""
        out = torch.zeros(*tokens.shape, self.prior.vocabulary, dtype=torch.float64)
        rows = (tokens == MASK).any(dim=1)
        if bool(rows.any()):
            out[rows] = self.prior.log_conditionals(tokens[rows]).double()
        return out

    def twist(
        self,
        tokens: Int[Tensor, "n sites"],
        log_p: Float[Tensor, "n sites vocabulary"],
        carried: Float[Tensor, "n"],
        generator: torch.Generator,
    ) -> Float[Tensor, "n"]:
        """log psi: r where nothing is masked, else the log mean over completions where it is renewed.

        Without completions it stays 0 until the last move, so that no sequence is weighed before another.
        """
        if not self.completions:
            return carried
        masked = tokens == MASK
        left = masked.sum(dim=1)
        out = carried.clone()
        done = left == 0
        if bool(done.any()):
            out[done] = self.reward(tokens[done]).double()
        renewed = ~done & (left % self.every == 0)
        if self.last is not None:
            renewed &= left <= self.last
        if not bool(renewed.any()):
            return out
        partial, holes = tokens[renewed], masked[renewed]
        laws = log_p[renewed][holes]
        found = []
        for _ in range(self.completions):
            complete = partial.clone()
            complete[holes] = categorical(laws, generator)
            found.append(self.reward(complete).double())
        values = torch.stack(found)
        mean = torch.logsumexp(values, dim=0) - math.log(self.completions)
        # A few impossible completions do not make a partial sequence impossible: psi stays positive.
        possible = values[torch.isfinite(values)]
        floor = log_mean(possible) - 1.0 if len(possible) else 0.0
        out[renewed] = torch.logaddexp(mean, torch.full_like(mean, floor))
        return out


@dataclass(frozen=True)
class MaskedDiffusion:
    """First-hitting sampling as a method of the particle sampler; the measurement's log-likelihood is r.

    A forward model that has `proposal(prior, measurement)` is asked for one.

    Attributes:
        completions, lookahead, every, last: see `FirstHitting`.
        proposals: whether the forward model's proposal is used.
    """

    completions: int = 0
    lookahead: bool = False
    every: int = 1
    last: int | None = None
    proposals: bool = True
    name: ClassVar[str] = "first_hitting"
    claim: ClassVar[Claim] = "consistent"
    composes: ClassVar[bool] = True
    needs_linear: ClassVar[bool] = False
    needs_gaussian: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = False

    @property
    def steps(self) -> int:
        """For progress only: the number of moves is the prior's number of sites."""
        return 1

    def require(self, prior: Prior) -> None:
        """Refuse a denoiser.

        Raises:
            InputError: for a prior of real numbers.
        """
        if not isinstance(prior, MaskedPrior):
            raise InputError(
                f"prior {prior.card.name!r} is of real numbers, not of tokens; sampler 'first_hitting' needs "
                "a masked prior"
            )

    def model(self, target: Target, generator: torch.Generator) -> FirstHitting:
        prior, measurement = target.prior, target.measurement
        assert isinstance(prior, MaskedPrior)  # `require` has refused others

        def reward(tokens: Tensor) -> Tensor:
            return measurement.log_likelihood(prior.embed(tokens).to(target.device))

        make = getattr(measurement.operator, "proposal", None) if self.proposals else None
        proposal = None if make is None else make(prior, measurement)
        options = (self.completions, self.lookahead, proposal, self.every, self.last)
        return FirstHitting(prior, reward, *options)


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
