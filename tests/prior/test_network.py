"""Every parametrisation of one Gaussian prior gives the same denoiser."""

from __future__ import annotations

import pytest
import torch

from invdiff.prior.network import (
    ChannelwisePrior,
    DiscreteVariancePreserving,
    LinearFlow,
    MeanReverting,
    NetworkPrior,
    Residual,
    VarianceExploding,
    VariancePreserving,
    edm_coefficients,
    snap,
)
from invdiff.prior.prior import PriorCard

MEAN, STD = 0.3, 0.7
CARD = PriorCard("test", channels=1)


def exact(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    s = sigma.reshape(-1, 1, 1, 1)
    return MEAN + STD**2 / (STD**2 + s**2) * (x - MEAN)


def table() -> torch.Tensor:
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


PROCESSES = {
    "ve": VarianceExploding(),
    "ve_schedule": VarianceExploding(0.01, 50.0),
    "vp": VariancePreserving(),
    "vp_discrete": DiscreteVariancePreserving(table()),
    "flow": LinearFlow(),
    "flow_data_at_one": LinearFlow(data_at_one=True),
    "mean_reverting": MeanReverting(0.5),
    "residual": Residual(0.8),
}
PREDICTIONS = ("noise", "x0", "v", "score", "velocity")


class Analytic:
    """The network that a Gaussian prior would train to, in any parametrisation.

    It knows its level only through the label, as a network does.
    """

    def __init__(self, process, prediction, y):
        self.process, self.prediction, self.y = process, prediction, y
        grid = torch.logspace(-3, 4, 20_001, dtype=torch.float64)
        at = process.at(grid)
        order = at.time.argsort()
        self.times, self.logs = at.time[order], grid.log()[order]

    def sigma(self, label):
        if isinstance(self.process, VarianceExploding) and self.process.sigma_min is None:
            return label
        i = torch.searchsorted(self.times, label.contiguous()).clamp(1, len(self.times) - 1)
        t0, t1 = self.times[i - 1], self.times[i]
        w = (label - t0) / (t1 - t0)
        return (self.logs[i - 1] + w * (self.logs[i] - self.logs[i - 1])).exp()

    def __call__(self, x_t, label):
        sigma = self.sigma(label)
        at = self.process.at(sigma)
        a, b, c, ar, br, cr = (
            v.reshape(-1, 1, 1, 1) for v in (at.a, at.b, at.c, at.a_rate, at.b_rate, at.c_rate)
        )
        x = (x_t - b * self.y) / a
        clean = exact(x, sigma)
        noise = (x - clean) / sigma.reshape(-1, 1, 1, 1)
        return {
            "noise": noise,
            "x0": clean,
            "v": a * noise - c * clean,
            "score": -noise / c,
            "velocity": ar * clean + br * self.y + cr * noise,
        }[self.prediction]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_round_trip(process, prediction):
    forward = PROCESSES[process]
    if process == "vp_discrete" and prediction == "velocity":
        pytest.skip("a table of levels has no time derivative")
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 1, 4, 4, generator=g, dtype=torch.float64)
    sigma = torch.tensor([0.02, 0.1, 0.7, 3.0, 30.0], dtype=torch.float64)
    y = torch.randn(1, 1, 4, 4, generator=g, dtype=torch.float64)
    prior = NetworkPrior(Analytic(forward, prediction, y), forward, prediction, CARD, condition=y)
    torch.testing.assert_close(prior.denoise(x, sigma), exact(x, sigma), atol=1e-5, rtol=1e-5)


def test_edm_round_trip():
    def network(x_in, label):
        sigma = (4 * label).exp()
        skip, out, into = (v.reshape(-1, 1, 1, 1) for v in edm_coefficients(sigma, 0.5))
        return (exact(x_in / into, sigma) - skip * x_in / into) / out

    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.5, 20.0], dtype=torch.float64)
    prior = NetworkPrior(network, VarianceExploding(), "edm", CARD, sigma_data=0.5)
    torch.testing.assert_close(prior.denoise(x, sigma), exact(x, sigma), atol=1e-9, rtol=1e-9)


def test_affine_units():
    # A network on [-1, 1] data, asked in [0, 1] units: x_network = (x - .5) / .5.
    def network(x_net, sigma_net):
        x, sigma = 0.5 + 0.5 * x_net, 0.5 * sigma_net
        return (exact(x, sigma) - 0.5) / 0.5

    x = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = NetworkPrior(network, VarianceExploding(), "x0", CARD, label="sigma", affine=(0.5, 0.5))
    sigma = torch.tensor([0.2, 2.0], dtype=torch.float64)
    torch.testing.assert_close(prior.denoise(x, sigma), exact(x, sigma))


def test_integer_times_stay_on_the_table():
    process = DiscreteVariancePreserving(table())
    levels = snap((50.0, 3.0, 0.5, 0.02), process.levels)
    times = process.at(torch.tensor(levels)).time
    assert torch.equal(times, times.round())


def test_wrong_channels_are_refused_in_one_sentence():
    prior = NetworkPrior(lambda x, t: x, VarianceExploding(), "x0", CARD)
    with pytest.raises(ValueError, match="trained on 1 channel"):
        prior.denoise(torch.zeros(1, 2, 4, 4), 1.0)


def test_chunks_and_channels_do_not_change_the_result():
    prior = NetworkPrior(lambda x, s: exact(x, s), VarianceExploding(), "x0", CARD, label="sigma", chunk=2)
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.linspace(0.1, 2, 5, dtype=torch.float64)
    out = ChannelwisePrior(prior).denoise(x, sigma)
    torch.testing.assert_close(out, exact(x, sigma))


def test_float64_state_goes_through_a_float32_network():
    layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, t):
            return self.layer(x)

    prior = NetworkPrior(Net(), VarianceExploding(), "noise", CARD)
    assert prior.denoise(torch.zeros(1, 1, 8, 8, dtype=torch.float64), 1.0).dtype == torch.float64
