"""Checkpoints: one file, written atomically, loaded without running code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from ghmdet.errors import CheckpointError
from ghmdet.files import write_atomic


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) to `path`; a crash leaves the file that was there."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU.

    Raises:
        CheckpointError: there is no such file, or it is not a ghmdet checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        hint = f"; its folder holds {_names(path.parent)}" if path.parent.is_dir() else ""
        raise CheckpointError(f"{path}: no such checkpoint{hint}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not a checkpoint ({reason}); give a best.pt or last.pt that `ghmdet train` wrote"
        ) from error
    if not isinstance(state, dict) or "config" not in state or "classes" not in state:
        raise CheckpointError(
            f"{path}: holds no detector of ghmdet; give a best.pt or last.pt that `ghmdet train` wrote"
            " (bare backbone weights go to `ghmdet train --weights`)"
        )
    return state


def _names(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.glob("*.pt"))) or "no .pt file"
