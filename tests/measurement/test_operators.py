"""The operator contract over ours, deepinv's and a function; and that it catches wrong ones."""

from __future__ import annotations

import deepinv
import pytest
import torch

from invdiff.errors import InputError
from invdiff.measurement.contract import check_operator
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.operator import (
    LinearFunctions,
    LinearOperator,
    MatrixOperator,
    as_operator,
    require_linear,
)


def failures(operator, shape):
    return [check.name for check in check_operator(operator, shape) if not check.passed]


def test_matrix_operator_passes():
    matrix = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert failures(as_operator(matrix), (5,)) == []


def test_a_wrong_adjoint_is_caught():
    wrong = LinearFunctions(lambda x: 2 * x, lambda y: 2.1 * y)
    assert "adjoint (float64)" in failures(wrong, (4,))


def test_a_stateful_operator_is_caught():
    class Drifting(LinearOperator):
        scale = 1.0

        def forward(self, x):
            self.scale *= 1.5
            return self.scale * x

        def adjoint(self, y):
            return self.scale * y

    assert "stateless" in failures(Drifting(), (4,))


def test_deepinv_inpainting_passes_and_is_private():
    mask = (torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    physics = deepinv.physics.Inpainting(img_size=(1, 8, 8), mask=mask)
    operator = as_operator(physics)
    assert failures(operator, (1, 8, 8)) == []
    x = torch.ones(1, 1, 8, 8)
    before = operator(x)
    physics.A(x, mask=torch.zeros(1, 1, 8, 8))  # a call that overwrites deepinv's stored mask
    assert torch.equal(operator(x), before)


def test_deepinv_float32_operator_under_a_float64_state():
    physics = deepinv.physics.Tomography(angles=8, img_width=16, normalize=False)
    out = as_operator(physics)(torch.zeros(1, 1, 16, 16, dtype=torch.float64))
    assert out.dtype == torch.float64


def test_nonlinear_function_is_an_operator_but_not_a_linear_one():
    operator = as_operator(lambda x: x**2)
    assert failures(operator, (4,)) == []
    with pytest.raises(InputError, match="needs a linear operator"):
        require_linear(operator, "dds")


def test_anything_else_is_refused():
    with pytest.raises(InputError, match="cannot make an operator of a int"):
        as_operator(3)


def dense_case():
    g = torch.Generator().manual_seed(1)
    a = torch.randn(4, 6, generator=g, dtype=torch.float64)
    y = torch.randn(4, generator=g, dtype=torch.float64)
    center = torch.randn(3, 6, generator=g, dtype=torch.float64)
    return a, y, center, Measurement(MatrixOperator(a), GaussianNoise(0.2), y)


def test_proximal_equals_the_data_space_formula():
    a, y, center, measurement = dense_case()
    r2 = 0.7
    inverse = torch.linalg.inv(r2 * a @ a.T + 0.04 * torch.eye(4, dtype=torch.float64))
    expected = center + r2 * (y - center @ a.T) @ inverse @ a
    found = measurement.proximal(center, r2 / 0.04, tolerance=1e-12, iterations=50).x
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_solve_against_dense():
    a, _, _, measurement = dense_case()
    rhs = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matrix = 0.5 * a @ a.T + 0.04 * torch.eye(4, dtype=torch.float64)
    found = measurement.solve(0.5, rhs, tolerance=1e-12)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, rhs.T).T, atol=1e-9, rtol=1e-9)


def test_log_likelihood_is_normalised():
    a, y, center, measurement = dense_case()
    law = torch.distributions.Normal(center @ a.T, 0.2)
    torch.testing.assert_close(measurement.log_likelihood(center), law.log_prob(y).sum(1))


def test_measurement_refuses_nan_and_zero_noise():
    with pytest.raises(InputError, match="NaN"):
        Measurement(MatrixOperator(torch.eye(2)), GaussianNoise(1.0), torch.tensor([0.0, float("nan")]))
    with pytest.raises(InputError, match="noise level"):
        GaussianNoise(0.0)
