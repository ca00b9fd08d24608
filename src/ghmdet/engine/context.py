"""What every part of a training run needs to know, and what stays the same while it lasts."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from ghmdet.engine.checkpoint import as_saved, saved_run
from ghmdet.engine.device import Device, choose_device, keep_freed_memory
from ghmdet.engine.settings import TrainConfig
from ghmdet.errors import GhmdetError, unknown_name
from ghmdet.files import checkpoint_file


@dataclass(frozen=True)
class RunContext:
    """A training run: what it was asked for, where it runs, when it started, and who is told of it.

    data: the data set. folder: where its files go. saved: the training state that it goes on from, if it was
    interrupted. started_at: the reading of `time.monotonic()` from which its time counts. say: takes each line meant
    for the user, on rank 0. accept_changed_data: whether it goes on with data that is not as it was.
    """

    data: Path
    folder: Path
    config: TrainConfig
    saved: Mapping[str, Any] | None
    device: Device
    accelerator: Accelerator
    started_at: float
    say: Callable[[str], None]
    accept_changed_data: bool = False

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def seconds(self) -> float:
        """The time of the run so far; after an interruption, that before it counts too."""
        return time.monotonic() - self.started_at

    @property
    def workers(self) -> int:
        """Processes that read pictures."""
        if self.config.workers is not None:
            return self.config.workers
        each = (os.cpu_count() or 1) // self.accelerator.num_processes
        return min(8, each) if self.device.type == "cuda" else 0


def begin_run(
    data: Path | str,
    out: Path | str,
    config: TrainConfig,
    *,
    resume: bool = False,
    say: Callable[[str], None] = print,
    started_at: float | None = None,
    accept_changed_data: bool = False,
) -> RunContext:
    """Check what was asked for, choose the device, join the other ranks and seed the generators (see `train`).

    Raises:
        GhmdetError: a setting that cannot be used here, a folder that holds another run.
    """
    started_at = time.monotonic() if started_at is None else started_at
    data = Path(data)
    out = Path(out)
    if config.weights not in ("auto", "coco", "none"):
        config = replace(config, weights=str(checkpoint_file(config.weights)))
        if not Path(config.weights).is_file():
            raise unknown_name(
                "weights", config.weights, ("auto", "coco", "none", "the path of a checkpoint")
            )
    if config.tensorboard and find_spec("tensorboard") is None:
        raise GhmdetError(
            "--tensorboard needs a package that is not installed: pip install 'ghmdet[tensorboard]'"
        )
    main = os.environ.get("RANK", "0") == "0"
    saved = saved_run(data, out, config, resume=resume, say=say if main else lambda line: None)
    config = as_saved(config, saved) if saved else config
    device = choose_device(config.device, config.precision)
    if device.type == "cpu":
        keep_freed_memory()
    # accelerate remembers the first precision and device of a process; the next run may have others.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        cpu=device.type == "cpu", mixed_precision="no" if device.precision == "fp32" else device.precision
    )
    set_seed(config.seed)
    used = saved["place"]["seconds"] if saved else 0.0
    to_user = say if accelerator.is_main_process else lambda line: None
    return RunContext(
        data, out, config, saved, device, accelerator, started_at - used, to_user, accept_changed_data
    )
