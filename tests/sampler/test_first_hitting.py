"""Masked diffusion on laws that can be enumerated: samples, evidence, event times."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.errors import InputError
from invdiff.prior.compose import MaskedComposition
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


class Learned:
    """The law of the posterior, slightly wrong: what a conditional network is."""

    learned = True

    def __init__(self, law):
        exact = law.probabilities.log() + torch.where(law.states[:, 0] == 2, -3.0, reward(law.states))
        wrong = 0.3 * torch.randn(len(exact), generator=torch.Generator().manual_seed(9))
        self.posterior = TabulatedPrior((exact + wrong).softmax(0).reshape(law.table.shape))

    def sites(self, tokens):
        return tokens == MASK

    def law(self, tokens, site, log_p):
        return self.posterior.log_conditionals(tokens)[torch.arange(len(site)), site]


def test_a_learned_proposal_is_weighed_at_its_end_alone():
    """Total variation at 20 000 particles; evidence over 400 filters of 8 (|z| < 4: false alarm 6e-5)."""
    law = prior()
    exact, evidence = posterior(law)
    model = FirstHitting(law, reward, completions=0, proposal=Learned(law))
    generator = torch.Generator().manual_seed(6)
    particles, _ = model.start(64, generator)
    for k in range(SITES - 1):
        particles, increment = model.move(k, particles, generator)
        torch.testing.assert_close(increment, torch.zeros(64, dtype=torch.float64))
    out = feynman_kac.run(model, feynman_kac.Settings(20_000), torch.Generator().manual_seed(6))
    assert out.statistics.ess[-1] > 0.7
    found = histogram(law, out.particles.tokens, out.weights)
    assert 0.5 * float((found - exact).abs().sum()) < 0.035
    ratio = torch.tensor(
        [
            math.exp(
                feynman_kac.run(model, feynman_kac.Settings(8), torch.Generator().manual_seed(s)).log_evidence
            )
            for s in range(400)
        ]
    )
    error = float(ratio.std()) / 20
    assert abs(float(ratio.mean()) - math.exp(evidence)) < 4 * error < 0.2 * math.exp(evidence)


def compositions():
    first, generator = prior(), torch.Generator().manual_seed(3)
    table = torch.rand((VOCABULARY,) * SITES, generator=generator) ** 2
    table[0, 1] = 0  # what the second part calls impossible
    second = TabulatedPrior(table)
    return {
        "annealed": ((first, 2.0),),
        "flattened": ((first, 0.5),),
        "product": ((first, 1.0), (second, 1.0)),
        "guidance": ((first, -0.5), (second, 1.5)),
    }


@pytest.mark.parametrize("name", ("annealed", "flattened", "product", "guidance"))
def test_compositions_follow_the_product_of_powers(name):
    """Total variation at 20 000 particles; without the weights it must be seen to be wrong."""
    parts = compositions()[name]
    law = parts[0][0]
    logs = sum(power * part.probabilities.log() for part, power in parts)
    logs = torch.where(torch.stack([part.probabilities == 0 for part, _ in parts]).any(0), -math.inf, logs)
    exact, evidence = logs.softmax(0), float(logs.logsumexp(0))
    model = FirstHitting(MaskedComposition(parts), lambda tokens: torch.zeros(len(tokens)), completions=0)
    out = feynman_kac.run(model, feynman_kac.Settings(20_000), torch.Generator().manual_seed(7))
    found = histogram(law, out.particles.tokens, out.weights)
    assert 0.5 * float((found - exact).abs().sum()) < 0.035
    assert out.log_evidence == pytest.approx(evidence, abs=0.03)
    assert float(found[exact == 0].sum()) == 0
    particles, _ = model.start(20_000, generator := torch.Generator().manual_seed(8))
    for k in range(SITES):
        particles, _ = model.move(k, particles, generator)
    plain = histogram(law, particles.tokens, torch.full((20_000,), 1 / 20_000, dtype=torch.float64))
    if name != "flattened":  # which is nearly right as it is
        assert 0.5 * float((plain - exact).abs().sum()) > 0.05


def test_a_composition_with_data_has_their_posterior():
    """Lookahead and twists weigh the composition as well: total variation at 20 000 particles."""
    parts = compositions()["guidance"]
    law = parts[0][0]
    logs = sum(power * part.probabilities.log() for part, power in parts) + reward(law.states)
    logs = torch.where(parts[1][0].probabilities == 0, -math.inf, logs)
    for options in MODELS.values():
        model = FirstHitting(MaskedComposition(parts), reward, **options)
        out = feynman_kac.run(model, feynman_kac.Settings(20_000), torch.Generator().manual_seed(9))
        found = histogram(law, out.particles.tokens, out.weights)
        assert 0.5 * float((found - logs.softmax(0)).abs().sum()) < 0.035
        assert out.log_evidence == pytest.approx(float(logs.logsumexp(0)), abs=0.05)


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
    with pytest.raises(InputError, match="add up to more than 0"):
        MaskedComposition(((prior(), 1.0), (prior(), -1.0)))
    with pytest.raises(InputError, match="a composition needs the same"):
        MaskedComposition(((prior(), 1.0), (TabulatedPrior(torch.ones(2, 2)), 1.0)))
    with pytest.raises(InputError, match="side length"):
        TabulatedPrior(torch.ones(2, 3))
