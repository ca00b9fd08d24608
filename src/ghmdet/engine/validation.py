"""Validation within a training run: scores the averaged weights, keeps the best, writes what it saw."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object

from ghmdet.data import DetectionData
from ghmdet.engine.checkpoint import Place, save_checkpoint
from ghmdet.engine.detect import detect
from ghmdet.engine.device import Device, peak_memory
from ghmdet.engine.run_folder import CsvLog, draw_curves
from ghmdet.evaluation.score import Metrics, score
from ghmdet.models import RetinaNet, model_state

if TYPE_CHECKING:
    from ghmdet.engine.board import Board

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
COLUMNS = ("step", "epoch", "seconds", "memory", *SCORES)


class Validation:
    """Judges `model` on `data` for a run in `out` that began at `started` (a reading of `time.monotonic()`).

    Every rank detects on its share of the pictures; rank 0 scores and writes `best.pt`, `metrics.json`, `metrics.csv`
    and `curves.png` (with the losses of `losses`).
    """

    def __init__(
        self,
        model: RetinaNet,
        data: DetectionData,
        out: Path,
        *,
        category_ids: tuple[int, ...],
        accelerator: Accelerator,
        device: Device,
        batch_size: int,
        workers: int,
        losses: CsvLog,
        started: float,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.data, self.out = model, data, out
        self.category_ids = category_ids
        self.accelerator, self.device = accelerator, device
        self.batch_size, self.workers = batch_size, workers
        self.losses, self.log = losses, CsvLog(out / "metrics.csv", COLUMNS)
        self.started, self.say = started, say
        self.board: Board | None = None
        """Where predictions are shown."""

    def validate(self, place: Place, epochs: int) -> None:
        """Score the weights at `place`, which learns of it, of a run of `epochs`; keep them if they are the best."""
        main = self.accelerator.is_main_process
        # A batch norm that learns has other statistics on each rank; rank 0's are the ones that are kept.
        for buffer in self.model.buffers():
            broadcast(buffer)
        results = gather_object(self.detect())
        metrics: Metrics = broadcast_object_list([score(self.data.to_coco(), results) if main else None])[0]
        place.seconds, place.validated_epoch = time.monotonic() - self.started, place.epoch
        if (metrics.AP or 0.0) > place.best_AP:
            place.best_AP, place.best_epoch = metrics.AP or 0.0, place.epoch
            if main:
                save_checkpoint(self.out / "best.pt", self.detector_state())
                metrics.save_json(self.out / "metrics.json")
        memory = peak_memory(self.device.type)
        row = {
            "step": place.step,
            "epoch": place.epoch,
            "seconds": round(place.seconds, 1),
            "memory": None if memory is None else round(memory),
            **{name: metrics.to_dict()[name] for name in SCORES},
        }
        if main:
            self.log.append(row)
            draw_curves(self.out / "curves.png", self.losses, self.log)
        if self.board:
            self.board.add_predictions(results, place.step)
        self.say(
            f"epoch {place.epoch}/{epochs}: AP {metrics.AP or 0:.3f}, AP50 {metrics.AP50 or 0:.3f}"
            f" (best {place.best_AP:.3f}), {place.seconds / 60:.1f} min"
        )

    def detect(self, **options: Any) -> list[dict[str, Any]]:
        """The detections on this rank's share of the pictures, as COCO results; options of `evaluate.detect`."""
        return detect(
            self.model,
            self.data,
            device=self.device,
            batch_size=self.batch_size,
            workers=self.workers,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            **options,
        )

    def detector_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the detector."""
        return model_state(self.model) | {"category_ids": list(self.category_ids)}
