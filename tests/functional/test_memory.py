from __future__ import annotations

import pytest
import torch

from ghmdet import functional as ghm

CALLS = {
    "exact density": lambda x, y: ghm.gradient_density(y, epsilon=0.1),
    "exact weights": lambda x, y: ghm.harmonizing_weights(y, method="exact", per_class=True),
    "prefix weights": lambda x, y: ghm.harmonizing_weights(y, method="prefix", per_class=True),
    "ghm-c": lambda x, y: ghm.ghm_c_loss(x, y, per_class=True, min_count="positives"),
    "ghm-r": lambda x, y: ghm.ghm_r_loss(x, y),
    "ohem": lambda x, y: ghm.ohem_loss(x, y),
    "focal": lambda x, y: ghm.sigmoid_focal_loss(x, y),
}


@pytest.fixture
def new_memory_holds_nan():
    """PyTorch fills newly allocated memory with NaN, so that an element that nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("n", [0, 1, 63, 500])
def test_every_element_is_written_and_every_operation_is_deterministic(name, n, new_memory_holds_nan):
    logits = torch.randn(n, 3).requires_grad_()
    value = CALLS[name](logits, torch.rand(n, 3))
    assert value.isfinite().all()
    if value.requires_grad:
        value.backward()
        assert logits.grad.isfinite().all()
