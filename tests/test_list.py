"""`invdiff list` says of every sampler what its samples are worth."""

from __future__ import annotations

import pytest

from invdiff.api import make_sampler
from invdiff.config import choices, first_comment
from invdiff.prior.prior import PriorCard
from invdiff.registry import plugins

WORDS = {
    "gaussian": "exact for Gaussian priors",
    "consistent": "consistent",
    "approximate": "approximate",
    "heuristic": "heuristic",
    "point": "point estimate",
}


@pytest.mark.parametrize("name", sorted(plugins("samplers")))
def test_the_line_in_the_list_is_the_claim(name):
    sampler = make_sampler(name, PriorCard("any"))
    assert first_comment(choices("sampler")[name]).startswith(WORDS[sampler.claim])


@pytest.mark.parametrize("name", sorted(choices("sampler")))
def test_every_configuration_is_a_sampler_of_the_api(name):
    """Also those that are settings of another one, such as ct_langevin of split_langevin."""
    assert make_sampler(name, PriorCard("any")).claim in WORDS
