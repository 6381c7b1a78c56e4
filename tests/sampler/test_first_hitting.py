"""Masked diffusion on laws that can be enumerated: samples, evidence, event times."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.errors import InputError
from invdiff.prior.masked import MASK, MaskedPrior, TabulatedPrior
from invdiff.sampler import feynman_kac
from invdiff.sampler.first_hitting import FirstHitting, categorical, without_twist

SITES, VOCABULARY = 4, 3


def prior():
    g = torch.Generator().manual_seed(0)
    return TabulatedPrior(torch.rand((VOCABULARY,) * SITES, generator=g) ** 3)


def reward(tokens):
    """Neighbours that agree are likely, and 2 at the first site is impossible."""
    agree = (tokens[:, 1:] == tokens[:, :-1]).sum(1).double()
    return torch.where(tokens[:, 0] == 2, -math.inf, 1.5 * agree)


def posterior(law):
    logs = law.probabilities.log() + reward(law.states)
    return logs.softmax(0), float(logs.logsumexp(0))


def histogram(law, tokens, weights):
    index = (tokens * VOCABULARY ** torch.arange(SITES - 1, -1, -1)).sum(1)
    return torch.zeros(len(law.states), dtype=torch.float64).index_add(0, index, weights)


def test_conditionals_are_those_of_the_table():
    law = prior()
    assert isinstance(law, MaskedPrior)
    tokens = torch.tensor([[1, MASK, 0, MASK]])
    joint = law.table[1, :, 0, :]
    expected = (joint.sum(1) / joint.sum()).log()
    torch.testing.assert_close(law.log_conditionals(tokens)[0, 1], expected)


def test_unweighted_sequences_follow_the_prior():
    """Chi-square over 81 states at 20 000 draws: false alarm 1e-3 at 124.8 (80 df)."""
    law = prior()
    model = FirstHitting(law, lambda tokens: torch.zeros(len(tokens)), completions=0)
    out = feynman_kac.run(model, feynman_kac.Settings(20_000), torch.Generator().manual_seed(1))
    counts = 20_000 * histogram(law, out.particles.tokens, out.weights)
    expected = 20_000 * law.probabilities
    kept = expected > 3
    assert float(((counts - expected)[kept] ** 2 / expected[kept]).sum()) < 124.8
    assert out.log_evidence == pytest.approx(0.0, abs=1e-12)


MODELS = {
    "importance": {"completions": 0},
    "twisted": {"completions": 4},
    "lookahead": {"completions": 4, "lookahead": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_weighted_sequences_follow_the_posterior(name):
    """Total variation of 20 000 particles: the floor of exact draws is about .02."""
    law = prior()
    exact, evidence = posterior(law)
    model = FirstHitting(law, reward, **MODELS[name])
    out = feynman_kac.run(model, feynman_kac.Settings(20_000), torch.Generator().manual_seed(2))
    found = histogram(law, out.particles.tokens, out.weights)
    assert 0.5 * float((found - exact).abs().sum()) < 0.035
    assert out.log_evidence == pytest.approx(evidence, abs=0.03)
    assert float(found[law.states[:, 0] == 2].sum()) == 0.0


@pytest.mark.parametrize("name", MODELS)
def test_evidence_is_unbiased(name):
    """400 filters of 8; |z| < 4: false alarm 2e-4 over three models. A random twist is legal."""
    law = prior()
    _, evidence = posterior(law)
    model = FirstHitting(law, reward, **MODELS[name])
    settings = feynman_kac.Settings(8)
    found = []
    for seed in range(400):
        try:
            out = feynman_kac.run(model, settings, torch.Generator().manual_seed(seed))
            found.append(math.exp(out.log_evidence - evidence))
        except FloatingPointError:  # every particle impossible: an estimate of zero
            found.append(0.0)
    ratio = torch.tensor(found)
    error = float(ratio.std()) / 20
    assert abs(float(ratio.mean()) - 1) < 4 * error < 0.2


def test_twist_and_lookahead_save_particles():
    law = prior()
    spread = {}
    for name, options in MODELS.items():
        model = FirstHitting(law, reward, **options)
        logs = [
            feynman_kac.run(model, feynman_kac.Settings(64), torch.Generator().manual_seed(s)).log_evidence
            for s in range(60)
        ]
        spread[name] = float(torch.tensor(logs).std())
    assert spread["lookahead"] < spread["importance"]
    assert without_twist(FirstHitting(law, reward)) == FirstHitting(law, reward, completions=0)


class Tilted:
    """A proposal of the last masked site first, with a token law that is far from the prior's."""

    def sites(self, tokens):
        number = torch.arange(tokens.shape[1])
        masked = tokens == MASK
        return number == torch.where(masked, number, -1).max(dim=1, keepdim=True).values

    def law(self, tokens, site, log_p):
        rows = torch.arange(len(site))
        return (0.5 * log_p[rows, site] + torch.arange(VOCABULARY) * 0.3).log_softmax(dim=1)


class Begun(TabulatedPrior):
    """Sequences whose first site is known to be 1."""

    def start(self, count, generator):
        tokens = super().start(count, generator)
        tokens[:, 0] = 1
        return tokens


def test_a_proposal_changes_neither_law_nor_evidence():
    """As above: total variation at 20 000 particles, and 600 filters of 8 (|z| < 4)."""
    law = prior()
    exact, evidence = posterior(law)
    model = FirstHitting(law, reward, completions=2, proposal=Tilted(), every=2, last=3)
    out = feynman_kac.run(model, feynman_kac.Settings(20_000), torch.Generator().manual_seed(4))
    found = histogram(law, out.particles.tokens, out.weights)
    assert 0.5 * float((found - exact).abs().sum()) < 0.035
    ratios = []
    for seed in range(600):
        try:
            out = feynman_kac.run(model, feynman_kac.Settings(8), torch.Generator().manual_seed(seed))
            ratios.append(math.exp(out.log_evidence - evidence))
        except FloatingPointError:  # every particle impossible: an estimate of zero
            ratios.append(0.0)
    ratio = torch.tensor(ratios)
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / 600**0.5 < 0.2


def test_known_sites_condition_exactly():
    """Chi-square over the 27 states with a 1 at the first site: false alarm 1e-3 at 54.1 (26 df)."""
    law = Begun(prior().table)
    model = FirstHitting(law, lambda tokens: torch.zeros(len(tokens)), completions=0)
    out = feynman_kac.run(model, feynman_kac.Settings(20_000), torch.Generator().manual_seed(5))
    expected = law.probabilities * (law.states[:, 0] == 1)
    expected = 20_000 * expected / expected.sum()
    counts = 20_000 * histogram(law, out.particles.tokens, out.weights)
    kept = expected > 3
    assert float(counts[expected == 0].sum()) == 0
    assert float(((counts - expected)[kept] ** 2 / expected[kept]).sum()) < 54.1


def test_rare_tokens_are_drawn_at_their_rate():
    """Probability 1e-9, below what float32 uniforms can reach, is neither lost nor inflated."""
    logs = torch.tensor([[0.0, math.log(1e-4), math.log(1e-9)]]).double().expand(400_000, 3)
    drawn = torch.bincount(categorical(logs, torch.Generator().manual_seed(0)), minlength=3)
    assert 10 < int(drawn[1]) < 80
    assert int(drawn[2]) <= 1


def test_refusals():
    with pytest.raises(InputError, match="completions"):
        FirstHitting(prior(), reward, completions=0, lookahead=True)
    with pytest.raises(InputError, match="side length"):
        TabulatedPrior(torch.ones(2, 3))
