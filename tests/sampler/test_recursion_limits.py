"""What the recursions tend to: exact laws, without Monte Carlo (see `test_recursion`)."""

from __future__ import annotations

import numpy as np
import pytest

from invdiff.sampler.schedule import karras
from invdiff.sampler.split_gibbs import SplitGibbs
from tests.sampler.affine import Normals, law
from tests.sampler.formulas import (
    DIM,
    NOISE,
    chain,
    corrected,
    exponential_adams,
    gain,
    multistep_2m,
    order_one,
    problem,
)


@pytest.mark.parametrize(
    ("rule", "fall"),
    [
        (order_one(0.0), 1.8),
        (order_one(1.0), 1.7),
        (multistep_2m(0.0), 3.5),
        (multistep_2m(1.0), 3.5),
        (exponential_adams(2, 1.0), 3.5),
    ],
    ids=["ddim", "ddpm", "2m", "2m_sde", "adams 2 sde"],
)
def test_the_recursion_of_moment_matching_converges_to_the_posterior(rule, fall):
    """Error of the stds when the steps double from 50 to 100: by 2 for order 1, by 4 for order 2.

    Measured, largest error at 100 steps: .033 (ddim), .067 (ddpm), .0021 (2m), .0055 (2m_sde), .0096. The
    ancestral step has 1.9 where its first-order regime begins. What is left of the mean is the start at 200.
    """
    _, _, p = problem()
    weight = p.C @ p.A.T @ np.linalg.inv(p.A @ p.C @ p.A.T + NOISE**2 * p.Iy)
    std = np.sqrt(np.diag(p.C - weight @ p.A @ p.C))
    mean = p.m + weight @ (p.y - p.A @ p.m)
    gaps = []
    for steps in (50, 100):

        def estimate(x, s):
            return corrected(p, x, s, s**2 * gain(p, s), s**2 * gain(p, s))

        x = chain(p, rule, estimate, karras(steps, 200.0, 0.002), Normals(DIM * (steps + 1)))
        gaps.append(np.abs(np.sqrt(np.diag(x.covariance)) / std - 1).max())
        assert (np.abs(x.mean - mean) / std).max() < 0.02
    assert gaps[1] < 0.07 and gaps[0] / gaps[1] > fall, gaps


def test_split_gibbs_converges_to_its_stated_law():
    """At a fixed rho with an exact x-step: the posterior of noise covariance sigma_y^2 + rho^2 A A^T.

    Not by Monte Carlo: the law of the code after 26 sweeps. Its x-step's 24 calls leave .2 % of the std.
    """
    prior, measurement, p = problem()
    rho = 1.0
    method = SplitGibbs((rho,), rho_final=25, inner=24, ratio=0.02, tolerance=1e-14)
    found = law(method, prior, measurement, (DIM,))
    weight = p.C @ p.A.T @ np.linalg.inv(p.A @ (p.C + rho**2 * p.I) @ p.A.T + NOISE**2 * p.Iy)
    std = np.sqrt(np.diag(p.C - weight @ p.A @ p.C))
    mean = p.m + weight @ (p.y - p.A @ p.m)
    assert np.abs(np.sqrt(np.diag(found.covariance)) / std - 1).max() < 0.02
    assert (np.abs(found.mean - mean) / std).max() < 0.02
