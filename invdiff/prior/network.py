"""Any pretrained network as a prior: `(a, b, c)(t)` and a prediction to a denoiser.

A network trained on `x_t = a x0 + b y + c n` is asked at `x_t = a x + b y`,
where x is the state of the core, `x = x0 + sigma n`, and `sigma = c / a`. Its
output becomes `D(x; sigma) = E[x0 | x]` by

    noise      x - sigma out                    x0        out
    v          (a z - c out) / (a^2 + c^2)      score     (z + c^2 out) / a
    velocity   (c u - c' z) / (c a' - c' a),    u = out - b' y,  ' = d/dt
    edm        c_skip x + c_out out,            asked at c_in x

with `z = a x`. Every row is tested against a Gaussian prior in closed form.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invdiff.prior.prior import PriorCard, Sigma, sigma_like

Prediction: TypeAlias = Literal["noise", "x0", "v", "score", "velocity", "edm"]
Label: TypeAlias = Literal["time", "sigma", "log_sigma/4", "log(sigma/2)"]


@dataclass(frozen=True)
class Coefficients:
    """`a, b, c` and their time derivatives at one noise level, and the time itself."""

    time: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    a_rate: Tensor
    b_rate: Tensor
    c_rate: Tensor


@runtime_checkable
class Process(Protocol):
    """A forward process `x_t = a(t) x0 + b(t) y + c(t) n`, looked up by `sigma = c / a`."""

    def at(self, sigma: Tensor) -> Coefficients:
        """The coefficients where `c / a = sigma` (same shape as sigma)."""


@dataclass(frozen=True)
class VarianceExploding:
    """a = 1, c = sigma (EDM), or c = sigma_min (sigma_max / sigma_min)^t when both are given."""

    sigma_min: float | None = None
    sigma_max: float | None = None

    def at(self, sigma: Tensor) -> Coefficients:
        zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
        if self.sigma_min is None or self.sigma_max is None:
            return Coefficients(sigma, one, zero, sigma, zero, zero, one)
        span = math.log(self.sigma_max / self.sigma_min)
        time = torch.log(sigma / self.sigma_min) / span
        return Coefficients(time, one, zero, sigma, zero, zero, span * sigma)


@dataclass(frozen=True)
class VariancePreserving:
    """a = exp(-t^2 (beta1 - beta0) / 4 - t beta0 / 2), c = sqrt(1 - a^2)."""

    beta0: float = 0.1
    beta1: float = 20.0
    time_scale: float = 1.0

    def at(self, sigma: Tensor) -> Coefficients:
        a = torch.rsqrt(1 + sigma**2)
        c = sigma * a
        slope, target = self.beta1 - self.beta0, torch.log1p(sigma**2) / 2
        # slope t^2 / 4 + beta0 t / 2 = target, in the form without cancellation
        time = 4 * target / (self.beta0 + torch.sqrt(self.beta0**2 + 4 * slope * target))
        beta = self.beta0 + slope * time
        a_rate = -beta * a / 2
        zero = torch.zeros_like(a)
        return Coefficients(self.time_scale * time, a, zero, c, a_rate, zero, beta * a**2 / (2 * c))


class DiscreteVariancePreserving:
    """a = sqrt(alphabar_t), c = sqrt(1 - alphabar_t) on integer times 0 ... T-1.

    Between two times the time is interpolated in log sigma, for networks that
    embed real numbers; `levels` is the table for those that do not.
    """

    def __init__(self, alphas_cumprod: Float[Tensor, "times"]) -> None:
        table = alphas_cumprod.detach().double().cpu()
        sigmas = torch.sqrt((1 - table) / table)
        if not bool((sigmas.diff() > 0).all()):
            raise ValueError("alphas_cumprod must decrease strictly; found a step that does not")
        self.log_sigmas = sigmas.log()

    @property
    def levels(self) -> tuple[float, ...]:
        """The trained noise levels, decreasing."""
        return tuple(self.log_sigmas.exp().flip(0).tolist())

    def at(self, sigma: Tensor) -> Coefficients:
        a = torch.rsqrt(1 + sigma**2)
        zero = torch.zeros_like(a)
        nan = torch.full_like(a, math.nan)  # a table has no time derivative
        return Coefficients(self.time(sigma), a, zero, sigma * a, nan, zero, nan)

    def time(self, sigma: Tensor) -> Tensor:
        """Real-valued time of a level, within [0, T - 1]."""
        nodes = self.log_sigmas.to(sigma.device)
        here = sigma.double().log().clamp(nodes[0], nodes[-1])
        above = torch.searchsorted(nodes, here).clamp(1, len(nodes) - 1)
        low, high = nodes[above - 1], nodes[above]
        time = (above - 1) + (here - low) / (high - low)
        nearest = time.round()
        return torch.where((time - nearest).abs() < 1e-4, nearest, time).to(sigma.dtype)


@dataclass(frozen=True)
class LinearFlow:
    """a = 1 - t, c = t; with `data_at_one`, a = t, c = 1 - t (rectified flow, flow matching)."""

    data_at_one: bool = False
    time_scale: float = 1.0

    def at(self, sigma: Tensor) -> Coefficients:
        a, zero, one = 1 / (1 + sigma), torch.zeros_like(sigma), torch.ones_like(sigma)
        c = sigma / (1 + sigma)
        sign = 1.0 if self.data_at_one else -1.0
        time = self.time_scale * (a if self.data_at_one else c)
        return Coefficients(time, a, zero, c, sign * one, zero, -sign * one)


@dataclass(frozen=True)
class MeanReverting:
    """a = exp(-theta), b = 1 - a, c = lam sqrt(1 - a^2): a mean-reverting bridge to y.

    `time` is theta itself times `time_scale` (IR-SDE, arXiv 2301.11699, in the
    clock in which the reversion rate is one).
    """

    lam: float = 1.0
    time_scale: float = 1.0

    def at(self, sigma: Tensor) -> Coefficients:
        a = torch.rsqrt(1 + (sigma / self.lam) ** 2)
        c = sigma * a
        time = -a.log()
        return Coefficients(
            self.time_scale * time, a, 1 - a, c, -a, a, self.lam**2 * a**2 / c.clamp_min(1e-30)
        )


@dataclass(frozen=True)
class Residual:
    """a = 1, b = k sigma, c = sigma: a residual diffusion towards y (RDDM, arXiv 2308.13712)."""

    ratio: float = 1.0

    def at(self, sigma: Tensor) -> Coefficients:
        zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
        return Coefficients(sigma, one, self.ratio * sigma, sigma, zero, self.ratio * one, one)


def edm_coefficients(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out and c_in of Karras et al. 2022, table 1."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data * total.rsqrt(), total.rsqrt()


def resolve_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype for "float32", "bfloat16" or "auto" (None: no autocast).

    "auto" takes bfloat16 where the processor multiplies it natively, which is
    about twice as fast; elsewhere it would be emulated and slower.
    """
    if precision == "float32":
        return None
    if precision == "bfloat16":
        return torch.bfloat16
    if precision != "auto":
        raise ValueError(f"precision is {precision!r}; expected auto, float32 or bfloat16")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return None


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    dtype = resolve_precision(precision, device)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def edm_denoise(
    network: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "batch *event"],
    sigma: Float[Tensor, "batch"],
    sigma_data: float,
    shift: float = 0.0,
    condition: Float[Tensor, "#batch *event"] | None = None,
) -> Float[Tensor, "batch *event"]:
    """`D = m + c_skip (x - m) + c_out F(c_in (x - m); ln(sigma) / 4)` around a network F.

    m is `shift`, the mean of the data. A conditional network is given `condition`, an estimate c of x0: m is
    then c, so that it learns the residual x0 - c, and 2 (c - shift) follows as further channels of its input
    (Saharia et al. 2021, arXiv 2104.07636, for the concatenation; Li et al. 2021, arXiv 2104.14951, for the
    residual).
    """
    skip, out, into = edm_coefficients(sigma_like(sigma, x), sigma_data)
    if condition is None:
        return shift + skip * (x - shift) + out * network(into * (x - shift), sigma.log() / 4).to(x.dtype)
    centre = condition.to(x).expand_as(x)
    given = torch.cat([into * (x - centre), 2 * (centre - shift)], dim=1)
    return centre + skip * (x - centre) + out * network(given, sigma.log() / 4).to(x.dtype)


class EDMDenoiser(nn.Module):
    """`edm_denoise` around a network, for training."""

    def __init__(
        self, network: nn.Module, sigma_data: float, precision: str = "auto", shift: float = 0.0
    ) -> None:
        super().__init__()
        self.network, self.sigma_data, self.precision, self.shift = network, sigma_data, precision, shift

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float[Tensor, "batch"],
        condition: Float[Tensor, "#batch *event"] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        def call(given: Tensor, label: Tensor) -> Tensor:
            with _autocast(x.device, self.precision):
                raw: Tensor = self.network(given, label)
            return raw

        return edm_denoise(call, x, sigma, self.sigma_data, self.shift, condition)


class NetworkPrior:
    """A prior from a network, its forward process and what it predicts.

    Args:
        network: `network(x_t, label) -> output`, both batched; the output may
            have more channels than x (learned variances): the first are used.
        process: the forward process it was trained on.
        prediction: what it outputs, one row of the module's table.
        card: what the prior is; `card.channels` is checked on every call.
        label: what the network is told: the process time, sigma, ln(sigma) / 4 or ln(sigma / 2).
        sigma_data: of EDM preconditioning; needed for `prediction="edm"` only.
        condition: the `y` of a process with b != 0, or the estimate that a conditional network is given;
            see `given`.
        precision: "float32", "bfloat16" or "auto".
        affine: `(shift, scale)` with network units = (x - shift) / scale, for
            networks trained on [-1, 1] or [0, 1] data; sigma is scaled with it.
        shift: of EDM preconditioning, the mean of the data.
        chunk: largest number of samples the network sees at once (None: all).

    Raises:
        ValueError: where x does not have the channels of the card.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        process: Process,
        prediction: Prediction,
        card: PriorCard,
        *,
        label: Label = "time",
        sigma_data: float = 0.5,
        condition: Tensor | None = None,
        precision: str = "float32",
        affine: tuple[float, float] = (0.0, 1.0),
        shift: float = 0.0,
        chunk: int | None = None,
    ) -> None:
        self.network, self.process, self.prediction = network, process, prediction
        self.label, self.sigma_data, self.condition = label, sigma_data, condition
        self.shift = shift
        self.precision, self.affine, self.chunk = precision, affine, chunk
        self._card = card

    @property
    def card(self) -> PriorCard:
        return self._card

    def given(self, condition: Float[Tensor, "#batch *event"]) -> NetworkPrior:
        """This conditional prior with what it is conditioned on."""
        out = copy.copy(self)
        out.condition = condition
        return out

    def denoise(self, x: Float[Tensor, "batch *event"], sigma: Sigma) -> Float[Tensor, "batch *event"]:
        channels = self._card.channels
        if self._card.condition and self.condition is None:
            raise ValueError(
                f"prior {self._card.name!r} is conditional ({self._card.condition}) and was given nothing; "
                "call given(...) first"
            )
        if channels is not None and x.shape[1] != channels:
            raise ValueError(
                f"prior {self._card.name!r} was trained on {channels} channel(s) and was given "
                f"{x.shape[1]}; choose a prior for {x.shape[1]} channel(s) or wrap this one"
            )
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if level.numel() == 1:
            level = level.reshape(1).expand(len(x))
        elif level.shape != (len(x),):
            raise ValueError(
                f"a network prior takes one sigma per sample; found shape {tuple(level.shape)} "
                f"for a batch of {len(x)}"
            )
        if self.chunk is None or len(x) <= self.chunk:
            return self._denoise(x, level)
        parts = zip(torch.split(x, self.chunk), torch.split(level, self.chunk), strict=True)
        return torch.cat([self._denoise(part, part_level) for part, part_level in parts])

    def _denoise(self, x: Tensor, level: Tensor) -> Tensor:
        shift, scale = self.affine
        state, level = (x - shift) / scale, level / scale
        if self.prediction == "edm":
            clean = edm_denoise(self._call, state, level, self.sigma_data, self.shift, self.condition)
            return clean * scale + shift
        at = self.process.at(level)
        a, b, c = (sigma_like(value, state) for value in (at.a, at.b, at.c))
        z = a * state
        x_t = z if self.condition is None else z + b * self.condition
        label = self._label(at, level)
        raw = self._call(x_t, label)
        match self.prediction:
            case "noise":
                clean = state - sigma_like(level, state) * raw
            case "x0":
                clean = raw
            case "v":
                clean = (a * z - c * raw) / (a**2 + c**2)
            case "score":
                clean = (z + c**2 * raw) / a
            case "velocity":
                rates = (at.a_rate, at.b_rate, at.c_rate)
                a_rate, b_rate, c_rate = (sigma_like(value, state) for value in rates)
                u = raw if self.condition is None else raw - b_rate * self.condition
                clean = (c * u - c_rate * z) / (c * a_rate - c_rate * a)
            case _:
                raise ValueError(f"unknown prediction {self.prediction!r}")
        return clean * scale + shift

    def _label(self, at: Coefficients, level: Tensor) -> Tensor:
        match self.label:
            case "time":
                return at.time
            case "sigma":
                return level
            case "log_sigma/4":
                return level.log() / 4
            case "log(sigma/2)":
                return (level / 2).log()
            case _:
                raise ValueError(f"unknown label {self.label!r}")

    def _call(self, x_t: Tensor, label: Tensor) -> Tensor:
        # Weights keep their own dtype: a float64 state goes through a float32 network and back.
        dtype = x_t.dtype
        if isinstance(self.network, nn.Module):
            weight = next(self.network.parameters(), None)
            if weight is not None and weight.is_floating_point():
                dtype = weight.dtype
        with _autocast(x_t.device, self.precision):
            raw = self.network(x_t.to(dtype), label.to(dtype))
        return raw[:, : x_t.shape[1]].to(x_t.dtype)


class ChannelwisePrior:
    """A one-channel prior applied to each channel alone: `p(u, v) = p(u) p(v)`.

    For complex images as (Re, Im) this is the product prior of Score-MRI (Chung
    & Ye 2022), not a prior on magnitudes; sigma is per real component. Costs one
    call of twice the batch.
    """

    def __init__(self, prior: NetworkPrior) -> None:
        self.prior = prior

    @property
    def card(self) -> PriorCard:
        return replace(self.prior.card, channels=None)

    def denoise(
        self, x: Float[Tensor, "batch channels *event"], sigma: Sigma
    ) -> Float[Tensor, "batch channels *event"]:
        batch, channels = x.shape[:2]
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if level.ndim == 1 and level.numel() == batch:
            level = level.repeat_interleave(channels)
        parts = x.reshape(batch * channels, 1, *x.shape[2:])
        return self.prior.denoise(parts, level).reshape(x.shape)


def snap(levels: Sequence[float], table: Sequence[float]) -> tuple[float, ...]:
    """`levels` moved onto the nearest entries of `table` in log sigma, without repeats."""
    logs = torch.tensor(table, dtype=torch.float64).log()
    picks = [int((logs - math.log(level)).abs().argmin()) for level in levels]
    return tuple(float(table[pick]) for pick in dict.fromkeys(picks))
