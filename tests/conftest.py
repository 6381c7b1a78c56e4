"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SMALL = ("benchmark", "diagnostics", "measurement", "sampler")  # tensors that a second thread only slows


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for problems of a few components, all for images."""
    folders = Path(request.path).parts
    before = torch.get_num_threads()
    if set(SMALL) & set(folders):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
