"""Scoring a detector: by `ghmdet val`, and within a training run, which keeps the best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast, broadcast_object_list, gather_object

from ghmdet.data import DetectionData, read_data
from ghmdet.engine.checkpoint import Place, save_checkpoint
from ghmdet.engine.context import RunContext
from ghmdet.engine.detect import Detector, detect
from ghmdet.engine.device import peak_memory
from ghmdet.engine.progress import counting
from ghmdet.engine.run_folder import CsvLog, draw_curves, write_json
from ghmdet.engine.settings import BATCH_SIZE, WORKERS
from ghmdet.evaluation.score import Metrics, score
from ghmdet.models import RetinaNet, model_state

if TYPE_CHECKING:
    from ghmdet.engine.board import Board

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
COLUMNS = ("step", "epoch", "seconds", "memory", *SCORES)


def validate(
    checkpoint: Path,
    data: Path,
    /,
    *,
    split: str = "val",
    out: Path | None = None,
    batch_size: int = 16,
    workers: int = 0,
    device: str = "auto",
    precision: str = "auto",
    say: Callable[[str], None] = print,
) -> Metrics:
    """Score a checkpoint on a part of a data set; writes `metrics.json` and `predictions.json` (COCO results).

    Args:
        checkpoint: A `best.pt` or `last.pt` of a training run.
        data: Folder of the data set, or a COCO annotations file.
        split: Part of the data set to score.
        out: Folder to write; by default `SPLIT/` beside the checkpoint.
        batch_size: Pictures at a time.
        workers: Processes that read pictures.
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16 or fp16.
        say: Takes each line meant for the user.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: the data cannot be read.
        GhmdetError: the device is not there.
    """
    BATCH_SIZE.check("batch_size", batch_size)
    WORKERS.check("workers", workers)
    detector = Detector.load(checkpoint, device=device, precision=precision)
    part = read_data(data, split, classes=detector.classes)
    say(part.describe())
    out = Path(checkpoint).parent / part.split if out is None else Path(out)
    with counting("pictures", len(part.records)) as advance:
        results = detect(
            detector.model,
            part,
            device=detector.device,
            batch_size=batch_size,
            workers=workers,
            advance=advance,
        )
    metrics = score(part.to_coco(), results)
    about = {"checkpoint": str(checkpoint), "data": str(data), "split": part.split}
    write_json(out / "predictions.json", results)
    write_json(out / "metrics.json", about | metrics.to_dict())
    say(metrics.table())
    say(f"written: {out / 'metrics.json'}, {out / 'predictions.json'}")
    return metrics


class Validation:
    """Judges the averaged weights `model` of a run on `data`; `metrics.csv` is its `log`.

    Every rank detects on its share of the pictures. Rank 0 scores, and writes `best.pt`, `metrics.json`, the log and
    `curves.png` (with the losses of `losses`).
    """

    def __init__(
        self,
        run: RunContext,
        model: RetinaNet,
        data: DetectionData,
        category_ids: tuple[int, ...],
        losses: CsvLog,
    ) -> None:
        self.run, self.model, self.data, self.losses = run, model, data, losses
        self.category_ids = category_ids
        self.log = CsvLog(run.folder / "metrics.csv", COLUMNS)
        self.board: Board | None = None
        """Where predictions are shown."""

    def validate(self, place: Place, epochs: int | None) -> None:
        """Score the weights at `place`, which learns of it, of a run of `epochs`; keep them if they are the best."""
        run, folder = self.run, self.run.folder
        # A batch norm that learns has other statistics on each rank; rank 0's are the ones that are kept.
        for buffer in self.model.buffers():
            broadcast(buffer)
        results = gather_object(
            detect(
                self.model,
                self.data,
                device=run.device,
                batch_size=run.config.batch_size,
                workers=run.workers,
                rank=run.accelerator.process_index,
                world_size=run.accelerator.num_processes,
            )
        )
        metrics: Metrics = broadcast_object_list([score(self.data.to_coco(), results) if run.main else None])[
            0
        ]
        place.seconds, place.validated_epoch = run.seconds, place.epoch
        AP, better = metrics.AP or 0.0, (metrics.AP or 0.0) > place.best_AP
        if better:
            place.best_AP, place.best_epoch = AP, place.epoch
        if better and run.main:
            save_checkpoint(folder / "best.pt", self.detector_state())
            metrics.save_json(folder / "metrics.json")
        if run.main:
            memory = peak_memory(run.device.type)
            row = {
                "step": place.step,
                "epoch": place.epoch,
                "seconds": round(place.seconds, 1),
                "memory": None if memory is None else round(memory),
            }
            self.log.append(row | {name: metrics.to_dict()[name] for name in SCORES})
            draw_curves(folder / "curves.png", self.losses, self.log)
        if self.board:
            self.board.add_predictions(results, place.step)
        run.say(
            f"epoch {place.epoch}{f'/{epochs}' if epochs else ''}: AP {AP:.3f}, AP50 {metrics.AP50 or 0:.3f}"
            f" (best {place.best_AP:.3f}), {place.seconds / 60:.1f} min"
        )

    def detector_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the detector."""
        return model_state(self.model) | {"category_ids": list(self.category_ids)}
