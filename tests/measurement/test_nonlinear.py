"""Nonlinear operators: the contract, their symmetries, gradients, refusals."""

from __future__ import annotations

import pytest
import torch

from invdiff.errors import InputError
from invdiff.measurement.contract import check_operator
from invdiff.measurement.likelihoods import RicianNoise
from invdiff.measurement.measurement import Measurement
from invdiff.measurement.noise import GaussianNoise
from invdiff.measurement.nonlinear import Magnitude, PhaseRetrieval, Saturation
from invdiff.measurement.operator import Composed, MatrixOperator

DOUBLE = torch.float64


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def half_mask(side):
    return torch.rand(side, side, generator=torch.Generator().manual_seed(1)) > 0.5


OPERATORS = {
    "magnitude": (Magnitude(), (2, 4, 5)),
    "fourier magnitude": (PhaseRetrieval(), (4, 5)),
    "fourier magnitude, channels": (PhaseRetrieval(), (3, 4, 4)),
    "oversampled": (PhaseRetrieval(2.0), (1, 4, 4)),
    "oversampled, masked": (PhaseRetrieval(1.5, half_mask(6)), (1, 4, 4)),
    "complex": (PhaseRetrieval(2.0, complex_images=True), (2, 4, 4)),
    "saturation": (Saturation(0.8), (4, 4)),
    "gentle saturation": (Saturation(0.8, 2.0), (4, 4)),
    "composed": (Composed(MatrixOperator(random(5, 4)), Saturation(1.0)), (4,)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_contract(name):
    operator, shape = OPERATORS[name]
    for result in check_operator(operator, shape):
        assert result.passed, result


@pytest.mark.parametrize("name", OPERATORS)
def test_gradient_is_that_of_finite_differences(name):
    operator, shape = OPERATORS[name]
    x = random(2, *shape, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(operator.forward, (x,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradient_at_zero_is_finite(name):
    """Where a magnitude has no gradient, 0 is taken; a sampler may start there."""
    operator, shape = OPERATORS[name]
    x = torch.zeros(1, *shape, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(operator(x).sum(), x)
    assert bool(torch.isfinite(gradient).all())


def test_magnitude_forgets_the_phase():
    x = random(2, 2, 4, 5)
    turned = torch.view_as_real(torch.complex(x[:, 0], x[:, 1]) * torch.exp(torch.tensor(0.7j))).movedim(
        -1, 1
    )
    torch.testing.assert_close(Magnitude()(turned), Magnitude()(x))
    torch.testing.assert_close(Magnitude()(3 * x), 3 * Magnitude()(x))


def test_fourier_magnitudes_keep_energy_and_forget_sign_shift_and_reflection():
    x = random(2, 1, 6, 6)
    for oversampling in (1.0, 1.5, 2.0):
        operator = PhaseRetrieval(oversampling)
        y = operator(x)
        assert y.shape[-1] == operator.grid(6)
        torch.testing.assert_close(y.square().sum((1, 2, 3)), x.square().sum((1, 2, 3)))  # Parseval
        torch.testing.assert_close(operator(-x), y)
        torch.testing.assert_close(operator(x.flip(-1, -2)), y)
    torch.testing.assert_close(PhaseRetrieval()(x.roll((2, 1), (-2, -1))), PhaseRetrieval()(x))
    assert not torch.allclose(PhaseRetrieval(2.0)(x.roll((2, 1), (-2, -1))), PhaseRetrieval(2.0)(x))


def test_twice_oversampled_magnitudes_are_the_autocorrelation():
    """|F x|^2 on the double grid is the transform of the (zero-padded) autocorrelation of x."""
    x = random(1, 3, 3)
    power = PhaseRetrieval(2.0)(x)[0] ** 2
    found = torch.fft.ifft2(power, norm="ortho").real * 6
    expected = torch.zeros(6, 6, dtype=DOUBLE)
    for i in range(-2, 3):
        for j in range(-2, 3):
            rows, columns = slice(max(0, -i), 3 - max(0, i)), slice(max(0, -j), 3 - max(0, j))
            moved = slice(max(0, i), 3 - max(0, -i)), slice(max(0, j), 3 - max(0, -j))
            expected[i % 6, j % 6] = (x[0][rows, columns] * x[0][moved]).sum()
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_a_mask_lists_the_measured_frequencies():
    mask, x = half_mask(8), random(3, 1, 4, 4)
    y = PhaseRetrieval(2.0, mask)(x)
    assert y.shape == (3, 1, int(mask.sum()))
    torch.testing.assert_close(y, PhaseRetrieval(2.0)(x)[..., mask])
    measurement = Measurement(PhaseRetrieval(2.0, mask), RicianNoise(0.1), y[0] + 0.05)
    assert measurement.size == int(mask.sum())
    assert bool(torch.isfinite(measurement.log_likelihood(x)).all())


def test_complex_and_real_images_agree():
    x = random(1, 4, 4)
    pair = torch.stack([x, 0 * x], dim=1)
    torch.testing.assert_close(PhaseRetrieval(2.0, complex_images=True)(pair), PhaseRetrieval(2.0)(x))


def test_saturation_is_the_identity_then_a_level():
    operator = Saturation(2.0, sharpness=4.0)
    small = torch.tensor([[1e-3, -1e-3]], dtype=DOUBLE)
    torch.testing.assert_close(operator(small), small, rtol=1e-12, atol=0)
    large = torch.tensor([[1e3, -1e80, 1e200]], dtype=DOUBLE)
    torch.testing.assert_close(operator(large), 2 * large.sign(), rtol=1e-10, atol=0)
    line = torch.linspace(-5, 5, 1001, dtype=DOUBLE)[None]
    assert bool((operator(line).diff(dim=1) > 0).all())
    published = line / (1 + (line / 2).abs() ** 4) ** 0.25
    torch.testing.assert_close(operator(line), published, rtol=1e-13, atol=1e-13)
    sharp = Saturation(2.0, sharpness=50.0)(line)
    torch.testing.assert_close(sharp, line.clamp(-2, 2), rtol=0, atol=0.03)


def test_composition_counts_and_chains():
    rows = random(3, 2)
    operator = Composed(MatrixOperator(rows), Saturation(1.0))
    x = random(4, 2, seed=5)
    torch.testing.assert_close(operator(x), Saturation(1.0)(x @ rows.mT))
    assert operator.event_shape == (2,)
    assert Measurement(operator, GaussianNoise(1.0), operator(x)[0]).size == 3


def test_refusals():
    with pytest.raises(InputError, match=r"complex events of shape .* found \[3, 4\]"):
        Magnitude()(random(1, 3, 4))
    with pytest.raises(InputError, match="at least 1"):
        PhaseRetrieval(0.5)
    with pytest.raises(InputError, match=r"found events \[4\]"):
        PhaseRetrieval()(random(1, 4))
    with pytest.raises(InputError, match="measures no frequency"):
        PhaseRetrieval(mask=torch.zeros(4, 4, dtype=torch.bool))
    with pytest.raises(InputError, match=r"mask has shape \[4, 4\] and the padded grid \[8, 8\]"):
        PhaseRetrieval(2.0, half_mask(4))(random(1, 4, 4))
    with pytest.raises(InputError, match="saturation level"):
        Saturation(0.0)
    with pytest.raises(InputError, match="sharpness"):
        Saturation(1.0, 0.5)
    with pytest.raises(InputError, match="at least one operator"):
        Composed()
