"""STSL and sampling in latent spaces, on closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from invdiff.api import make_sampler, sample
from invdiff.errors import InputError
from invdiff.measurement.measurement import simulate
from invdiff.measurement.operator import MatrixOperator
from invdiff.prior.gaussian import GaussianPrior
from invdiff.prior.mixture import GaussianMixture
from invdiff.sampler.guidance.stsl import STSL
from invdiff.sampler.latent import LatentPrior, autoencoder_maps
from invdiff.sampler.loop import draw

DOUBLE = torch.float64


def gaussian(dim=6):
    std = torch.linspace(0.3, 1.5, dim, dtype=DOUBLE)
    prior = GaussianPrior.diagonal(torch.zeros(dim, dtype=DOUBLE), std**2)
    truth = prior.sample(1, torch.Generator().manual_seed(0))[0]
    rows = torch.eye(dim, dtype=DOUBLE)[::2]
    return prior, simulate(MatrixOperator(rows), truth, 0.2, torch.Generator().manual_seed(1))


def test_the_trace_term_is_nothing_for_a_gaussian():
    """tr(dD/dx) does not depend on x there: with and without the term the samples agree."""
    prior, measurement = gaussian()
    runs = [
        draw(
            make_sampler("stsl", prior.card, trace=eta),
            prior,
            measurement,
            (6,),
            particles=range(3),
            dtype=DOUBLE,
        ).x
        for eta in (0.0, 0.5)
    ]
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-6, atol=1e-8)


def test_the_trace_term_has_the_gradient_of_the_trace():
    """On a mixture: the gradient of eta s^2 tr(dD/dx) / (d sigma^2), by differences of the exact trace."""
    means = torch.tensor([[-1.0], [1.0]], dtype=DOUBLE)
    prior = GaussianMixture(torch.ones(2, dtype=DOUBLE), means, torch.full((2,), 0.3, dtype=DOUBLE))
    measurement = simulate(
        MatrixOperator(torch.eye(1, dtype=DOUBLE)),
        torch.zeros(1, dtype=DOUBLE),
        0.5,
        torch.Generator().manual_seed(0),
    )
    x, sigma = torch.tensor([[0.3]], dtype=DOUBLE), 0.7
    with_term = STSL(trace=1.0, probe=1e-3).gradient(prior, measurement, x, sigma)
    without = STSL(trace=0.0).gradient(prior, measurement, x, sigma)
    one = torch.ones_like(x)
    slope = (prior.jvp(x + 1e-4, sigma, one) - prior.jvp(x - 1e-4, sigma, one)) / 2e-4
    assert float(with_term - without) == pytest.approx(float(0.25 * slope / sigma**2), rel=1e-2)


def test_stsl_pulls_towards_the_data():
    prior, measurement = gaussian()
    x = draw(make_sampler("stsl", prior.card), prior, measurement, (6,), particles=range(200), dtype=DOUBLE).x
    exact = prior.posterior(measurement.operator.forward, measurement.y, 0.2)
    seen = slice(0, None, 2)
    error = (x.mean(0) - exact.mean)[seen].abs() / exact.covariance.diagonal().sqrt()[seen]
    assert float(error.max()) < 1.2  # biased, as its docstring says, but near
    with pytest.raises(InputError, match="stsl needs"):
        STSL(inner=0)


def linear_latents():
    """x = W z + m with orthonormal W, z Gaussian: the posterior of z is known."""
    g = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(10, 3, generator=g, dtype=DOUBLE)).Q
    offset = torch.randn(10, generator=g, dtype=DOUBLE)
    prior = GaussianPrior.diagonal(torch.zeros(3, dtype=DOUBLE), torch.tensor([4.0, 1.0, 0.25], dtype=DOUBLE))
    latent = LatentPrior(prior, lambda z: z @ basis.mT + offset, (3,))
    truth = latent.decode(prior.sample(1, g))[0]
    rows = torch.randn(2, 10, generator=g, dtype=DOUBLE)
    measurement = simulate(MatrixOperator(rows), truth, 0.3, g)
    exact = prior.posterior(lambda z: z @ (rows @ basis).mT, measurement.y - rows @ offset, 0.3)
    return latent, measurement, exact


def test_posterior_in_a_linear_latent_space():
    """Moment-twisted filters on A(Dec(z)) against the closed form; 5 standard errors of 4000 draws."""
    latent, measurement, exact = linear_latents()
    posterior = sample(
        latent.prior,
        latent.measurement(measurement),
        latent.shape,
        sampler="moment_twisted",
        samples=4000,
        particles=8000,
        keep=4000,
        twist="gaussian",
        sigma_min=0.02,
        dtype=DOUBLE,
    )
    std = exact.covariance.diagonal().sqrt()
    assert float(((posterior.mean - exact.mean) / std).abs().max()) < 0.1
    assert float((posterior.std / std - 1).abs().max()) < 0.06
    assert posterior.log_evidence == pytest.approx(exact.log_evidence, abs=0.05)
    assert latent.decode(posterior.samples).shape == (4000, 10)


@pytest.mark.parametrize("name", ["stsl", "dps", "likelihood_gradient"])
def test_samplers_of_any_operator_run_in_latent_space(name):
    latent, measurement, _ = linear_latents()
    posterior = sample(
        latent.prior,
        latent.measurement(measurement),
        latent.shape,
        sampler=name,
        samples=16,
        steps=100,
        dtype=DOUBLE,
    )
    assert bool(torch.isfinite(posterior.samples).all())
    assert posterior.log_evidence is None


def test_monai_autoencoder():
    from monai.networks.nets import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoencoderKL(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=(8, 8),
            latent_channels=2,
            num_res_blocks=(1, 1),
            norm_num_groups=4,
            attention_levels=(False, False),
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
    encode, decode = autoencoder_maps(network, scale=0.5)
    x = torch.rand(2, 1, 16, 16)
    z = encode(x)
    assert z.shape == (2, 2, 8, 8) and decode(z).shape == x.shape
    torch.testing.assert_close(decode(z)[:1], decode(z[:1]), rtol=1e-4, atol=1e-5)
    leaf = z.requires_grad_()
    assert torch.autograd.grad(decode(leaf).sum(), leaf)[0].abs().sum() > 0
    with pytest.raises(InputError, match="AutoencoderKL"):
        autoencoder_maps(nn.Linear(2, 2))
