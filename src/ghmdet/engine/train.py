"""The training engine, top to bottom: data, model, optimizer, steps, validation, checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ghmdet.draw import draw_batch
from ghmdet.engine.budget import END, Budget, in_words
from ghmdet.engine.checkpoint import Place, other_version, run_arguments, save_checkpoint, saved_run
from ghmdet.engine.context import begin_run
from ghmdet.engine.evaluate import Validation
from ghmdet.engine.loss_log import LOSSES, LossLog, NonFiniteLoss
from ghmdet.engine.observation import SpectrumLog
from ghmdet.engine.optim import WeightAverage, clip_gradients, make_optimizer, set_rate, warmup_cosine
from ghmdet.engine.progress import StopSignal, progress_bar
from ghmdet.engine.run_folder import provenance, write_json
from ghmdet.engine.settings import TrainConfig, seconds_of, validate_every
from ghmdet.engine.training_data import TrainingData
from ghmdet.errors import GhmdetError, unknown_name
from ghmdet.files import write_atomic
from ghmdet.models import LossConfig, ModelConfig, RetinaNet, load_weights

if TYPE_CHECKING:
    from ghmdet.engine.board import Draw

DIVERGED = "diverged.txt"
COURSE = 1000
"""Steps of the learning rate's course where only the clock says how far it is."""


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
    `spectrum.npz` (what the steps saw, an epoch a row), `curves.png`, `batch.jpg`, `run.json`; `diverged.txt` says so
    of a run whose loss did not stay finite.

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
    trainer = Trainer(Path(data), Path(out), config or TrainConfig(), resume, say, began, figures, report)
    try:
        return trainer.fit()
    except NonFiniteLoss as error:
        write_atomic(Path(out) / DIVERGED, f"{error}\n")
        raise


class Trainer:
    """One run: `__init__` builds its parts in the order in which data flows, `fit` is the loop."""

    def __init__(
        self,
        data: Path,
        out: Path,
        config: TrainConfig,
        resume: bool = False,
        say: Callable[[str], None] = print,
        began: float | None = None,
        figures: Mapping[str, Draw] | None = None,
        report: Callable[[Path], object] | None = None,
    ) -> None:
        network, losses = _checked(out, config)
        self.arguments = run_arguments(data, out, config)
        saved = saved_run(out, self.arguments, resume)
        self.place = Place(**saved["place"]) if saved else Place()
        began = time.monotonic() if began is None else began
        self.run = run = begin_run(out, config, say, began - self.place.seconds)

        self.data = TrainingData(data, network, run)
        if saved and saved["content"] != self.data.content:
            raise GhmdetError(
                f"cannot resume {out} on other data: it was trained on {saved['content']}, {data} has"
                f" {self.data.content}"
            )
        self.model = model = RetinaNet(network, self.data.train.classes, losses)
        run.say(f"resuming {out / 'last.pt'}" if saved else load_weights(model, config.weights))
        run.say(f"{config.model} on {run.device.reason}; {run.accelerator.num_processes} process(es)")
        model.to(run.accelerator.device).to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(
            model,
            model.backbone,
            lr=config.lr,
            backbone_lr=1.0 if config.weights == "none" else config.backbone_lr,
            weight_decay=config.weight_decay,
        )
        self.average = WeightAverage(model, config.ema)
        self.spectrum = SpectrumLog(model, out / "spectrum.npz", main=run.main)
        self.epochs: int | None = self.arguments["epochs"]
        """None where only the budget ends the run."""
        self.budget = Budget(
            seconds_of(config.budget) if config.budget else math.inf,
            run.began,
            # On a CPU reading the loss costs nothing, so a bad one is met at once; on a GPU it makes it wait.
            interval=1 if run.device.type == "cpu" else 20,
            batches=math.ceil(len(self.data.val.records) / config.batch_size),
            reports=report is not None,
            agree=broadcast_object_list,
        )
        if saved:
            try:
                self._restore(saved)
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                raise other_version(out) from error
        elif run.seconds > self.budget.seconds - END:
            raise GhmdetError(
                f"--budget {config.budget}: reading the data and the model alone took {in_words(run.seconds)}:"
                " give more time"
            )
        self.parallel, self.optimizer = run.accelerator.prepare(model, self.optimizer)
        self.log = LossLog(run, self.data.file_names)
        self.validation = Validation(
            run, self.average.model, self.data.val, self.data.train.category_ids, self.log
        )
        self.saved = time.monotonic()

        self.report, self.board = report, None
        if run.main:
            if not saved:
                write_json(out / "run.json", provenance(self.arguments))
            (out / DIVERGED).unlink(missing_ok=True)
            self.log.start(self.place.step)
            self.validation.log.start(self.place.step)
            self.spectrum.start(self.place.epoch)
            if config.tensorboard:
                from ghmdet.engine.board import Board

                self.board = Board(out / "tensorboard", self.data.val, figures or {}, self.place.step)
                self.log.also = self.validation.log.also = self.board.add_row
                self.validation.board = self.board

    def fit(self) -> Place:
        """Train to the end of the epochs or of the budget, or until the AP has not risen for `patience` epochs."""
        run, config, place, data = self.run, self.run.config, self.place, self.data
        board = contextlib.closing(self.board) if self.board else contextlib.nullcontext()
        with StopSignal() as stop, progress_bar(show=run.main) as show, board:
            ended = time.monotonic()
            while True:
                if self._validation_due():
                    show(self.progress, "validating")
                    self.validation.validate(place, self.epochs)
                    self._save()
                    self.budget.validated(time.monotonic() - ended)
                if self.progress >= 1 or self._gave_up():
                    break
                self.parallel.train()
                data.loader.set_epoch(place.epoch, start_batch=place.batch)
                self.budget.begin(place.step)
                for images, targets in data.loader:
                    if place.batch == data.steps_per_epoch * config.accumulate:
                        break  # the batches that do not fill a step
                    if place.epoch == place.batch == 0 and run.main:
                        draw_batch(run.folder / "batch.jpg", images, targets, data.train.classes)
                    if self._step(images, targets):
                        show(self.progress, f"epoch {place.epoch + 1}, step {place.step}")
                        if len(self.log.unread) >= self.budget.interval * config.accumulate:
                            self._look(stop)
                        if self.progress >= 1:
                            break
                self.log.read()  # a run that diverged ends here
                seen = self.spectrum.end_epoch()
                if self.board:
                    self.board.add_spectrum(seen, place.step)
                place.epoch, place.batch = place.epoch + 1, 0
                ended = time.monotonic()
                self._look(stop)
                self._save()
                self.budget.look(place.step)
        self._say_the_end()
        return place

    @property
    def progress(self) -> float:
        """How far the run is, 1 at its end: by steps or by the clock, whichever is further."""
        steps = self.epochs and self.epochs * self.data.steps_per_epoch
        return max(self.place.step / steps if steps else 0.0, self.budget.share)

    def _step(self, images: list[Tensor], targets: list[dict[str, Any]]) -> bool:
        """Forward and backward of one batch; whether it completed an optimizer step."""
        accelerator, config, place = self.run.accelerator, self.run.config, self.place
        place.batch += 1
        stepping = place.batch % config.accumulate == 0
        with contextlib.nullcontext() if stepping else accelerator.no_sync(self.parallel):
            losses = self.parallel(
                [image.to(accelerator.device, non_blocking=True) for image in images],
                [
                    {name: target[name].to(accelerator.device) for name in ("boxes", "labels")}
                    for target in targets
                ],
            )
            loss = torch.stack([losses[name] for name in LOSSES]).sum()
            accelerator.backward(loss / config.accumulate)
        steps = self.epochs * self.data.steps_per_epoch if self.epochs else COURSE
        position = max(place.step if self.epochs else 0, self.budget.share * steps)
        rate = set_rate(self.optimizer, warmup_cosine(position, steps, config.warmup))
        norm = loss.new_zeros(())
        if stepping:
            accelerator.unscale_gradients()
            norm = clip_gradients(self.model.parameters(), config.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.average.update(self.model)
            place.step += 1
        values = torch.stack([loss, *(losses[name] for name in LOSSES), norm]).detach().float()
        row = {"step": place.step + (not stepping), "epoch": place.epoch + 1, "lr": rate}
        self.log.keep(row, values, [int(target["image_id"]) for target in targets])
        return stepping

    def _validation_due(self) -> bool:
        place = self.place
        every = self.run.config.val_every or (validate_every(self.epochs) if self.epochs else None)
        if place.batch or place.epoch == place.validated_epoch:
            return False
        if self.progress >= 1:
            return True
        return place.epoch - place.validated_epoch >= every if every else self.budget.validation_due

    def _gave_up(self) -> bool:
        stale, patience = self.place.validated_epoch - self.place.best_epoch, self.run.config.patience
        if not patience or stale < patience:
            return False
        self.run.say(f"stopping early: no better AP than epoch {self.place.best_epoch}'s")
        return True

    def _look(self, stop: StopSignal) -> None:
        """Read the losses and the clock; save where it is time, and stop where a signal asked for it."""
        due = time.monotonic() - self.saved > 60 * self.run.config.checkpoint_minutes
        due, stopping = self.log.read(due, stop.asked)
        self.budget.look(self.place.step)
        if due or stopping:
            self._save()
        if stopping:
            raise KeyboardInterrupt(
                f"stopped in epoch {self.place.epoch + 1} after step {self.place.step}; the same command with --resume"
                " continues"
            )

    def _say_the_end(self) -> None:
        run, place = self.run, self.place
        run.say(f"best AP {place.best_AP:.3f} after epoch {place.best_epoch}: {run.folder / 'best.pt'}")
        if self.report and not self.budget.can_report:
            run.say(f"no report, to end within the budget: ghmdet report {run.folder}")
        elif self.report and run.main:
            self.report(run.folder)
        if run.config.budget:
            late = ", too late" if run.seconds > self.budget.seconds else ""
            run.say(
                f"--budget {run.config.budget}: ended after {in_words(run.seconds)}{late}, and"
                f" {place.step / self.data.steps_per_epoch:.3g} epochs"
            )

    def _save(self) -> None:
        self.log.read()
        self.place.seconds = self.run.seconds
        scaler = self.run.accelerator.scaler
        state = {
            "arguments": self.arguments,
            "content": self.data.content,
            "place": dataclasses.asdict(self.place),
            "budget": self.budget.state_dict(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "spectrum": self.spectrum.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "rng": torch.get_rng_state(),
        }
        if self.run.main:
            save_checkpoint(
                self.run.folder / "last.pt", self.validation.detector_state() | {"training": state}
            )
        self.saved = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        self.budget.load_state_dict(state.get("budget", {}))
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.spectrum.load_state_dict(state.get("spectrum", {}))
        if self.run.accelerator.scaler and state["scaler"]:
            self.run.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])


def _checked(out: Path, config: TrainConfig) -> tuple[ModelConfig, LossConfig]:
    """What the detector and its losses are made of; GhmdetError for a setting that cannot be used here."""
    network, losses = config.network(), config.losses()
    if config.weights not in ("auto", "none") and not Path(config.weights).is_file():
        raise unknown_name("weights", config.weights, ("auto", "none", "the path of a checkpoint"))
    if out.exists() and not out.is_dir():
        raise GhmdetError(f"--out {out} is a file: give a folder")
    if config.tensorboard and find_spec("tensorboard") is None:
        raise GhmdetError(
            "--tensorboard needs a package that is not installed: pip install 'ghmdet[tensorboard]'"
        )
    return network, losses
