"""deepinv's posterior samplers on vectors, for benchmarks: the same problem, the same exact denoiser.

deepinv works on images in [0, 1]: x is mapped to z = x / 40 + 1/2, the affine part goes into the data.
Settings are deepinv's defaults; its denoiser is asked at 40 times its sigma.
"""

from __future__ import annotations

import deepinv as dinv
import torch
from torch import Tensor

from invdiff.benchmark.gmm25 import Gmm25

SCALE = 40.0


class Exact(dinv.models.Denoiser):
    """D of the problem in deepinv's units; counts calls."""

    def __init__(self, problem: Gmm25) -> None:
        super().__init__()
        self.problem, self.calls = problem, 0

    def forward(self, x: Tensor, sigma: object = None, **kwargs: object) -> Tensor:
        self.calls += len(x)
        level = torch.as_tensor(sigma, dtype=torch.float64).flatten()
        levels = level.expand(len(x)) if level.numel() == 1 else level
        wide = (x.double().reshape(len(x), -1) - 0.5) * SCALE
        if bool((levels == levels[0]).all()):
            clean = self.problem.prior.denoise(wide, float(levels[0].detach()) * SCALE)
        else:
            clean = self.problem.prior.denoise(wide, levels * SCALE)
        return (clean / SCALE + 0.5).reshape(x.shape).to(x.dtype)


class Svd(dinv.physics.DecomposablePhysics):
    """A = U diag(s) V on images of shape [1, 1, dim]."""

    def __init__(self, problem: Gmm25) -> None:
        left, singular, right = problem.left, SCALE * problem.singular, problem.right
        size, data = right.shape[1], right.shape[0]
        # V completed to an orthonormal basis, the rest measured with weight zero.
        full = torch.linalg.svd(right, full_matrices=True).Vh
        basis = torch.cat([right, full[data:]])
        mask = torch.cat([singular, torch.zeros(size - data, dtype=torch.float64)])
        turn = torch.eye(size, dtype=torch.float64)
        turn[:data, :data] = left
        flat = lambda x: x.reshape(len(x), -1).double()  # noqa: E731
        shaped = lambda x, like: x.reshape(like.shape).to(like.dtype)  # noqa: E731
        super().__init__(
            U=lambda x: shaped(flat(x) @ turn.T, x),
            U_adjoint=lambda x: shaped(flat(x) @ turn, x),
            V=lambda x: shaped(flat(x) @ basis, x),
            V_adjoint=lambda x: shaped(flat(x) @ basis.T, x),
            mask=mask.reshape(1, 1, 1, size),
            img_size=(1, 1, size),
        )
        self.noise_model = dinv.physics.GaussianNoise(problem.measurement.noise.variance() ** 0.5)


def data_of(problem: Gmm25, physics: Svd) -> Tensor:
    """y in deepinv's units, padded to the size of x."""
    shift = 0.5 * SCALE * problem.measurement.operator(torch.ones(1, *problem.shape, dtype=torch.float64))[0]
    y = torch.zeros(1, 1, 1, problem.shape[0], dtype=torch.float64)
    y[..., : len(shift)] = problem.measurement.y + shift
    return y


def run(name: str, problem: Gmm25, draws: int, seed: int) -> tuple[Tensor, float]:
    """Draws and network calls a draw of `DPS`, `PiGDM`, `MomentMatching`, `DiffPIR` or `DDRM`."""
    denoiser, physics = Exact(problem), Svd(problem)
    y = data_of(problem, physics).expand(draws, -1, -1, -1).clone()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in ("DPS", "PiGDM", "MomentMatching"):
            kinds = {
                "DPS": dinv.sampling.DPSDataFidelity,
                "PiGDM": dinv.sampling.PiGDMDataFidelity,
                "MomentMatching": dinv.sampling.MomentMatchingDataFidelity,
            }
            steps = 1000 if name == "DPS" else 200
            sampler = dinv.sampling.PosteriorDiffusion(
                data_fidelity=kinds[name](denoiser=denoiser),
                denoiser=denoiser,
                sde=dinv.sampling.VariancePreservingDiffusion(alpha=1.0, dtype=torch.float64),
                solver=dinv.sampling.EulerSolver(
                    timesteps=torch.linspace(0.999, 0.001, steps), rng=generator
                ),
                dtype=torch.float64,
            )
            z = sampler(y, physics, x_init=(draws, 1, 1, problem.shape[0]))
        elif name == "DiffPIR":
            sigma = problem.measurement.noise.variance() ** 0.5
            fidelity = dinv.optim.data_fidelity.L2(sigma=sigma)
            z = dinv.sampling.DiffPIR(denoiser, fidelity, sigma=sigma)(y, physics)
        else:
            levels = torch.linspace(1, 0, 100).numpy()
            z = dinv.sampling.DDRM(denoiser, sigmas=levels)(y, physics)
    return (z.double().reshape(draws, -1) - 0.5) * SCALE, denoiser.calls / draws
