"""Priors from what users already have: one loader a kind of checkpoint.

Weights come from safetensors, or from `torch.load(weights_only=True)`: nothing
in a file is ever executed. Every loader is a function of a settings mapping
(the YAML of the `prior` group) and returns a Prior.

    safetensors   our own files: weights, network, preconditioning and card in one
    monai         a DiffusionModelUNet and the noise schedule of a MONAI scheduler
    deepinv       a deepinv denoiser `f(x, sigma)`
    diffusers     a folder with a UNet2DModel and its scheduler
    edm           an EDM state dict in deepinv's NCSNpp (DDPM++ or NCSN++)
    score_sde     a VE or VP score-SDE state dict in the same network
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from invdiff.errors import InputError
from invdiff.prior.network import (
    ChannelwisePrior,
    DiscreteVariancePreserving,
    LinearFlow,
    NetworkPrior,
    Prediction,
    Process,
    VarianceExploding,
    VariancePreserving,
)
from invdiff.prior.prior import Prior, PriorCard

Settings = Mapping[str, Any]


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or a torch file, without running code in it.

    Raises:
        InputError: for a missing or damaged file, or one that holds code.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path.name} holds more than tensors (a pickled object or code) and is not loaded; "
            "save its state_dict() as safetensors"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path.name} cannot be read as weights ({reason}); it is damaged") from None
    for key in ("ema", "model", "state_dict", "network"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise InputError(f"{path.name} is not a state dict (names to tensors)")
    return loaded


def fill(network: nn.Module, weights: Mapping[str, Tensor], name: str) -> nn.Module:
    """The network with its weights, frozen, in evaluation mode."""
    shared = {key.removeprefix("module."): value for key, value in weights.items()}
    try:
        network.load_state_dict(shared)
    except RuntimeError as error:
        lines = str(error).splitlines()
        reason = lines[1].strip() if len(lines) > 1 else lines[0]
        raise InputError(f"{name} does not fit the network that was configured: {reason}") from None
    return network.eval().requires_grad_(False)


def card_from(settings: Settings, **defaults: Any) -> PriorCard:
    """The card in `settings.card` over `defaults`."""
    given = dict(settings.get("card") or {})
    known = {field.name for field in fields(PriorCard)}
    unknown = set(given) - known
    if unknown:
        raise InputError(f"the prior's card does not know {', '.join(sorted(unknown))}")
    merged = {**defaults, **given}
    return PriorCard(**{key: _frozen(value) for key, value in merged.items()})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _affine(settings: Settings) -> tuple[float, float]:
    """(shift, scale) from `range`: the values that prior units 0 and 1 have in the network."""
    low, high = settings.get("range") or (0.0, 1.0)
    scale = 1.0 / (high - low)
    return -low * scale, scale


# --- our own files -----------------------------------------------------------------------


def save_prior(
    path: Path,
    network: nn.Module,
    *,
    network_settings: Mapping[str, Any],
    sigma_data: float | None,
    card: PriorCard,
    shift: float = 0.0,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write weights (half precision by default), network, preconditioning and card as one file.

    `sigma_data` is that of the preconditioning; None for networks that are no denoisers.
    """
    tensors = {key: value.detach().to(dtype).contiguous() for key, value in network.state_dict().items()}
    described = asdict(card)
    header = {"network": dict(network_settings), "sigma_data": sigma_data, "shift": shift, "card": described}
    part = path.with_suffix(".part")
    save_file(tensors, part, {"invdiff": json.dumps(header)})
    os.replace(part, path)


def make_network(settings: Mapping[str, Any]) -> nn.Module:
    """A registered network by name, with its keyword arguments."""
    from invdiff.registry import load

    rest = {key: value for key, value in settings.items() if key != "name"}
    made = load("networks", str(settings.get("name", "unshuffle_unet")))(**rest)
    assert isinstance(made, nn.Module)
    return made


def monai_unet(**settings: Any) -> nn.Module:
    """MONAI's DiffusionModelUNet as a network `(x, label)`, imported when it is built."""
    from monai.networks.nets import DiffusionModelUNet

    return TimedNetwork(DiffusionModelUNet(**settings))


def read_prior(settings: Settings) -> tuple[nn.Module, dict[str, Any], PriorCard]:
    """Network with its weights, header and card of what `save_prior` wrote at `settings.path`.

    Raises:
        InputError: for another kind of file.
    """
    path = Path(str(settings.get("path") or ""))
    weights = read_weights(path)
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("invdiff")
    if text is None:
        raise InputError(
            f"{path.name} has no invdiff header; say what it is with prior=monai, edm, diffusers ..."
        )
    header = json.loads(text)
    network = make_network(header["network"])
    fill(network, {key: value.float() for key, value in weights.items()}, path.name)
    return network, header, card_from(settings, **header["card"])


def load_safetensors(settings: Settings) -> NetworkPrior:
    """A denoiser that `save_prior` wrote; settings: `path`, `precision`, `chunk`."""
    network, header, card = read_prior(settings)
    if header["sigma_data"] is None:
        raise InputError(f"{Path(str(settings['path'])).name} holds a network that is no denoiser")
    return NetworkPrior(
        network.to(memory_format=torch.channels_last),
        VarianceExploding(),
        "edm",
        card,
        sigma_data=float(header["sigma_data"]),
        shift=float(header.get("shift", 0.0)),
        precision=str(settings.get("precision", "auto")),
        chunk=settings.get("chunk"),
    )


# --- what others made --------------------------------------------------------------------

_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "noise",
    "sample": "x0",
    "v_prediction": "v",
    "flow": "velocity",
}


def _adapted(
    network: Callable[[Tensor, Tensor], Tensor],
    process: Process,
    prediction: Prediction,
    settings: Settings,
    card: PriorCard,
    **rest: Any,
) -> Prior:
    prior = NetworkPrior(
        network,
        process,
        prediction,
        card,
        precision=str(settings.get("precision", "float32")),
        affine=_affine(settings),
        chunk=settings.get("chunk"),
        **rest,
    )
    return ChannelwisePrior(prior) if settings.get("channelwise") else prior


class TimedNetwork(nn.Module):
    """A network called as `(x, timesteps)`, whatever wrapper its output comes in."""

    def __init__(self, network: nn.Module, integer: bool = False) -> None:
        super().__init__()
        self.network, self.integer = network, integer

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out = self.network(x, time.round().long() if self.integer else time)
        value = getattr(out, "sample", out)
        assert isinstance(value, Tensor)
        return value


def load_monai(settings: Settings) -> Prior:
    """A MONAI DiffusionModelUNet; settings: `path`, `network`, `scheduler`.

    `scheduler.name` is DDPM (noise table from MONAI's own scheduler) or RFlow.
    """
    from monai.networks.nets import DiffusionModelUNet
    from monai.networks.schedulers import DDPMScheduler

    path = Path(str(settings.get("path") or ""))
    network = fill(DiffusionModelUNet(**dict(settings.get("network") or {})), read_weights(path), path.name)
    scheduler = dict(settings.get("scheduler") or {})
    kind = scheduler.pop("name", "DDPM")
    channels = int((settings.get("network") or {}).get("in_channels", 1))
    if kind == "RFlow":
        times = float(scheduler.get("num_train_timesteps", 1000))
        process: Process = LinearFlow(time_scale=times)
        card = card_from(settings, name=path.stem, channels=channels)
        return _adapted(_Negated(TimedNetwork(network)), process, "velocity", settings, card)
    prediction = _PREDICTIONS[str(scheduler.pop("prediction_type", "epsilon"))]
    table = DiscreteVariancePreserving(DDPMScheduler(**scheduler).alphas_cumprod)
    card = card_from(settings, name=path.stem, channels=channels, levels=table.levels)
    return _adapted(TimedNetwork(network), table, prediction, settings, card)


class _Negated(nn.Module):
    """-f: MONAI's rectified flow predicts data minus noise where dx/dt is noise minus data."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return -self.network(x, time)  # type: ignore[no-any-return]


class _Sigma(nn.Module):
    """A deepinv denoiser as `(x, sigma)`, sigma as one column a sample."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        out = self.denoiser(x, sigma)
        assert isinstance(out, Tensor)
        return out


def load_deepinv(settings: Settings) -> Prior:
    """A deepinv denoiser; settings: `model` (class name), `network` (arguments), `path`."""
    import deepinv.models

    kind = getattr(deepinv.models, str(settings.get("model", "DRUNet")), None)
    if kind is None:
        raise InputError(f"deepinv has no denoiser {settings.get('model')!r}")
    arguments = dict(settings.get("network") or {})
    network = kind(**{**arguments, "pretrained": None})
    if settings.get("path"):
        path = Path(str(settings["path"]))
        network = fill(network, read_weights(path), path.name)
    return wrap_deepinv(network.eval().requires_grad_(False), settings)


def wrap_deepinv(denoiser: nn.Module, settings: Settings | None = None) -> Prior:
    """A deepinv denoiser object as a prior: `D(x; sigma) = denoiser(x, sigma)`."""
    settings = settings or {}
    card = card_from(settings, name=type(denoiser).__name__)
    return _adapted(_Sigma(denoiser), VarianceExploding(), "x0", settings, card, label="sigma")


def load_diffusers(settings: Settings) -> Prior:
    """A `diffusers` folder: UNet2DModel config and safetensors, and its scheduler's config.

    Pixels of such models are in [-1, 1]: `range` defaults to that for data in [0, 1].
    """
    try:
        from diffusers import UNet2DModel
    except ModuleNotFoundError as error:
        from invdiff.registry import missing_extra

        raise missing_extra(error) from None
    folder = Path(str(settings.get("path") or ""))
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (unet / "config.json").is_file():
        raise InputError(f"{folder} is no diffusers folder: {unet / 'config.json'} is missing")
    described = json.loads((unet / "config.json").read_text())
    network = UNet2DModel.from_config(described)
    files = sorted(unet.glob("*.safetensors")) + sorted(unet.glob("*.bin"))
    if not files:
        raise InputError(f"{unet} holds no weights (*.safetensors)")
    network = fill(network, read_weights(files[0]), files[0].name)
    candidates = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise InputError(f"{folder} has no scheduler/scheduler_config.json; its noise levels are unknown")
    scheduler = json.loads(found.read_text())
    table = DiscreteVariancePreserving(_diffusers_table(scheduler))
    prediction = _PREDICTIONS[scheduler.get("prediction_type", "epsilon")]
    card = card_from(
        settings,
        name=folder.name,
        channels=int(described.get("in_channels", 3)),
        levels=table.levels,
    )
    return _adapted(TimedNetwork(network), table, prediction, {"range": (-1.0, 1.0), **settings}, card)


def _diffusers_table(scheduler: Mapping[str, Any]) -> Tensor:
    times = int(scheduler.get("num_train_timesteps", 1000))
    low, high = float(scheduler.get("beta_start", 1e-4)), float(scheduler.get("beta_end", 0.02))
    kind = scheduler.get("beta_schedule", "linear")
    if scheduler.get("trained_betas") is not None:
        betas = torch.tensor(scheduler["trained_betas"], dtype=torch.float64)
    elif kind == "linear":
        betas = torch.linspace(low, high, times, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(low**0.5, high**0.5, times, dtype=torch.float64) ** 2
    elif kind == "squaredcos_cap_v2":
        t = torch.arange(times + 1, dtype=torch.float64) / times
        bar = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp_max(0.999)
    else:
        raise InputError(
            f"the scheduler's beta_schedule {kind!r} is not known "
            "(known: linear, scaled_linear, squaredcos_cap_v2)"
        )
    return torch.cumprod(1 - betas, dim=0)


def _ncsnpp(settings: Settings) -> tuple[nn.Module, str]:
    from deepinv.models import NCSNpp

    path = Path(str(settings.get("path") or ""))
    network = NCSNpp(**{**dict(settings.get("network") or {}), "pretrained": None})
    return fill(network, read_weights(path), path.name), path.stem


class _RawUNet(nn.Module):
    """deepinv's NCSNpp without its preconditioning, times a sign."""

    def __init__(self, network: nn.Module, sign: float) -> None:
        super().__init__()
        self.network, self.sign = network, sign

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.sign * self.network.forward_unet(x, label)  # type: ignore[no-any-return, operator]


def load_edm(settings: Settings) -> Prior:
    """An EDM state dict; settings: `path`, `network` (of deepinv's NCSNpp), `sigma_data`.

    EDM models live on [-1, 1] (`range` default) with sigma_data .5 there.
    """
    network, name = _ncsnpp(settings)
    channels = int((settings.get("network") or {}).get("in_channels", 3))
    card = card_from(settings, name=name, channels=channels)
    return _adapted(
        _RawUNet(network, 1.0),
        VarianceExploding(),
        "edm",
        {"range": (-1.0, 1.0), **settings},
        card,
        sigma_data=float(settings.get("sigma_data", 0.5)),
    )


def load_score_sde(settings: Settings) -> Prior:
    """A score-SDE state dict (arXiv 2011.13456); settings: `path`, `network`, `sde` (ve or vp).

    VE networks are told ln(sigma / 2) and return minus the noise; VP networks
    are told 999 t and return the noise.
    """
    network, name = _ncsnpp(settings)
    channels = int((settings.get("network") or {}).get("in_channels", 3))
    card = card_from(settings, name=name, channels=channels)
    sde = str(settings.get("sde", "ve"))
    if sde == "ve":
        process: Process = VarianceExploding()
        raw, label = _RawUNet(network, -1.0), "log(sigma/2)"
    elif sde == "vp":
        process = VariancePreserving(time_scale=999.0)
        raw, label = _RawUNet(network, 1.0), "time"
    else:
        raise InputError(f"sde is {sde!r}; expected ve or vp")
    full = {"range": (-1.0, 1.0) if sde == "vp" else (0.0, 1.0), **settings}
    return _adapted(raw, process, "noise", full, card, label=label)
