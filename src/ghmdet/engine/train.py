"""The training engine, top to bottom: data, model, optimizer, steps, validation, checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, broadcast_object_list, gather_object, set_seed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ghmdet.config import TrainConfig, seconds_of, validate_every
from ghmdet.data import DetectionDataset, make_loader, read_data, require_images, train_transforms
from ghmdet.engine.anchor_overlap import anchor_warning
from ghmdet.engine.budget import FIRST_STEPS, Budget
from ghmdet.engine.checkpoint import save_checkpoint
from ghmdet.engine.device import choose_device
from ghmdet.engine.draw import draw_batch
from ghmdet.engine.evaluate import detect
from ghmdet.engine.memory import keep_freed_memory, peak_memory
from ghmdet.engine.optim import WeightAverage, make_optimizer, warmup_cosine
from ghmdet.engine.resume import run_arguments, saved_run
from ghmdet.engine.run_folder import CsvLog, draw_curves, provenance, write_json
from ghmdet.engine.score import Metrics, score
from ghmdet.engine.stop_signal import StopSignal
from ghmdet.errors import GhmdetError, unknown_name
from ghmdet.files import write_atomic
from ghmdet.models import LossConfig, ModelConfig, RetinaNet, load_weights, model_state, preset

LOSSES = ("classification", "bbox_regression")
LOG_COLUMNS = ("step", "epoch", "lr", "loss", *LOSSES, "grad_norm")
SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
METRIC_COLUMNS = ("step", "epoch", "seconds", "memory", *SCORES)


DIVERGED = "diverged.txt"


class NonFiniteLoss(GhmdetError):
    """The loss or its gradient became infinite or NaN; the message names the pictures of the batch."""


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
    epochs: int = 0
    """Epochs in all, as planned."""


def train(
    data: Path | str,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    say: Callable[[str], None] = print,
    began: float | None = None,
) -> Place:
    """Train a detector on `data` and leave a run folder at `out`; returns how far it came and the best AP.

    The folder holds `best.pt` (the best averaged weights), `last.pt` (all that resuming needs), `log.csv` (a row a
    step), `metrics.csv` (a row a validation: seconds so far, peak memory in MiB, AP), `metrics.json` (the best one),
    `curves.png`, `batch.jpg`, `run.json`; `diverged.txt` says so of a run whose loss did not stay finite.

    Args:
        data: a data set that `ghmdet.data.read_data` reads.
        out: the run's folder; refused if it holds a run, unless `resume`.
        config: the settings.
        resume: continue the run in `out` exactly where its `last.pt` stands, or begin it if there is none.
        say: takes each line meant for the user.
        began: the `time.monotonic()` from which a budget counts; by default now.

    Raises:
        GhmdetError: a setting, the data or a checkpoint that cannot be used, before any work starts.
        NonFiniteLoss: training diverged; `last.pt` and `best.pt` are those of before.
        KeyboardInterrupt: stopped by a signal, after `last.pt` was written.
    """
    try:
        return Trainer(Path(data), Path(out), config or TrainConfig(), resume, say, began).run()
    except NonFiniteLoss as error:
        write_atomic(Path(out) / DIVERGED, f"{error}\n")
        raise


class Trainer:
    """One run: `__init__` builds its parts in the order in which data flows, `run` is the loop."""

    def __init__(
        self,
        data: Path,
        out: Path,
        config: TrainConfig,
        resume: bool,
        say: Callable[[str], None],
        began: float | None = None,
    ) -> None:
        self.config, self.out = config, out
        self.began = time.monotonic() if began is None else began
        model_config = _model_config(config)
        if config.weights not in ("auto", "none") and not Path(config.weights).is_file():
            raise unknown_name("weights", config.weights, ("auto", "none", "the path of a checkpoint"))
        if out.exists() and not out.is_dir():
            raise GhmdetError(f"--out {out} is a file: give a folder")
        loss_config = LossConfig(
            cls_loss=config.cls_loss,
            box_loss=config.box_loss,
            cls_weight=config.cls_weight,
            box_weight=config.box_weight,
            accumulation_steps=config.accumulate,
        )
        self.arguments = run_arguments(data, out, config)
        state = saved_run(out, self.arguments, resume)

        if config.tensorboard and find_spec("tensorboard") is None:
            raise GhmdetError(
                "--tensorboard needs a package that is not installed: pip install 'ghmdet[tensorboard]'"
            )
        self.device = choose_device(config.device, config.precision)
        if self.device.type == "cpu":
            keep_freed_memory()
        # accelerate remembers the first precision and device of a process; the next run may have others.
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="no" if self.device.precision == "fp32" else self.device.precision,
            log_with="tensorboard" if config.tensorboard else None,
            project_dir=str(out),
        )
        self.main = self.accelerator.is_main_process
        self.say: Callable[[str], None] = say if self.main else lambda line: None
        set_seed(config.seed)

        self.train_data = read_data(data, config.train_split)
        self.val_data = read_data(data, config.val_split, classes=self.train_data.classes)
        if self.val_data.split == self.train_data.split:
            raise GhmdetError(
                f"{data}: training and validation would both be '{self.train_data.split}': give the folder that holds"
                " both parts, or another --val-split"
            )
        for part in (self.train_data, self.val_data):
            require_images(part)
        self.content = {
            "classes": list(self.train_data.classes),
            "pictures": len(self.train_data.records),
            "boxes": len(self.train_data.records.boxes),
        }
        if state and state["content"] != self.content:
            raise GhmdetError(
                f"cannot resume {out} on other data: it was trained on {state['content']}, {data} has {self.content}"
            )
        self.say(self.train_data.describe())
        self.say(self.val_data.describe())
        if unmatched := anchor_warning(self.train_data, model_config):
            options = f"--model {config.model} --size {model_config.max_size} --split {config.train_split}"
            self.say(f"{unmatched}: `ghmdet data anchors {data} {options}` says what would fit")
        gpu_workers = min(8, (os.cpu_count() or 1) // self.accelerator.num_processes)
        default = gpu_workers if self.device.type == "cuda" else 0
        self.workers = default if config.workers is None else config.workers
        self.loader = self._make_loader(model_config)
        self.steps_per_epoch = len(self.loader) // config.accumulate
        if not self.steps_per_epoch:
            raise GhmdetError(
                f"{len(self.train_data.records)} pictures make {len(self.loader)} batches of {config.batch_size},"
                f" fewer than --accumulate {config.accumulate}: give a smaller --batch-size or --accumulate"
            )

        self.model = RetinaNet(model_config, self.train_data.classes, loss_config)
        self.say(f"resuming {out / 'last.pt'}" if state else load_weights(self.model, config.weights))
        self.say(f"{config.model} on {self.device.reason}; {self.accelerator.num_processes} process(es)")
        self.model.to(self.accelerator.device).to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(
            self.model,
            self.model.backbone,
            lr=config.lr,
            backbone_lr=1.0 if config.weights == "none" else config.backbone_lr,
            weight_decay=config.weight_decay,
        )
        self.place = Place(epochs=config.total_epochs)
        self.budget = Budget(seconds_of(config.budget), config.val_every) if config.budget else None
        self.cut_after: int | None = None  # steps, where not even one epoch fits into the budget
        self.first_steps: list[float] = []
        self.schedule = warmup_cosine(self.optimizer, steps=self._total_steps, warmup=config.warmup)
        self.average = WeightAverage(self.model, config.ema)
        if state:
            self._restore(state)
        self.parallel, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)

        self.log = CsvLog(out / "log.csv", LOG_COLUMNS)
        self.metrics_log = CsvLog(out / "metrics.csv", METRIC_COLUMNS)
        if self.main:
            if not state:
                write_json(out / "run.json", provenance(self.arguments))
            (out / DIVERGED).unlink(missing_ok=True)
            self.log.start(self.place.step)
            self.metrics_log.start(self.place.step)
        if config.tensorboard:
            self.accelerator.init_trackers("tensorboard")
        self.unread: list[tuple[dict[str, float], Tensor, list[int]]] = []
        self.started = self.began - self.place.seconds
        self.saved = time.monotonic()
        # On a CPU reading the loss costs nothing, so a bad one is met at once; on a GPU each look makes it wait.
        self.look_every = 1 if self.device.type == "cpu" else 20

    def run(self) -> Place:
        """Train to the last epoch, to the end of the budget, or until the AP has not risen for `patience` epochs."""
        config, place = self.config, self.place
        with StopSignal() as stop, self._progress() as progress:
            bar = progress.add_task("", total=self._total_steps(), completed=place.step)
            while True:
                if self._validation_due():
                    progress.update(bar, description="validating")
                    validating = time.monotonic()
                    self._validate()
                    self._save_last()
                    if self.budget:
                        self.budget.validation = time.monotonic() - validating
                if place.epoch == place.epochs or self._gave_up():
                    break
                self.parallel.train()
                self.loader.set_epoch(place.epoch, start_batch=place.batch)
                whole, epoch_began = place.batch == 0, time.monotonic()
                for images, targets in self.loader:
                    if place.batch == self.steps_per_epoch * config.accumulate:
                        break  # the batches that do not fill a step
                    if place.epoch == place.batch == 0 and self.main:
                        draw_batch(self.out / "batch.jpg", images, targets, self.train_data.classes)
                    if self._step(images, targets):
                        about = f"epoch {place.epoch + 1}/{place.epochs}"
                        progress.update(bar, advance=1, total=self._total_steps(), description=about)
                        if len(self.unread) >= self.look_every and self._look(stop):
                            place.epochs = place.epoch + 1
                            break
                        self._first_plan()
                place.epoch, place.batch = place.epoch + 1, 0
                if self._look(stop):
                    place.epochs = place.epoch
                elif self.budget and whole:
                    self.budget.epochs.append(time.monotonic() - epoch_began)
                    self._plan()
                self._save_last()
        if config.tensorboard:
            self.accelerator.end_training()
        if self.budget:
            more = ", more than it: a step and a validation take that" * (
                self._elapsed() > self.budget.seconds
            )
            self.say(
                f"--budget {config.budget}: {place.epochs} epochs in {self._elapsed() / 60:.1f} min{more}"
            )
        self.say(f"best AP {place.best_AP:.3f} after epoch {place.best_epoch}: {self.out / 'best.pt'}")
        return place

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def _total_steps(self) -> int:
        return self.cut_after or self.place.epochs * self.steps_per_epoch

    def _first_plan(self) -> None:
        """Plan a budget's epochs from the first steps of the process."""
        if not self.budget or self.budget.epochs:
            return
        self.first_steps.append(time.monotonic())
        if len(self.first_steps) <= min(FIRST_STEPS, self.steps_per_epoch - 1):
            return
        steps = [after - before for before, after in itertools.pairwise(self.first_steps)] or [1.0]
        self.budget.guess(steps, self.steps_per_epoch, self.config.batch_size, len(self.val_data.records))
        self._plan()
        if self.place.epochs == 0:
            self.place.epochs = 1
            step = self.budget.epochs[0] / self.steps_per_epoch
            self.cut_after = max(1, int((self.budget.deadline - self._elapsed()) / step))
            self.say(f"--budget {self.config.budget} ends inside the first epoch")

    def _plan(self) -> None:
        """Plan how many epochs the budget holds in all; every rank follows rank 0's clock."""
        assert self.budget is not None
        fits = self.budget.plan(self._elapsed(), self.place.epoch)
        (epochs,) = broadcast_object_list([fits])
        if epochs != self.place.epochs:
            self.place.epochs = epochs
            self.say(
                f"--budget {self.config.budget}: {epochs} epochs of {self.steps_per_epoch} steps"
                f" ({self.budget.epochs[-1]:.1f} s), validations of {self.budget.validation:.1f} s"
            )

    def _validation_due(self) -> bool:
        epoch, place = self.place.epoch, self.place
        every = self.config.val_every or validate_every(place.epochs)
        return (
            (epoch == place.epochs or epoch % every == 0)
            and place.batch == 0
            and epoch > place.validated_epoch
        )

    def _gave_up(self) -> bool:
        stale = self.place.validated_epoch - self.place.best_epoch
        if not self.config.patience or stale < self.config.patience:
            return False
        self.say(f"stopping early: no better AP than epoch {self.place.best_epoch}'s")
        return True

    def _look(self, stop: StopSignal) -> bool:
        """Read the losses, save where it is time, stop where a signal asked for it; whether the budget is used up."""
        due = time.monotonic() - self.saved > 60 * self.config.checkpoint_minutes
        late = self.budget is not None and self._elapsed() > self.budget.deadline
        due, stopping, late = self._read_losses(due, stop.asked, late)
        if due or stopping:
            self._save_last()
        if stopping:
            raise KeyboardInterrupt(
                f"stopped in epoch {self.place.epoch + 1} after step {self.place.step}; the same command with --resume"
                " continues"
            )
        return late

    def _step(self, images: list[Tensor], targets: list[dict[str, Any]]) -> bool:
        """Forward and backward of one batch; whether it completed an optimizer step."""
        accelerator, place = self.accelerator, self.place
        place.batch += 1
        stepping = place.batch % self.config.accumulate == 0
        with contextlib.nullcontext() if stepping else accelerator.no_sync(self.parallel):
            losses = self.parallel(
                [image.to(accelerator.device, non_blocking=True) for image in images],
                [
                    {name: target[name].to(accelerator.device) for name in ("boxes", "labels")}
                    for target in targets
                ],
            )
            loss = torch.stack([losses[name] for name in LOSSES]).sum()
            accelerator.backward(loss / self.config.accumulate)
        norm = loss.new_zeros(())
        rate = self.schedule.get_last_lr()[-1]
        if stepping:
            norm = accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            self.average.update(self.model)
            place.step += 1
        values = torch.stack([loss, *(losses[name] for name in LOSSES), norm]).detach().float()
        ids = [int(target["image_id"]) for target in targets]
        row: dict[str, float] = {
            "step": place.step + (not stepping),
            "epoch": place.epoch + 1,
            "lr": float(rate),
        }
        self.unread.append((row, values, ids))
        return stepping

    def _read_losses(self, *wishes: bool) -> list[bool]:
        """Write the losses since the last look (one row a step, the mean over batches and ranks) and check them.

        Returns, for each wish, whether any rank has it: ranks that save or stop must do so at the same step.

        Raises:
            NonFiniteLoss: naming the pictures of the first batch whose loss or gradient is not finite.
        """
        wished = torch.zeros(len(LOSSES) + 2, device=self.accelerator.device)
        wished[: len(wishes)] = torch.tensor(wishes)
        mine = torch.stack([*(values for _, values, _ in self.unread), wished])
        everyone = self.accelerator.reduce(mine, "mean").cpu()
        everyone, wished = everyone[:-1], everyone[-1]
        # fp16's loss scaling skips steps whose gradient overflows; that is no divergence.
        watched = everyone[:, :3] if self.device.precision == "fp16" else everyone
        bad = (~watched.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            row, _, ids = self.unread[bad[0]]
            last = self.out / "last.pt"
            mend = (
                f"start again from the last good checkpoint, --weights {last}"
                if last.exists()
                else "start again"
            )
            raise NonFiniteLoss(
                f"the loss is not finite at step {row['step']} ({_named(everyone[bad[0]])}); pictures of the batch:"
                f" {', '.join(self._file_names(gather_object(ids)))}: look at them with `ghmdet data check`, or {mend}"
                " with a lower --lr and another --out"
            )
        if self.main:
            for step in dict.fromkeys(row["step"] for row, _, _ in self.unread):
                places = [i for i, (row, _, _) in enumerate(self.unread) if row["step"] == step]
                means = everyone[places].mean(0)
                means[-1] = everyone[places[-1], -1]  # only the batch that steps has a gradient norm
                values = dict(zip(("loss", *LOSSES, "grad_norm"), means.tolist(), strict=True))
                row = self.unread[places[0]][0] | values
                self.log.append(row)
                if self.config.tensorboard:
                    self.accelerator.log(row, step=int(step))
        self.unread.clear()
        return [bool(wish > 0) for wish in wished[: len(wishes)]]

    def _validate(self) -> None:
        """Score the averaged weights; keep them as `best.pt` if their AP is the best so far."""
        place, accelerator = self.place, self.accelerator
        # A batch norm that learns has other statistics on each rank; rank 0's are the ones that are kept.
        for buffer in self.average.model.buffers():
            broadcast(buffer)
        results = gather_object(
            detect(
                self.average.model,
                self.val_data,
                device=self.device,
                batch_size=self.config.batch_size,
                workers=self.workers,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
            )
        )
        metrics: Metrics = broadcast_object_list(
            [score(self.val_data.to_coco(), results) if self.main else None]
        )[0]
        place.seconds, place.validated_epoch = self._elapsed(), place.epoch
        if (metrics.AP or 0.0) > place.best_AP:
            place.best_AP, place.best_epoch = metrics.AP or 0.0, place.epoch
            if self.main:
                save_checkpoint(self.out / "best.pt", self._detector_state())
                metrics.save_json(self.out / "metrics.json")
        memory = peak_memory(self.device.type)
        row = {
            "step": place.step,
            "epoch": place.epoch,
            "seconds": round(place.seconds, 1),
            "memory": None if memory is None else round(memory),
            **{name: metrics.to_dict()[name] for name in SCORES},
        }
        if self.main:
            self.metrics_log.append(row)
            draw_curves(self.out / "curves.png", self.log, self.metrics_log)
        if self.config.tensorboard:
            accelerator.log({name: row[name] for name in SCORES if row[name] is not None}, step=place.step)
        self.say(
            f"epoch {place.epoch}/{place.epochs}: AP {metrics.AP or 0:.3f}, AP50 {metrics.AP50 or 0:.3f}"
            f" (best {place.best_AP:.3f}), {place.seconds / 60:.1f} min"
        )

    def _detector_state(self) -> dict[str, Any]:
        return model_state(self.average.model) | {"category_ids": list(self.train_data.category_ids)}

    def _save_last(self) -> None:
        self._read_losses()
        self.place.seconds = self._elapsed()
        if self.main:
            training = {
                "arguments": self.arguments,
                "content": self.content,
                "place": asdict(self.place),
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
                "rng": torch.get_rng_state(),
            }
            save_checkpoint(self.out / "last.pt", self._detector_state() | {"training": training})
        self.saved = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        self.place = Place(**(asdict(self.place) | state["place"]))
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])

    def _make_loader(self, model: ModelConfig) -> Any:
        config, world = self.config, self.accelerator.num_processes
        if config.batch_size % world:
            raise GhmdetError(
                f"--batch-size {config.batch_size} does not divide among {world} processes: give a multiple of it"
            )
        dataset = DetectionDataset(
            self.train_data, train_transforms(model.min_size, model.max_size, config.augment)
        )
        return make_loader(
            dataset,
            batch_size=config.batch_size,
            shuffle=True,
            seed=config.seed,
            workers=self.workers,
            rank=self.accelerator.process_index,
            world_size=world,
            drop_last=len(dataset) >= config.batch_size,
        )

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, transient=True, disable=not self.main or not sys.stdout.isatty())

    def _file_names(self, ids: list[int]) -> list[str]:
        paths = {record.image_id: record.path for record in self.train_data.records}
        return [paths[image_id].name for image_id in ids]


def _model_config(config: TrainConfig) -> ModelConfig:
    chosen = preset(
        config.model,
        size=config.size,
        anchor_base=config.anchor_base,
        anchor_ratios=config.anchor_ratios,
    )
    if config.weights == "none":
        # Frozen at random values, batch norm would not normalise: from scratch it has to learn.
        return dataclasses.replace(chosen, freeze_batch_norm=False)
    return chosen


def _named(values: Tensor) -> str:
    names = ("loss", *LOSSES, "gradient norm")
    return ", ".join(f"{name} {value:g}" for name, value in zip(names, values.tolist(), strict=True))
