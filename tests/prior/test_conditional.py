"""Conditional and centred EDM preconditioning, and the loss that outliers do not throw off."""

import pytest
import torch

from invdiff import NetworkPrior, PriorCard
from invdiff.api import make_sampler
from invdiff.prior.backbone import UnshuffleUNet
from invdiff.prior.checkpoint import load_safetensors, save_prior
from invdiff.prior.network import EDMDenoiser, VarianceExploding, edm_denoise
from invdiff.prior.training import LOSS_LIMIT, bounded


def test_exact_network_gives_the_exact_denoiser_around_any_centre():
    """x0 ~ N(m, s^2): the best network is 0, and D is the Gaussian posterior mean, whatever m is."""
    g = torch.Generator().manual_seed(0)
    x, sigma, s = torch.randn(3, 2, 4, 4, generator=g), torch.tensor([0.1, 0.5, 2.0]), 0.3

    def nothing(given: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(given[:, :2])

    level = sigma[:, None, None, None]
    gain = s**2 / (s**2 + level**2)
    torch.testing.assert_close(edm_denoise(nothing, x, sigma, s, 0.4), 0.4 + gain * (x - 0.4))
    condition = torch.rand(1, 2, 4, 4, generator=g)
    found = edm_denoise(nothing, x, sigma, s, 0.4, condition)
    torch.testing.assert_close(found, condition + gain * (x - condition))


def test_the_network_sees_what_the_formula_says():
    seen = {}

    def spy(given: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        seen["given"], seen["label"] = given, label
        return torch.zeros_like(given[:, :1])

    x, c = torch.full((1, 1, 4, 4), 0.9), torch.full((1, 1, 4, 4), 0.7)
    edm_denoise(spy, x, torch.tensor([0.4]), 0.3, 0.5, c)
    assert seen["given"].shape == (1, 2, 4, 4)
    assert float(seen["given"][0, 0, 0, 0]) == pytest.approx(0.2 / 0.5)
    assert float(seen["given"][0, 1, 0, 0]) == pytest.approx(0.4)
    assert float(seen["label"]) == pytest.approx(torch.tensor(0.4).log().item() / 4)


def test_files_keep_centre_and_condition(tmp_path):
    settings = {"name": "unshuffle_unet", "channels": 1, "given": 1, "widths": [8, 8], "blocks": 1}
    network = UnshuffleUNet(1, (8, 8), 1, given=1)
    torch.nn.init.normal_(network.leave.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    card = PriorCard("c", channels=1, condition="bicubic x4")
    path = tmp_path / "c.safetensors"
    save_prior(
        path, network, network_settings=settings, sigma_data=0.3, card=card, shift=0.4, dtype=torch.float32
    )
    prior = load_safetensors({"path": path, "precision": "float32"})
    g = torch.Generator().manual_seed(1)
    x, condition = torch.rand(2, 1, 8, 8, generator=g), torch.rand(1, 1, 8, 8, generator=g)
    expected = EDMDenoiser(network, 0.3, "float32", 0.4)(x, torch.tensor([0.2, 0.2]), condition)
    torch.testing.assert_close(prior.given(condition).denoise(x, 0.2), expected)
    with pytest.raises(ValueError, match="was given nothing"):
        prior.denoise(x, 0.2)
    assert prior.condition is None


def test_loss_is_bounded_smoothly():
    """Equal below the limit, continuous with its slope there, logarithmic above."""
    loss = torch.tensor([0.1, LOSS_LIMIT - 1e-4, LOSS_LIMIT + 1e-4, 1e9], requires_grad=True)
    out = bounded(loss)
    (slope,) = torch.autograd.grad(out.sum(), loss)
    torch.testing.assert_close(out[:2], loss[:2])
    assert float((out[2] - out[1]).abs()) < 1e-3
    torch.testing.assert_close(slope[:3], torch.ones(3), rtol=1e-4, atol=0)
    assert float(out[3]) < 300
    assert float(slope[3]) == pytest.approx(1e-8)


def test_schedules_stay_within_what_the_prior_knows():
    """sigma_max of 80 for a network that was trained up to 40: it starts at 40."""

    def prior(top: float) -> PriorCard:
        return NetworkPrior(
            lambda x, t: x, VarianceExploding(), "x0", PriorCard("p", sigma_range=(0.002, top))
        ).card

    assert make_sampler("proximal", prior(40.0)).schedule[0] == pytest.approx(40)
    assert make_sampler("proximal", prior(1000.0)).schedule[0] == pytest.approx(80)
