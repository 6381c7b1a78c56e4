"""What a guided step costs besides the network, beside deepinv's DPS, in one process.

    python benchmarks/overhead.py

Inpainting with a near-free denoiser at 1x32x32 and 2x128x128, batch 1, one
thread, the two libraries interleaved; prints milliseconds a step (median of the
repeats) and the ratio.
"""

from __future__ import annotations

import statistics
import time

import deepinv
import torch

from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import LinearOperator
from invdiff.prior.prior import PriorCard
from invdiff.sampler.guidance.dps import DPS
from invdiff.sampler.integrator import named
from invdiff.sampler.keys import ParticleNoise
from invdiff.sampler.loop import DiffusionSampler
from invdiff.sampler.schedule import karras

STEPS, REPEATS = 100, 9


class NearFree:
    """D = x / (1 + sigma^2): the cost of one multiplication."""

    card = PriorCard("near free")

    def denoise(self, x, sigma):
        return x / (1 + sigma * sigma)


class Inpainting(LinearOperator):
    def __init__(self, mask):
        self.mask = mask

    def forward(self, x):
        return self.mask * x

    def adjoint(self, y):
        return self.mask * y


class DeepinvDenoiser(deepinv.models.Denoiser):
    def forward(self, x, sigma=None, **kwargs):
        sigma = sigma if isinstance(sigma, float) else sigma.reshape(-1, 1, 1, 1)
        return x / (1 + sigma * sigma)


def ours(shape, mask, y):
    sampler = DiffusionSampler(karras(STEPS, 80.0, 0.01), DPS(0.3), named("ddpm"))
    measurement = Measurement(Inpainting(mask), GaussianNoise(0.05), y)

    def run():
        sampler(NearFree(), measurement, shape, ParticleNoise(0, [0]))

    return run


def theirs(shape, mask, y):
    physics = deepinv.physics.Inpainting(img_size=shape, mask=mask)
    physics.noise_model = deepinv.physics.GaussianNoise(0.05)
    denoiser = DeepinvDenoiser()
    sde = deepinv.sampling.VariancePreservingDiffusion(alpha=1.0, dtype=torch.float64)
    solver = deepinv.sampling.EulerSolver(timesteps=torch.linspace(0.999, 0.001, STEPS + 1), rng=None)
    sampler = deepinv.sampling.PosteriorDiffusion(
        data_fidelity=deepinv.sampling.DPSDataFidelity(denoiser=denoiser, weight=1.0),
        denoiser=denoiser,
        sde=sde,
        solver=solver,
        dtype=torch.float64,
    )

    def run():
        sampler(y[None], physics, x_init=(1, *shape))

    return run


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, deepinv {deepinv.__version__}, one thread, {STEPS} steps\n")
    print("| image | deepinv DPS step (ms) | ours (ms) | ratio |\n|---|---|---|---|")
    for shape in ((1, 32, 32), (2, 128, 128)):
        generator = torch.Generator().manual_seed(0)
        mask = (torch.rand(shape, generator=generator) > 0.5).float()
        y = mask * torch.randn(shape, generator=generator)
        runs = {"theirs": theirs(shape, mask, y), "ours": ours(shape, mask, y)}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()
        for _ in range(REPEATS):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                times[name].append(1000 * (time.perf_counter() - began) / STEPS)
        left, right = statistics.median(times["theirs"]), statistics.median(times["ours"])
        print(f"| {'x'.join(map(str, shape))} | {left:.3f} | {right:.3f} | {left / right:.1f} |")


if __name__ == "__main__":
    main()
