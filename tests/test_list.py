"""`invdiff list` says of every sampler what its samples are worth."""

from __future__ import annotations

import re

import pytest

from invdiff.api import make_sampler
from invdiff.config import choices, compose, first_comment
from invdiff.errors import InputError
from invdiff.prior.prior import PriorCard
from invdiff.registry import plugins
from invdiff.run.solve import make_sampler as build

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


@pytest.mark.parametrize(
    ("sampler", "setting", "said"),
    [
        ("steering", "moves=1.5", "moves is 1.5; expected a whole number"),
        ("steering", "threshold=x", "threshold is 'x'; expected a number"),
        ("steering", "potential=least", "expected difference or maximum or sum"),
        ("steering", "resampling=bogus", "unknown resampling scheme"),
        ("twisted", "moves_proposal=mala", "moves_proposal=pcn"),
        ("dps", "steps=many", "steps is 'many'; expected a whole number"),
        ("dps", "eta=x", "eta is 'x'; expected a number or null"),
        ("daps", "sigma_max=big", "sigma_max is 'big'; expected a number"),
        ("moment_matching", "nonsense=1", "does not know nonsense"),
    ],
)
def test_settings_are_refused_by_name_and_type(sampler, setting, said):
    config = compose(["domain=array", f"sampler={sampler}", f"sampler.{setting}"])
    with pytest.raises(InputError, match=re.escape(said)):
        build(config["sampler"], PriorCard("any"))


def test_settings_that_a_file_does_not_list_can_be_given():
    config = compose(["domain=array", "sampler=steering", "sampler.moves=2", "sampler.moves_proposal=mala"])
    sampler = build(config["sampler"], PriorCard("any"))
    assert sampler.moves == 2 and sampler.moves_proposal == "mala"
