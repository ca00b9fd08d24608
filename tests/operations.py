"""Which operations a computation makes, and the path of an accelerator on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ghmdet.functional import _blocks, _elements

# Operations that an accelerator's caller waits for: they read a value, or their result's size depends on one.
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "equal",
    "unique",
    "bincount",
    "item",
}


class Operations(TorchDispatchMode):
    """Keeps the names of all operations and the sizes of what they made."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        if isinstance(out, torch.Tensor) and "empty" in func.name():
            self.largest = max(self.largest, out.numel())
        return out


def as_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the losses treat the CPU as a device that must not be waited for."""
    monkeypatch.setattr(_blocks, "is_cpu", lambda tensor: False)
    monkeypatch.setattr(_elements, "values_can_be_read", lambda tensor: False)
