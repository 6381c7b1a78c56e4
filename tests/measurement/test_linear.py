"""Conjugate gradients: per sample, at any norm, honest about indefinite systems."""

from __future__ import annotations

import torch

from invdiff.measurement.linear import conjugate_gradients, operator_norm


def spd(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


def test_dense_system():
    matrix = spd(8, 0)
    rhs = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solution = conjugate_gradients(lambda x: x @ matrix, rhs, iterations=60, tolerance=1e-12)
    torch.testing.assert_close(solution.x, torch.linalg.solve(matrix, rhs.T).T, atol=1e-9, rtol=1e-9)
    assert float(solution.residual.max()) < 1e-11


def test_samples_do_not_see_each_other():
    matrix = spd(8, 2)
    rhs = torch.randn(5, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rhs[1] *= 1e9
    rhs[2] = 0
    together = conjugate_gradients(lambda x: x @ matrix, rhs, iterations=4).x
    alone = torch.cat([conjugate_gradients(lambda x: x @ matrix, row[None], iterations=4).x for row in rhs])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_tiny_norms_converge():
    # 1e-12 x = 1e-9: an epsilon in the denominator would stall here.
    rhs = torch.full((1, 1), 1e-9, dtype=torch.float64)
    solution = conjugate_gradients(lambda x: 1e-12 * x, rhs, iterations=3)
    torch.testing.assert_close(solution.x, torch.full((1, 1), 1e3, dtype=torch.float64))


def test_a_small_correction_to_a_large_start_is_found():
    start = torch.full((1, 2), 1e3, dtype=torch.float64)
    rhs = start + torch.tensor([[1e-4, 0.0]], dtype=torch.float64)
    solution = conjugate_gradients(lambda x: x, rhs, start=start, tolerance=1e-3)
    torch.testing.assert_close(solution.x - start, rhs - start, rtol=1e-2, atol=1e-9)


def test_indefinite_systems_stop_and_say_so():
    diagonal = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    solution = conjugate_gradients(lambda x: diagonal * x, torch.ones(1, 2, dtype=torch.float64))
    assert bool(solution.indefinite[0])
    assert bool(torch.isfinite(solution.x).all())


def test_norm():
    matrix = torch.randn(5, 7, generator=torch.Generator().manual_seed(4))
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    found = operator_norm(lambda x: x @ matrix.T @ matrix, (7,), iterations=60)
    assert abs(found / exact - 1) < 0.01
