"""What `invdiff doctor` says about an installation."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from invdiff.registry import EXTRAS, GROUPS, plugins

CORE = ("torch", "torchvision", "deepinv", "monai", "hydra-core", "pyro-ppl", "safetensors")


def diagnose() -> list[str]:
    """Lines about packages, extras, devices and plug-ins."""
    lines = [f"invdiff {version('invdiff')}, Python {platform.python_version()}, {platform.platform()}"]
    for name in CORE:
        try:
            lines.append(f"  {name:14s} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"  {name:14s} MISSING: pip install {name}")
    lines.append("optional:")
    for module, extra in sorted(EXTRAS.items()):
        state = "ok" if find_spec(module) else f"missing: pip install 'invdiff[{extra}]'"
        lines.append(f"  {module:14s} {state}")
    import torch

    from invdiff.prior.network import resolve_precision

    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    lines.append(f"CUDA device: {cuda}; CPU threads: {torch.get_num_threads()} of {os.cpu_count()}")
    dtype = resolve_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    lines.append(f"network precision (auto): {'float32' if dtype is None else 'bfloat16'}")
    lines.append("plug-ins: " + ", ".join(f"{len(plugins(group))} {group}" for group in GROUPS))
    return lines
