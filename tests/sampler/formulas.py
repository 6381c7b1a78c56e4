"""A small dense Gaussian problem, and the published updates of integrators on it, in closed form (numpy).

A rule makes x' from x, the estimates so far (newest last, with their levels), the next level and a source
of normals; `chain` runs one. Used by the recursion tests.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import torch

from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import MatrixOperator
from invdiff.prior.gaussian import GaussianPrior
from invdiff.sampler.schedule import karras
from tests.sampler.affine import Normals

DIM, NOISE = 5, 0.3
LEVELS = karras(7, 10.0, 0.05)


def problem(rows: int = 2, y=(0.8, -1.3)):
    """Prior, measurement, and the numbers of both for formulas."""
    g = np.random.default_rng(5)
    b = g.normal(size=(DIM, DIM))
    covariance, mean = b @ b.T / DIM + 0.1 * np.eye(DIM), g.normal(size=DIM)
    left, right = np.linalg.qr(g.normal(size=(2, 2)))[0], np.linalg.qr(g.normal(size=(DIM, 2)))[0]
    matrix = (left @ np.diag([1.6, 0.4]) @ right.T)[:rows]
    data = np.array(y[:rows])
    prior = GaussianPrior.dense(torch.tensor(mean), torch.tensor(covariance))
    measurement = Measurement(MatrixOperator(torch.tensor(matrix)), GaussianNoise(NOISE), torch.tensor(data))
    known = SimpleNamespace(
        m=mean, C=covariance, A=matrix, y=data, s2=np.trace(covariance) / DIM, I=np.eye(DIM), Iy=np.eye(rows)
    )
    return prior, measurement, known


def gain(p, sigma):
    """`J = C (C + sigma^2)^-1`."""
    return p.C @ np.linalg.inv(p.C + sigma**2 * p.I)


def denoise(p, x, sigma):
    return p.m + gain(p, sigma) @ (x - p.m)


def variance(p, sigma):
    """`r^2 = sigma^2 s^2 / (sigma^2 + s^2)`."""
    return sigma**2 * p.s2 / (sigma**2 + p.s2)


def corrected(p, x, sigma, outer, inner):
    """`D + C_out A^T (A C_in A^T + sigma_y^2)^-1 (y - A D)`."""
    d = denoise(p, x, sigma)
    weight = outer @ p.A.T @ np.linalg.inv(p.A @ inner @ p.A.T + NOISE**2 * p.Iy)
    return d + weight @ (p.y - p.A @ d)


def start(p, sigma, normals):
    """`mean + sqrt(sigma^2 + v) n` with the mean over components and the mean variance."""
    return np.full(DIM, p.m.mean()) + math.sqrt(sigma**2 + p.s2) * normals(DIM)


def order_one(eta):
    """DDIM's family: std = sigma' sqrt(1 - e^{-2 eta h}); eta = 1 is the ancestral step."""

    def rule(x, past, following, normals):
        (sigma, d), h = past[-1], math.log(past[-1][0] / following)
        if eta == 1:  # the ancestral step, as DDPM has it
            ratio = following**2 / sigma**2
            std = following * math.sqrt(1 - ratio)
            return ratio * x + (1 - ratio) * d + std * normals(DIM)
        std = following * math.sqrt(1 - math.exp(-2 * eta * h))
        mean = d + math.sqrt(following**2 - std**2) / sigma * (x - d)
        return mean + std * normals(DIM) if eta else mean

    return rule


def published_churn(eta):
    """`x' = D + sqrt(1 - eta^2) sigma' (x - D) / sigma + eta sigma' n`."""

    def rule(x, past, following, normals):
        sigma, d = past[-1]
        return d + math.sqrt(1 - eta**2) * following / sigma * (x - d) + eta * following * normals(DIM)

    return rule


def multistep_2m(eta):
    """DPM-Solver++ 2M and its SDE: D + (D - D_old) / 2 r, decay e^{-(1 + eta) h}."""

    def rule(x, past, following, normals):
        (sigma, d), h = past[-1], math.log(past[-1][0] / following)
        if len(past) > 1:
            old, d_old = past[-2]
            d = d + h / (2 * math.log(old / sigma)) * (d - d_old)
        decay = math.exp(-(1 + eta) * h)
        x = decay * x + (1 - decay) * d
        return x + following * math.sqrt(1 - math.exp(-2 * eta * h)) * normals(DIM) if eta else x

    return rule


def data_weights(nodes, h, rate=1.0):
    """w with `sum_j w_j s_j^k = int_0^h rate e^{-rate (h - s)} s^k ds` for all k: exact for polynomials."""
    moments = [1 - math.exp(-rate * h)]
    for k in range(1, len(nodes)):
        moments.append(h**k - k / rate * moments[-1])
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments)


def noise_weights(nodes, h):
    """w with `sum_j w_j s_j^k = int_0^h e^{-s} s^k ds`."""
    moments = [1 - math.exp(-h)]
    for k in range(1, len(nodes)):
        moments.append(k * moments[-1] - h**k * math.exp(-h))
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments)


def combination(weights, values):
    return sum((float(w) * v for w, v in zip(weights, values, strict=True)), 0.0 * values[0])


def exponential_adams(order, eta=0.0):
    """`x' = e^{-(1 + eta) h} x + sum_j w_j D_j` on the last `order` estimates."""

    def rule(x, past, following, normals):
        recent, sigma = past[-order:], past[-1][0]
        h = math.log(sigma / following)
        weights = data_weights([math.log(sigma / level) for level, _ in recent], h, 1 + eta)
        x = math.exp(-(1 + eta) * h) * x + combination(weights, [d for _, d in recent])
        return x + following * math.sqrt(1 - math.exp(-2 * eta * h)) * normals(DIM) if eta else x

    return rule


def chain(p, rule, estimate, levels=LEVELS, normals=None):
    """`D` at the last level, after steps by a rule that sees the estimates of all levels so far."""
    normals = normals or Normals()
    x, past = start(p, levels[0], normals), []
    for sigma, following in itertools.pairwise((*levels, 0.0)):
        past.append((sigma, estimate(x, sigma)))
        x = rule(x, past, following, normals) if following else past[-1][1]
    return x


def deis(p, order, normals):
    """Adams-Bashforth of order p on eps = (x - D) / sigma, exact in sigma, interpolated in log sigma."""
    x, past = start(p, LEVELS[0], normals), []
    for sigma, following in itertools.pairwise(LEVELS):
        past.append((sigma, (1 / sigma) * (x - denoise(p, x, sigma))))
        recent, h = past[-order:], math.log(sigma / following)
        weights = noise_weights([math.log(sigma / level) for level, _ in recent], h)
        x = x - sigma * combination(weights, [g for _, g in recent])
    return denoise(p, x, LEVELS[-1])


def unipc(p, order, normals):
    """Predictor on `order` estimates, corrector on `order` past ones and the new one, which is kept."""
    x, past, origin = start(p, LEVELS[0], normals), [], None
    for sigma, following in itertools.pairwise(LEVELS):
        past.append((sigma, denoise(p, x, sigma)))  # at the predicted state, not evaluated again
        if origin is not None:
            before, old = origin
            nodes = past[-order - 1 :]
            h = math.log(old / sigma)
            weights = data_weights([math.log(old / level) for level, _ in nodes], h)
            x = sigma / old * before + combination(weights, [d for _, d in nodes])
        origin, h = (x, sigma), math.log(sigma / following)
        recent = past[-order:]
        weights = data_weights([math.log(sigma / level) for level, _ in recent], h)
        x = following / sigma * x + combination(weights, [d for _, d in recent])
    return denoise(p, x, LEVELS[-1])
