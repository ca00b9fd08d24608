"""Checkpoints: one file, written atomically, loaded without running code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ghmdet.errors import CheckpointError
from ghmdet.files import write_atomic
from ghmdet.models.state import is_model_state
from ghmdet.models.weights import read_state


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) to `path`; a crash leaves the file that was there."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path | str) -> Mapping[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU: a `model_state`, and what stands beside it.

    Raises:
        CheckpointError: there is no such file, or it holds no detector of ghmdet.
    """
    state = read_state(Path(path))
    if not is_model_state(state):
        raise CheckpointError(
            f"{path}: holds no detector of ghmdet: give a best.pt or last.pt that `ghmdet train` wrote"
            " (bare weights of a backbone go to `ghmdet train --weights`)"
        )
    return state
