from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def new_memory_holds_nan():
    """Fill newly allocated memory with NaN, so that an element that nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
