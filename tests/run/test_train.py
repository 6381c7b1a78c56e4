"""Training: it learns, resumes to the same weights, and its file is a prior."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from invdiff.cli.main import app
from invdiff.errors import InputError
from invdiff.prior.checkpoint import load_safetensors
from invdiff.run.train import train_from_config

CONFIG = """
name: tiny
domain: mri
out: {out}
data:
  root: {root}
  validation_images: 4
  sources: [{{path: slices.npz, share: 1.0, held_out: [1]}}]
network: {{name: unshuffle_unet, channels: 1, widths: [8, 8], blocks: 1}}
training:
  steps: {steps}
  save_every: 4
  log_every: 2
  precision: float32
  stages: [{{share: 0.5, crop: 32, batch: 4}}, {{share: 0.5, crop: 48, batch: 2}}]
card: {{scale: test, data: discs, licence: none}}
"""


@pytest.fixture(autouse=True)
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write(tmp_path: Path, name: str, steps: int = 12) -> Path:
    axis = np.linspace(-1, 1, 128)
    images = [
        200 * ((axis[:, None] / (0.5 + 0.02 * i)) ** 2 + (axis[None] / 0.8) ** 2 < 1) for i in range(16)
    ]
    np.savez(tmp_path / "slices.npz", images=np.array(images, np.uint8), subject=np.arange(16) % 2)
    path = tmp_path / f"{name}.yaml"
    path.write_text(CONFIG.format(out=tmp_path / name, root=tmp_path, steps=steps))
    return path


def test_resumed_training_is_the_uninterrupted_one(tmp_path):
    whole = train_from_config(write(tmp_path, "whole"), [], lambda line: None)

    def stop(line: str) -> None:
        if line.startswith("step 8/12  validation"):
            raise KeyboardInterrupt

    config = write(tmp_path, "cut")
    with pytest.raises(KeyboardInterrupt):
        train_from_config(config, [], stop)
    train_from_config(config, [], lambda line: None)  # step 8's checkpoint was not yet written: from 4
    first, second = (
        load_safetensors({"path": whole}),
        load_safetensors({"path": tmp_path / "cut/tiny.safetensors"}),
    )
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_lowers_the_loss_and_logs(tmp_path):
    lines: list[str] = []
    written = train_from_config(write(tmp_path, "run", steps=120), [], lines.append)
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    validation = [row["validation"] for row in rows if "validation" in row]
    assert validation[-1] < 0.9 * validation[0]
    assert any("images/s" in line for line in lines)
    prior = load_safetensors({"path": written})
    assert prior.card.data == "discs" and len(prior.card.error_levels) > 5
    x = torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    assert prior.denoise(x, 0.3).shape == x.shape


def test_other_settings_do_not_continue_a_checkpoint(tmp_path):
    config = write(tmp_path, "run")
    train_from_config(config, [], lambda line: None)
    with pytest.raises(ValueError, match="other settings"):
        train_from_config(config, ["training.steps=16"], lambda line: None)


def test_bad_training_input(tmp_path):
    with pytest.raises(InputError, match="no training configuration"):
        train_from_config(tmp_path / "none.yaml", [], lambda line: None)
    config = write(tmp_path, "run")
    with pytest.raises(InputError, match="does not know stepz"):
        train_from_config(config, ["training.stepz=3"], lambda line: None)
    with pytest.raises(InputError, match=r"data\.root"):
        train_from_config(config, ["data.root=/nowhere"], lambda line: None)
    assert CliRunner().invoke(app, ["train"]).exit_code == 2


def test_a_refinement_begins_at_the_given_weights(tmp_path):
    first = train_from_config(write(tmp_path, "first", steps=120), [], lambda line: None)
    config = write(tmp_path, "second", steps=4)
    gentle = [f"start={first}", "training.learning_rate=1e-9", "data.contrast=0.3"]
    second = train_from_config(config, gentle, lambda line: None)
    one, two = load_safetensors({"path": first}), load_safetensors({"path": second})
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="does not fit"):
        train_from_config(write(tmp_path, "third"), [f"start={first}", "network.widths=[16,8]"], print)
