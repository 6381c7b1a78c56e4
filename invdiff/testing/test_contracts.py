"""Every registered operator and every registered prior that needs no file, by one contract."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from invdiff.config import choices, compose
from invdiff.registry import plugins
from invdiff.run.check import run_checks

SHAPE = (2, 32, 24)
SHAPES = {"ct": (1, 32, 32)}  # of domains whose operators take no other kind
CHANNELS = {"brain_mr": 1, "lung_ct": 1, "photo_rgb": 3, "photo_x4": 3, "composition": 1}
SETTINGS = {"composition": ["prior.parts=[{name: brain_mr, power: 0.5}, {name: lung_ct, power: 0.5}]"]}
NEED_A_FILE = {
    "safetensors",
    "monai",
    "deepinv",
    "diffusers",
    "edm",
    "score_sde",
    "masked_graph",
    "gdss",
    "graph_edm",
    "drdm",
}


@pytest.mark.parametrize("name", sorted(set(plugins("operators")) & set(choices("operator"))))
def test_operator(name: str) -> None:
    domain = compose([f"operator={name}"])["operator"].get("domain")
    checks = run_checks("operator", name, [], SHAPES.get(str(domain), SHAPE))
    failed = [check for check in checks if not check.passed]
    assert not failed, failed


@pytest.mark.parametrize("name", sorted(set(plugins("priors")) - NEED_A_FILE))
def test_prior(name: str) -> None:
    shape = (CHANNELS.get(name, 2), *SHAPE[1:])
    failed = [check for check in run_checks("prior", name, SETTINGS.get(name, []), shape) if not check.passed]
    assert not failed, failed


@pytest.mark.parametrize("group", ["domain", "operator", "prior", "sampler", "noise", "run"])
def test_every_configuration_composes(group: str) -> None:
    for name, path in choices(group).items():
        mandatory = sorted(OmegaConf.missing_keys(OmegaConf.load(path)))
        given = [f"{group}.{key}=1" for key in mandatory]
        domain = ["domain=array"] if group in ("prior", "sampler") else []
        assert compose([*domain, f"{group}={name}", *given])
