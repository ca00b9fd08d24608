"""The training engine, top to bottom: data, model, optimizer, steps, validation, checkpoints."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor

from ghmdet.draw import draw_batch
from ghmdet.engine.checkpoint import Place, run_arguments, save_checkpoint, saved_run
from ghmdet.engine.device import choose_device, keep_freed_memory
from ghmdet.engine.loss_log import LOSSES, LossLog, NonFiniteLoss
from ghmdet.engine.observation import SpectrumLog
from ghmdet.engine.optim import WeightAverage, clip_gradients, make_optimizer, warmup_cosine
from ghmdet.engine.pacing import Pacing
from ghmdet.engine.progress import StopSignal, step_progress
from ghmdet.engine.run_folder import provenance, write_json
from ghmdet.engine.settings import TrainConfig
from ghmdet.engine.training_data import TrainingData
from ghmdet.engine.validation import Validation
from ghmdet.errors import GhmdetError, unknown_name
from ghmdet.files import write_atomic
from ghmdet.models import LossConfig, ModelConfig, RetinaNet, load_weights, preset

if TYPE_CHECKING:
    from ghmdet.engine.board import Board, Draw

SCORING = 2.0
"""Seconds of a validation that a rehearsal does not see: scoring, drawing, saving."""
DIVERGED = "diverged.txt"


def train(
    data: Path | str,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    say: Callable[[str], None] = print,
    began: float | None = None,
    figures: Mapping[str, Draw] | None = None,
    report: Callable[[Path], object] | None = None,
) -> Place:
    """Train a detector on `data` and leave a run folder at `out`; returns how far it came and the best AP.

    The folder holds `best.pt` (the best averaged weights), `last.pt` (all that resuming needs), `log.csv` (a row a
    step), `metrics.csv` (a row a validation: seconds so far, peak memory in MiB, AP), `metrics.json` (the best one),
    `spectrum.npz` (what the steps saw, an epoch a row), `curves.png`, `batch.jpg`, `run.json`; `plan.csv` (a row a
    plan) if there is a budget; `diverged.txt` says so of a run whose loss did not stay finite.

    Args:
        data: a data set that `ghmdet.data.read_data` reads.
        out: the run's folder; refused if it holds a run, unless `resume`.
        config: the settings.
        resume: continue the run in `out` exactly where its `last.pt` stands, or begin it if there is none.
        say: takes each line meant for the user.
        began: the reading of `time.monotonic()` from which time counts; by default now.
        figures: by name, what draws the spectrum of an epoch for TensorBoard, if the run writes there.
        report: called with the folder at the end, where the budget has time for it; it takes about two validations.

    Raises:
        GhmdetError: a setting, the data or a checkpoint that cannot be used, before any work starts.
        NonFiniteLoss: training diverged; `last.pt` and `best.pt` are those of before.
        KeyboardInterrupt: stopped by a signal, after `last.pt` was written.
    """
    try:
        return Trainer(
            Path(data), Path(out), config or TrainConfig(), resume, say, began, figures, report
        ).run()
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
        figures: Mapping[str, Draw] | None = None,
        report: Callable[[Path], object] | None = None,
    ) -> None:
        self.config, self.out, self.report = config, out, report
        self.started = time.monotonic() if began is None else began
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
        )
        self.main = self.accelerator.is_main_process
        self.say: Callable[[str], None] = say if self.main else lambda line: None
        set_seed(config.seed)

        gpu_workers = min(8, (os.cpu_count() or 1) // self.accelerator.num_processes)
        default = gpu_workers if self.device.type == "cuda" else 0
        self.workers = default if config.workers is None else config.workers
        self.data = TrainingData(
            data,
            config,
            model_config,
            workers=self.workers,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            say=self.say,
        )
        if state and state["content"] != self.data.content:
            raise GhmdetError(
                f"cannot resume {out} on other data: it was trained on {state['content']}, {data} has"
                f" {self.data.content}"
            )

        self.model = RetinaNet(model_config, self.data.train.classes, loss_config)
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
        steps = config.total_epochs * self.data.steps_per_epoch
        self.schedule = warmup_cosine(self.optimizer, steps=steps, warmup=config.warmup)
        self.average = WeightAverage(self.model, config.ema)
        self.spectrum = SpectrumLog(self.model, out / "spectrum.npz", main=self.main)
        self.place = Place()
        if state:
            self._restore(state)
        self.parallel, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.log = LossLog(out, self.accelerator, self.data.file_names, fp16=self.device.precision == "fp16")
        self.saved = time.monotonic()
        # On a CPU reading the loss costs nothing, so a bad one is met at once; on a GPU each look makes it wait.
        self.look_every = 1 if self.device.type == "cpu" else 20
        self.started -= self.place.seconds
        self.validation = Validation(
            self.average.model,
            self.data.val,
            out,
            category_ids=self.data.train.category_ids,
            accelerator=self.accelerator,
            device=self.device,
            batch_size=config.batch_size,
            workers=self.workers,
            losses=self.log,
            started=self.started,
            say=self.say,
        )
        self.pacing = Pacing(
            config,
            self.data.steps_per_epoch,
            self.schedule,
            out,
            began=self.started,
            reports=report is not None,
            main=self.main,
            say=self.say,
        )
        if state:
            self.pacing.load_state_dict(state.get("plan", {}), self.place.step)
        elif config.budget:
            self._rehearse()

        if self.main:
            if not state:
                write_json(out / "run.json", provenance(self.arguments))
            (out / DIVERGED).unlink(missing_ok=True)
            self.log.start(self.place.step)
            self.validation.log.start(self.place.step)
            self.spectrum.start(self.place.epoch)
        if config.budget and not state:
            began = time.monotonic()
            self._save_last()
            self.pacing.begin(time.monotonic() - began)
        self.board: Board | None = None
        if config.tensorboard and self.main:
            from ghmdet.engine.board import Board

            self.board = Board(out / "tensorboard", self.data.val, figures or {}, self.place.step)
            self.log.also = self.validation.log.also = self.board.add_row
            self.validation.board = self.board

    def run(self) -> Place:
        """Train to the end of the plan, or until the AP has not risen for `patience` epochs."""
        config, place, pacing = self.config, self.place, self.pacing
        board = contextlib.closing(self.board) if self.board else contextlib.nullcontext()
        with StopSignal() as stop, step_progress(show=self.main) as progress, board:
            bar = progress.add_task("", total=pacing.plan.steps, completed=place.step)
            while True:
                if self._validation_due():
                    progress.update(bar, description="validating")
                    began = time.monotonic()
                    self.validation.validate(place, pacing.epochs)
                    self._save_last()
                    pacing.validated(time.monotonic() - began, place.step)
                if place.step >= pacing.plan.steps or self._gave_up():
                    break
                self.parallel.train()
                self.data.loader.set_epoch(place.epoch, start_batch=place.batch)
                pacing.begin_epoch(place.step)
                for images, targets in self.data.loader:
                    if place.batch == self.data.steps_per_epoch * config.accumulate:
                        break  # the batches that do not fill a step
                    if place.epoch == place.batch == 0 and self.main:
                        draw_batch(self.out / "batch.jpg", images, targets, self.data.train.classes)
                    if self._step(images, targets):
                        about = f"epoch {place.epoch + 1}/{pacing.epochs}"
                        progress.update(bar, advance=1, total=pacing.plan.steps, description=about)
                        if len(self.log.unread) >= self.look_every:
                            self._look(stop)
                            pacing.end_look(place.step)
                        if place.step >= pacing.plan.steps:
                            break
                self.log.read()  # a run that diverged ends here
                seen = self.spectrum.end_epoch()
                if self.board:
                    self.board.add_spectrum(seen, place.step)
                place.epoch, place.batch = place.epoch + 1, 0
                self._look(stop)
                self._save_last()
                pacing.end_epoch(place.step)
        self.say(f"best AP {place.best_AP:.3f} after epoch {place.best_epoch}: {self.out / 'best.pt'}")
        if self.report and not pacing.can_report:
            self.say(f"no report, to end within the budget: ghmdet report {self.out}")
        elif self.report and self.main:
            self.report(self.out)
        pacing.end()
        return place

    def _validation_due(self) -> bool:
        place, plan = self.place, self.pacing.plan
        if place.batch or place.epoch == place.validated_epoch:
            return False
        return place.step >= plan.steps or place.epoch - place.validated_epoch >= plan.every

    def _gave_up(self) -> bool:
        stale = self.place.validated_epoch - self.place.best_epoch
        if not self.config.patience or stale < self.config.patience:
            return False
        self.say(f"stopping early: no better AP than epoch {self.place.best_epoch}'s")
        return True

    def _look(self, stop: StopSignal) -> None:
        """Read the losses; save where it is time, and stop where a signal asked for it."""
        due = time.monotonic() - self.saved > 60 * self.config.checkpoint_minutes
        due, stopping = self.log.read(due, stop.asked)
        if due or stopping:
            self._save_last()
        if stopping:
            raise KeyboardInterrupt(
                f"stopped in epoch {self.place.epoch + 1} after step {self.place.step}; the same command with --resume"
                " continues"
            )

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
            accelerator.unscale_gradients()
            norm = clip_gradients(self.model.parameters(), self.config.clip_norm)
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
        self.log.keep(row, values, ids)
        return stepping

    def _save_last(self) -> None:
        self.log.read()
        self.place.seconds = time.monotonic() - self.started
        state = self._training_state()
        if self.main:
            training = {"arguments": self.arguments, "content": self.data.content} | state
            save_checkpoint(self.out / "last.pt", self.validation.detector_state() | {"training": training})
        self.saved = time.monotonic()

    def _training_state(self) -> dict[str, Any]:
        return {
            "place": asdict(self.place),
            "plan": self.pacing.state_dict(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "spectrum": self.spectrum.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "rng": torch.get_rng_state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.place = Place(**{field.name: state["place"][field.name] for field in dataclasses.fields(Place)})
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.spectrum.load_state_dict(state.get("spectrum", {}))
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])

    def _rehearse(self) -> None:
        """Measure a step and a validation for the plan, leaving no trace."""
        before = copy.deepcopy(self._training_state())
        self.parallel.train()
        ends = [time.monotonic()]
        # The first turn finds slow first steps, and pictures that are not in memory yet.
        for images, targets in itertools.chain(*(itertools.islice(self.data.loader, 3) for _ in range(2))):
            self._step(images, targets)
            self.log.unread.pop()[1].tolist()  # waits for a GPU
            ends.append(time.monotonic())
            if self.pacing.rehearsal_over(ends[-1] - ends[0]):
                break
        batches = [after - before for before, after in itertools.pairwise(ends)]
        step = self.config.accumulate * statistics.median(batches[len(batches) // 2 :])
        self.optimizer.zero_grad()
        self._restore(before)
        ends = [time.monotonic()]
        self.validation.detect(advance=lambda pictures: ends.append(time.monotonic()), batches=2)
        detecting = (ends[-1] - ends[-2:][0]) * math.ceil(len(self.data.val.records) / self.config.batch_size)
        self.pacing.rehearsed(step, detecting + SCORING)


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
