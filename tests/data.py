"""Real data for tests: found beside the checkout, or the test skips with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def shared(name: str) -> Path:
    """The path of a shared data file; skips where the folder is absent."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"needs shared/data/{name}, which is not beside this checkout")
    return path
