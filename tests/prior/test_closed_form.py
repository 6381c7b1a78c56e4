"""Gaussian and mixture priors: Tweedie, Jacobians and posteriors are exact."""

from __future__ import annotations

import pytest
import torch

from invdiff.errors import InputError
from invdiff.prior.gaussian import GaussianPrior, hartley
from invdiff.prior.mixture import GaussianMixture


def even_spectrum(height: int, width: int) -> torch.Tensor:
    ky = torch.fft.fftfreq(height).double()[:, None] * height
    kx = torch.fft.fftfreq(width).double()[None] * width
    return (1 + (ky**2 + kx**2) / 4) ** -1.5


def gaussians() -> list[tuple[str, GaussianPrior, tuple[int, ...]]]:
    g = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=g, dtype=torch.float64)
    mean = torch.randn(5, generator=g, dtype=torch.float64)
    field = torch.randn(2, 6, 5, generator=g, dtype=torch.float64)
    return [
        ("dense", GaussianPrior.dense(mean, root @ root.T), (5,)),
        ("diagonal", GaussianPrior.diagonal(mean, mean**2), (5,)),
        ("circulant", GaussianPrior.circulant(field, even_spectrum(6, 5)), (2, 6, 5)),
    ]


def mixture() -> GaussianMixture:
    g = torch.Generator().manual_seed(1)
    means = 2 * torch.randn(4, 3, generator=g, dtype=torch.float64)
    variances = 0.2 + torch.rand(4, 3, generator=g, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.1, 0.4, 0.3, 0.2]).double(), means, variances)


CASES = [(name, prior, shape) for name, prior, shape in gaussians()] + [("mixture", mixture(), (3,))]


@pytest.mark.parametrize(("name", "prior", "shape"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 7.0])
def test_denoiser_is_tweedie_of_the_density(name, prior, shape, sigma):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x.requires_grad_()
    (score,) = torch.autograd.grad(prior.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(prior.denoise(x, sigma), x + sigma**2 * score, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("name", "prior", "shape"), CASES, ids=[case[0] for case in CASES])
def test_jvp_is_the_derivative_of_the_denoiser(name, prior, shape):
    g = torch.Generator().manual_seed(3)
    x, v = torch.randn(2, 2, *shape, generator=g, dtype=torch.float64)
    _, expected = torch.func.jvp(lambda z: prior.denoise(z, 0.8), (x,), (v,))
    torch.testing.assert_close(prior.jvp(x, 0.8, v), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("name", "prior", "shape"), CASES, ids=[case[0] for case in CASES])
def test_one_sigma_a_sample(name, prior, shape):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    levels = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    singles = torch.cat([prior.denoise(row[None], float(s)) for row, s in zip(x, levels, strict=True)])
    torch.testing.assert_close(prior.denoise(x, levels), singles)


def test_circulant_agrees_with_dense():
    _, prior, shape = gaussians()[2]
    dense = GaussianPrior.dense(prior.mean.flatten(), prior.covariance())
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    torch.testing.assert_close(prior.denoise(x, 0.5).flatten(1), dense.denoise(x.flatten(1), 0.5))
    torch.testing.assert_close(prior.log_density(x, 0.5), dense.log_density(x.flatten(1), 0.5))


def test_hartley_is_its_own_inverse():
    x = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(hartley(hartley(x)), x)


def test_circulant_refuses_an_odd_spectrum():
    with pytest.raises(InputError, match="even"):
        GaussianPrior.circulant(torch.zeros(1, 4, 4), torch.arange(16.0).reshape(4, 4))


def test_gaussian_posterior_and_evidence():
    _, prior, _ = gaussians()[0]
    g = torch.Generator().manual_seed(6)
    a = torch.randn(2, 5, generator=g, dtype=torch.float64)
    y = torch.randn(2, generator=g, dtype=torch.float64)
    post = prior.posterior(lambda x: x @ a.T, y, 0.3)
    precision = torch.linalg.inv(prior.covariance()) + a.T @ a / 0.09
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (torch.linalg.solve(prior.covariance(), prior.mean) + a.T @ y / 0.09)
    torch.testing.assert_close(post.covariance, covariance)
    torch.testing.assert_close(post.mean, mean)
    law = torch.distributions.MultivariateNormal(
        a @ prior.mean, a @ prior.covariance() @ a.T + 0.09 * torch.eye(2, dtype=torch.float64)
    )
    assert post.log_evidence == pytest.approx(float(law.log_prob(y)), abs=1e-10)


def test_mixture_posterior_against_importance_sampling():
    # 400 000 prior draws; the effective number of them is above 10 000, so three
    # standard errors of the mean are below .05: false alarm under 1e-2 over all, seed fixed.
    prior = mixture()
    a = torch.tensor([[1.0, -0.5, 0.3]], dtype=torch.float64)
    y = torch.tensor([0.7], dtype=torch.float64)
    post = prior.posterior(lambda x: x @ a.T, y, 0.6)
    x = prior.sample(400_000, torch.Generator().manual_seed(7))
    residual = (y - x @ a.T)[:, 0]
    log_w = -0.5 * (residual / 0.6) ** 2 - torch.log(torch.tensor(0.6 * (2 * torch.pi) ** 0.5))
    w = log_w.exp()
    assert post.log_evidence == pytest.approx(float(w.mean().log()), abs=0.01)
    torch.testing.assert_close(post.mean(), (w[:, None] * x).sum(0) / w.sum(), atol=0.05, rtol=0)


def test_card_variance_follows_the_measured_errors():
    _, prior, _ = gaussians()[1]
    card = prior.card
    assert card.conditional_variance(1e-6) == pytest.approx(1e-12, rel=1e-3)
    from dataclasses import replace

    measured = replace(card, error_levels=(0.1, 1.0), error_values=(0.004, 0.09))
    assert measured.conditional_variance(0.1) == pytest.approx(0.004)
    assert measured.conditional_variance(0.05) == pytest.approx(0.001)
    assert measured.conditional_variance(50.0) == pytest.approx(0.09)
