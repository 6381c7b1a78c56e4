"""What a solve returns: samples of p(x | y), what they are worth, and summaries of them."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """Samples of one item with their statistics.

    Attributes:
        samples: [samples, *event].
        chi2: data residual of each sample per measured component, |y - Ax|^2 / (sigma_y^2 m).
        claim: what the samples are worth (see `sampler.guidance.Guidance`).
        info: what made them: sampler, prior, network calls, seconds.
    """

    samples: Float[Tensor, "samples *event"]
    chi2: Float[Tensor, "samples"]
    claim: str
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> Float[Tensor, "*event"]:
        """Posterior mean."""
        return self.samples.mean(dim=0)

    @property
    def std(self) -> Float[Tensor, "*event"]:
        """Posterior standard deviation per component (unbiased variance; NaN for one sample)."""
        return self.samples.std(dim=0)

    @property
    def log_evidence(self) -> float | None:
        """log p(y) from the filters of a particle method (the log of their mean); None for others."""
        logs = [float(one["log_evidence"]) for one in self.info.get("filters", ())]
        if not logs:
            return None
        return float(torch.logsumexp(torch.tensor(logs, dtype=torch.float64), 0)) - math.log(len(logs))

    def quantile(self, q: float) -> Float[Tensor, "*event"]:
        """The q-quantile of every component."""
        return torch.quantile(self.samples, q, dim=0)

    def save(self, path: Path) -> None:
        """Write as safetensors, under a temporary name first."""
        part = path.with_suffix(".part")
        save_file(
            {"samples": self.samples.contiguous(), "chi2": self.chi2.contiguous()},
            part,
            {"claim": self.claim, "info": json.dumps(self.info)},
        )
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Posterior:
        """Read what `save` wrote."""
        from safetensors import safe_open

        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        return cls(tensors["samples"], tensors["chi2"], metadata["claim"], json.loads(metadata["info"]))
