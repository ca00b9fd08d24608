"""What every part of a training run needs to know and what does not change while it lasts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from ghmdet.engine.device import Device, choose_device, keep_freed_memory
from ghmdet.engine.settings import TrainConfig


@dataclass(frozen=True)
class RunContext:
    """A training run: its folder and settings, where it runs, when it began, and who is told of it."""

    folder: Path
    config: TrainConfig
    device: Device
    accelerator: Accelerator
    began: float
    """The reading of `time.monotonic()` from which its time counts."""
    say: Callable[[str], None]
    """Takes each line meant for the user, on rank 0."""

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def seconds(self) -> float:
        """The time so far."""
        return time.monotonic() - self.began

    @property
    def workers(self) -> int:
        """Processes that read pictures."""
        if self.config.workers is not None:
            return self.config.workers
        each = (os.cpu_count() or 1) // self.accelerator.num_processes
        return min(8, each) if self.device.type == "cuda" else 0


def begin_run(folder: Path, config: TrainConfig, say: Callable[[str], None], began: float) -> RunContext:
    """Choose the device, join the other ranks and seed the generators.

    Raises:
        GhmdetError: the device is not there.
    """
    device = choose_device(config.device, config.precision)
    if device.type == "cpu":
        keep_freed_memory()
    # accelerate remembers the first precision and device of a process; the next run may have others.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        cpu=device.type == "cpu", mixed_precision="no" if device.precision == "fp32" else device.precision
    )
    set_seed(config.seed)
    to_user = say if accelerator.is_main_process else lambda line: None
    return RunContext(folder, config, device, accelerator, began, to_user)
