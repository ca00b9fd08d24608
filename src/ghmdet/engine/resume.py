"""How far a run has come, what it was started with, and whether it may be continued."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ghmdet.config import TrainConfig
from ghmdet.engine.checkpoint import load_checkpoint
from ghmdet.errors import GhmdetError

MAY_CHANGE = {"workers", "checkpoint_minutes", "tensorboard", "patience", "val_every"}
"""Settings that a resumed run may change, since the weights do not depend on them."""


@dataclass
class Place:
    """How far a run has come: `batch` batches into `epoch`, `step` optimizer steps in all, the best AP so far."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_AP: float = -1.0
    best_epoch: int = 0
    validated_epoch: int = 0
    seconds: float = 0.0


def run_arguments(data: Path, out: Path, config: TrainConfig) -> dict[str, Any]:
    """All that a run was asked for, as plain values."""
    epochs = None if config.budget else config.total_epochs
    return {"data": str(data), "out": str(out)} | asdict(config) | {"epochs": epochs}


def saved_run(out: Path, arguments: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """What `last.pt` keeps of the training in `out`, None for a new run.

    Raises:
        GhmdetError: `out` holds a run and `resume` is off, or the run has other settings.
        CheckpointError: `last.pt` cannot be read.
    """
    last = out / "last.pt"
    if not resume:
        if last.exists() or (out / "run.json").exists():
            raise GhmdetError(
                f"{out} holds a run already: add --resume to continue it, or give another --out"
            )
        return None
    if not last.exists():
        return None
    training: dict[str, Any] | None = load_checkpoint(last).get("training")
    if training is None:
        raise GhmdetError(
            f"{last}: a detector without its training state cannot be resumed; start it by --weights"
        )
    saved = training["arguments"]
    changed = [
        f"{name} {arguments[name]} (the run has {saved.get(name)})"
        for name in arguments
        if name not in MAY_CHANGE | {"data", "out"} and arguments[name] != saved.get(name)
    ]
    if changed:
        raise GhmdetError(f"cannot resume {out} with other settings: {'; '.join(changed)}")
    return training
