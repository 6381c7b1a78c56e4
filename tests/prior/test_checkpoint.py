"""Loaders: each one's process, prediction, label and range give the closed-form denoiser; no code runs."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from invdiff.errors import InputError
from invdiff.prior import checkpoint
from invdiff.prior.checkpoint import make_network, read_weights, save_prior, wrap_deepinv
from invdiff.prior.network import NetworkPrior
from invdiff.prior.prior import PriorCard

MEAN, STD = 0.4, 0.2  # of the data, in prior units


def exact(x, sigma):
    s = sigma.reshape(-1, 1, 1, 1)
    return MEAN + STD**2 / (STD**2 + s**2) * (x - MEAN)


class Ideal(nn.Module):
    """The output of a perfectly trained network on this Gaussian, in the loader's own convention.

    It gets what the network gets: `x_t` and its label, nothing else.
    """

    def __init__(self, kind, affine):
        super().__init__()
        self.kind, self.shift, self.scale = kind, affine[0], affine[1]

    def forward(self, x_t, label):
        kind = self.kind
        if kind in ("monai_epsilon", "monai_v", "diffusers"):
            bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
            a2 = bar[label.round().long()].to(x_t)
            a, c = a2.sqrt(), (1 - a2).sqrt()
        elif kind == "monai_flow":
            t = label / 1000
            a, c = 1 - t, t
        elif kind == "score_sde_vp":
            t = label / 999
            a = torch.exp(-(t**2) * (20 - 0.1) / 4 - t * 0.1 / 2)
            c = (1 - a**2).sqrt()
        elif kind == "score_sde_ve":
            a, c = torch.ones_like(label), 2 * label.exp()
        elif kind == "edm":
            a, c = torch.ones_like(label), (4 * label).exp()
        else:
            a, c = torch.ones_like(label), label
        a, c = (v.reshape(-1, 1, 1, 1) for v in (a, c))
        if kind == "edm":
            into = (c**2 + 0.25).rsqrt()
            state = x_t / into
        else:
            state = x_t / a
        sigma = c / a
        clean = (
            exact(state * self.scale + self.shift, (sigma * self.scale).flatten()) - self.shift
        ) / self.scale
        noise = (state - clean) / sigma
        if kind == "edm":
            return (clean - 0.25 * into**2 * state) / (0.5 * c * into)
        return {
            "monai_epsilon": noise,
            "monai_v": a * noise - c * clean,
            "monai_flow": clean - noise,
            "diffusers": noise,
            "score_sde_vp": noise,
            "score_sde_ve": -noise,
            "deepinv": clean,
        }[kind]

    def forward_unet(self, x, label):
        return self(x, label)


MONAI = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "channels": [8, 8],
    "attention_levels": [False, False],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
}
NCSNPP = {
    "img_resolution": 16,
    "in_channels": 1,
    "out_channels": 1,
    "model_channels": 32,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}


def monai(tmp_path, scheduler):
    from monai.networks.nets import DiffusionModelUNet

    torch.save(DiffusionModelUNet(**MONAI).state_dict(), tmp_path / "unet.pt")
    settings = {"path": str(tmp_path / "unet.pt"), "network": MONAI, "scheduler": scheduler}
    return checkpoint.load_monai(settings)


def diffusers(tmp_path):
    from diffusers import DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    unet.save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    return checkpoint.load_diffusers({"path": str(tmp_path)})


def ncsnpp(tmp_path, kind, **settings):
    from deepinv.models import NCSNpp

    model = "ddpm" if settings.get("sde") == "vp" else "ncsn"
    network = {**NCSNPP, "model_type": model}
    torch.save(NCSNpp(**network, pretrained=None).state_dict(), tmp_path / "net.pt")
    loader = checkpoint.load_edm if kind == "edm" else checkpoint.load_score_sde
    return loader({"path": str(tmp_path / "net.pt"), "network": network, **settings})


def deepinv(tmp_path):
    from deepinv.models import DRUNet

    return wrap_deepinv(DRUNet(in_channels=1, out_channels=1, pretrained=None, nc=[4, 4, 4, 4], nb=1))


LOADERS = {
    "monai_epsilon": lambda t: monai(
        t, {"name": "DDPM", "schedule": "linear_beta", "beta_start": 1e-4, "beta_end": 0.02}
    ),
    "monai_v": lambda t: monai(
        t,
        {"schedule": "linear_beta", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "v_prediction"},
    ),
    "monai_flow": lambda t: monai(t, {"name": "RFlow"}),
    "diffusers": diffusers,
    "edm": lambda t: ncsnpp(t, "edm"),
    "score_sde_ve": lambda t: ncsnpp(t, "score_sde", sde="ve"),
    "score_sde_vp": lambda t: ncsnpp(t, "score_sde", sde="vp"),
    "deepinv": deepinv,
}


def swap(network, ideal):
    """Put the ideal network at the bottom of whatever wrappers the loader made."""
    if isinstance(network, checkpoint._Negated):
        network.network = swap(network.network, ideal)
        return network
    if isinstance(network, checkpoint.TimedNetwork | checkpoint._RawUNet):
        network.network = ideal
        return network
    if isinstance(network, checkpoint._Sigma):
        network.denoiser = ideal
        return network
    raise AssertionError(type(network))


@pytest.mark.parametrize("kind", LOADERS)
def test_loader_runs_and_has_the_closed_form(kind, tmp_path):
    prior = LOADERS[kind](tmp_path)
    assert isinstance(prior, NetworkPrior)
    levels = prior.card.levels
    sigma = torch.tensor([0.05, 0.4, 3.0])
    if levels is not None:  # only the trained levels may be asked, in the network's units
        scale = prior.affine[1]
        from invdiff.prior.network import snap

        sigma = torch.tensor(sorted(snap(tuple((sigma / scale).tolist()), levels))) * scale
    x = MEAN + torch.randn(len(sigma), 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = prior.denoise(x, sigma)  # the real network of the checkpoint
        assert out.shape == x.shape and bool(torch.isfinite(out).all())
        prior.network = swap(prior.network, Ideal(kind, prior.affine))
        found = prior.denoise(x.double(), sigma.double())
    torch.testing.assert_close(found, exact(x.double(), sigma.double()), atol=1e-5, rtol=1e-5)


def test_own_format_round_trip(tmp_path):
    settings = {"name": "unshuffle_unet", "channels": 1, "widths": [8, 8], "blocks": 1}
    network = make_network(settings)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    card = PriorCard("tiny", channels=1, std=0.3, error_levels=(0.1, 1.0), error_values=(0.01, 0.05))
    path = tmp_path / "tiny.safetensors"
    save_prior(path, network, network_settings=settings, sigma_data=0.3, card=card, dtype=torch.float32)
    prior = checkpoint.load_safetensors({"path": path, "precision": "float32"})
    assert prior.card.error_levels == (0.1, 1.0)
    from invdiff.prior.network import EDMDenoiser

    x = torch.randn(2, 1, 13, 18, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.5])
    expected = EDMDenoiser(network, 0.3, "float32")(x, sigma)
    torch.testing.assert_close(prior.denoise(x, sigma), expected, atol=1e-6, rtol=1e-5)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_checkpoint_is_refused(tmp_path, capsys):
    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="holds more than tensors"):
        read_weights(tmp_path / "evil.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
def test_damaged_checkpoints_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"garbage that is no checkpoint at all")
    with pytest.raises(InputError):
        read_weights(tmp_path / name)
    with pytest.raises(InputError, match="no checkpoint"):
        read_weights(tmp_path / "absent.pt")


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "net.pt")
    with pytest.raises(InputError, match="does not fit"):
        checkpoint.load_monai({"path": str(tmp_path / "net.pt"), "network": MONAI})


def test_safetensors_without_our_header(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="no invdiff header"):
        checkpoint.load_safetensors({"path": tmp_path / "net.safetensors"})


def test_diffusers_folder_must_be_one(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError):
        checkpoint.load_diffusers({"path": str(tmp_path / "nowhere")})
