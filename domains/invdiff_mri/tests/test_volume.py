"""A volume of MR slices as one item, through the command path."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from invdiff import InputError, compose
from invdiff.measurement.operator import MatrixOperator
from invdiff.measurement.stack import StackedOperator
from invdiff.run.solve import begin, execute, plan
from invdiff_mri.coils import simulate_coils
from invdiff_mri.operators import CartesianSense

SIDE = 80
QUICK = ["domain=mri", "operator.volume=true", "sampler=volume", "sampler.steps=4", "samples=1"]


@pytest.fixture
def volume(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    axis = np.linspace(-1, 1, SIDE)
    disc = ((axis[:, None] / 0.7) ** 2 + (axis[None] / 0.8) ** 2 < 1).astype(np.float32)
    slices = [disc * (0.7 + 0.2 * np.sin(5 * axis[:, None] + 0.2 * z)) for z in range(4)]
    path = tmp_path / "head.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.stack(slices, axis=2).astype(np.float32), np.eye(4)), path)
    return path


def solved(tmp_path, *overrides):
    job = plan(compose([*QUICK, f"run.out={tmp_path / 'run'}", *overrides]))
    folder = begin(job)
    return folder, execute(job, folder)


def test_a_volume_is_one_item(tmp_path, volume):
    nibabel = pytest.importorskip("nibabel")
    folder, results = solved(tmp_path, f"input.path={volume}", "input.slices=0:4")
    table = results["head"]["table"]
    assert set(table) == {
        "zero-filled",
        "CG-SENSE",
        "L1-wavelet",
        "TV",
        "one sample",
        "posterior mean",
    }
    assert {"psnr", "psnr_axial", "psnr_coronal", "psnr_sagittal", "ssim", "nmse"} == set(table["TV"])
    assert nibabel.load(folder / "items/head/mean.nii.gz").shape == (SIDE, SIDE, 4)
    assert {path.name for path in (folder / "figures").iterdir()} == {"head_planes.png", "head_errors.png"}
    assert results["head"]["notes"]["slices"] == 4


def test_slices_share_one_unit_and_one_phase(volume):
    problem = plan(compose([*QUICK, f"input.path={volume}", "input.slices=0:4"])).problems[0]
    stack = problem.context[0]
    assert len({item.prepared.scale for item in stack.items}) == 1
    assert problem.shape == (4, 2, SIDE, SIDE)
    assert problem.measurement.noise.sigma == pytest.approx(1 / stack.items[0].prepared.scale)
    # Neighbouring slices are nearly the same object under one phase: their k-space is nearly the same.
    y = problem.measurement.y
    assert float((y[1] - y[0]).norm() / y[0].norm()) < 0.5


def test_a_stack_of_operators_is_its_slices():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, ::2] = True
    operators = [CartesianSense(mask.roll(k, 1), simulate_coils(3, 16, 16)) for k in range(3)]
    stack = StackedOperator(operators)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 2, 16, 16, generator=generator)
    w = torch.randn(2, 3, 2, 3, 16, 16, generator=generator)
    y = stack(x)
    torch.testing.assert_close(y[:, 1], operators[1](x[:, 1]))
    torch.testing.assert_close((y * w).sum(), (x * stack.adjoint(w)).sum(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(stack.normal(x), stack.adjoint(y), rtol=1e-4, atol=1e-5)
    solved = stack.resolvent(x, 2.0)
    assert solved is not None
    torch.testing.assert_close(solved + 2.0 * stack.normal(solved), x, rtol=1e-3, atol=1e-4)
    assert stack.data_size(y[0]) == 3 * 2 * 3 * 128
    with pytest.raises(InputError, match="one known shape"):
        StackedOperator([MatrixOperator(torch.eye(3)), MatrixOperator(torch.eye(4))])


def test_refusals(volume):
    for overrides, words in (
        (["input.slices=1"], "two slices or more"),
        (["input.slices=0:3", "noise.infer=true"], "one slice at a time"),
        (["input.slices=0:3", "operator.slice_batch=0"], "holds no slice"),
    ):
        with pytest.raises(InputError, match=words):
            plan(compose([*QUICK, f"input.path={volume}", *overrides]))
