"""Is a denoiser the posterior mean of some law? Checks that need no data and no truth.

conservativity       E |J v - J^T v| / E |J v|, J = dD/dx: 0 for a true posterior mean, whose
                     Jacobian is a covariance over sigma^2; large: moment matching is unreliable
intrinsic dimension  tr J at sigma well below the finest scale: the dimension of the data's manifold
                     (Horvat & Pfister; Kamkari et al., arXiv 2406.03537, add |D - x|^2 / sigma^2)
hallucination        variance of D over the last ODE steps (Aithal et al., arXiv 2406.09358): high for
                     samples between the modes
ODE-SDE gap          sliced W2 between the prior's ODE and SDE samples over its Monte Carlo floor:
                     both have the same law when the score is exact
"""

from __future__ import annotations

from collections import deque

import torch
from jaxtyping import Float
from torch import Tensor

from invdiff.diagnostics.distances import sliced_wasserstein
from invdiff.prior.prior import Prior
from invdiff.sampler.guidance.guidance import Guided
from invdiff.sampler.integrator import named
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.loop import descend, reverse
from invdiff.sampler.schedule import karras, loguniform
from invdiff.sampler.start import PriorDraw


def jacobian_products(
    prior: Prior, x: Float[Tensor, "batch *event"], sigma: float, tangent: Float[Tensor, "batch *event"]
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch *event"]]:
    """(J v, J^T v) by double and single backward differentiation."""
    leaf = x.detach().requires_grad_()
    dummy = torch.zeros_like(x).requires_grad_()
    with torch.enable_grad():
        denoised = prior.denoise(leaf, sigma)
        (transposed,) = torch.autograd.grad(denoised, leaf, dummy, create_graph=True)
        (forward,) = torch.autograd.grad(transposed, dummy, tangent, retain_graph=True)
        (backward,) = torch.autograd.grad(denoised, leaf, tangent)
    return forward.detach(), backward.detach()


def conservativity(
    prior: Prior, x: Float[Tensor, "batch *event"], sigma: float, *, probes: int = 16, seed: int = 0
) -> float:
    """`E |J v - J^T v| / E |J v|` over Gaussian probes; x is noised data at level sigma."""
    generator = torch.Generator().manual_seed(seed)
    odd, size = 0.0, 0.0
    for _ in range(probes):
        tangent = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        forward, backward = jacobian_products(prior, x, sigma, tangent)
        odd += float((forward - backward).flatten(1).norm(dim=1).mean())
        size += float(forward.flatten(1).norm(dim=1).mean())
    return odd / size


def intrinsic_dimension(
    prior: Prior,
    x0: Float[Tensor, "batch *event"],
    sigma: float,
    *,
    probes: int = 16,
    seed: int = 0,
    flipd: bool = False,
) -> Float[Tensor, "batch"]:
    """tr J at data points (Rademacher probes), with `|D - x|^2 / sigma^2` added for FLIPD."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(x0), dtype=torch.float64)
    for _ in range(probes):
        signs = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).sign().to(x0.device)
        _, backward = jacobian_products(prior, x0, sigma, signs)
        total += (signs * backward).flatten(1).sum(dim=1).double().cpu()
    trace = total / probes
    if flipd:
        with torch.no_grad():
            gap = (prior.denoise(x0, sigma) - x0).flatten(1).double().square().sum(dim=1).cpu()
        trace = trace + gap / sigma**2
    return trace


def hallucination_score(
    prior: Prior,
    shape: tuple[int, ...],
    *,
    samples: int = 64,
    steps: int = 100,
    tail: int = 10,
    sigma_min: float | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "samples *event"], Float[Tensor, "samples"]]:
    """ODE samples of the prior and, for each, the variance of D over the last `tail` steps.

    Only the ODE's tail is informative: with noise, or from levels near the data's scale, the score
    says nothing. `sigma_min` defaults to .002 of the prior's std.
    """
    low = max(prior.card.sigma_range[0], 0.002 * prior.card.std if sigma_min is None else sigma_min)
    high = min(25 * prior.card.std, prior.card.sigma_range[1])
    levels = (*loguniform(steps, high, low), 0.0)
    noise = ParticleNoise(seed, range(samples), dtype=dtype)
    kept: deque[Tensor] = deque(maxlen=tail)

    def denoise(x: Tensor, sigma: float, _: float) -> Guided:
        kept.append(prior.denoise(x, sigma))
        return Guided(kept[-1])

    with torch.no_grad():
        start = PriorDraw()(prior.card, shape, levels[0], noise)
        x = descend(denoise, start, levels, named("2m"), noise.normal)
    spread = torch.stack(list(kept)).var(dim=0).flatten(1).mean(dim=1)
    return x, spread.double()


def ode_sde_gap(
    prior: Prior,
    shape: tuple[int, ...],
    *,
    samples: int = 256,
    steps: int = 100,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[float, float]:
    """(sliced W2 of ODE and SDE samples, its floor: two SDE sets).

    Far above the floor: the score is not that of one law, and samplers with different noise will disagree.
    """
    high = min(25 * prior.card.std, prior.card.sigma_range[1])
    levels = (*karras(steps, high, max(prior.card.sigma_range[0], 2e-3 * prior.card.std)), 0.0)

    def draw(name: str, key: int) -> Tensor:
        noise = ParticleNoise(key, range(samples), dtype=dtype)
        start = PriorDraw()(prior.card, shape, levels[0], noise)
        return reverse(prior, start, levels, named(name), noise.normal).flatten(1)

    one, two, three = draw("2m", seed), draw("2m_sde", seed + 1), draw("2m_sde", seed + 2)
    gap = sliced_wasserstein(one, two, directions=500, p=2)
    floor = sliced_wasserstein(two, three, directions=500, p=2)
    return gap, floor
