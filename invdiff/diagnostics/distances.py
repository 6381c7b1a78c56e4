"""Distances between two sets of samples."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def sliced_wasserstein(
    x: Float[Tensor, "count dim"],
    y: Float[Tensor, "count dim"],
    *,
    directions: int = 1000,
    p: int = 1,
    seed: int = 0,
) -> float:
    """`( mean over directions of W_p^p )^(1/p)` between two sets of equal size.

    The directions belong to `seed`. Beside it stands its floor: the same distance between two
    exact sets of that size; it is far from zero.
    """
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(x.shape[1], directions, generator=generator, dtype=torch.float64)
    theta = (theta / theta.norm(dim=0)).float()
    total = 0.0
    for block in theta.split(250, dim=1):
        # numpy sorts contiguous float32 rows several times faster than torch sorts columns.
        a = np.sort((block.T @ x.float().T).numpy(), axis=1)
        b = np.sort((block.T @ y.float().T).numpy(), axis=1)
        total += float((np.abs(a - b).astype(np.float64) ** p).mean(axis=1).sum())
    return float((total / directions) ** (1 / p))
