"""Which operations a computation makes, and the path of an accelerator on the CPU."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ghmdet.functional import _arguments

MASK = "index by a mask"
# Operations that an accelerator's caller waits for: they read a value, or their result's size depends on one.
# None of them can be captured in a CUDA graph.
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "masked_scatter",
    "is_nonzero",
    "equal",
    "unique_dim",
    "_unique",
    "_unique2",
    "unique_consecutive",
    "repeat_interleave",
    "bincount",
    "item",
    MASK,
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Operations(TorchDispatchMode):
    """Keeps the names of all operations and the sizes of what they made."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names.add(name)
        if name in INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            self.names.add(MASK)
        if isinstance(out, torch.Tensor) and "empty" in func.name():
            self.largest = max(self.largest, out.numel())
        return out


def as_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the losses treat the CPU as a device that must not be waited for."""
    monkeypatch.setattr(_arguments, "values_can_be_read", lambda tensor: False)


def on_meta(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device of which no value can be read, since it has none: what must wait for an accelerator raises there."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # not on meta
    return torch.device("meta")
