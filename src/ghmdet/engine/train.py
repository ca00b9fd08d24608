"""The training engine, top to bottom: data, model, optimizer, steps, validation, checkpoints."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from ghmdet.data import DetectionData
from ghmdet.draw import draw_batch, undrawable
from ghmdet.engine import symmetry
from ghmdet.engine.budget import END, Budget, in_words
from ghmdet.engine.checkpoint import Progress, drop_previous, restore, run_arguments, save_checkpoint
from ghmdet.engine.context import RunContext, begin_run
from ghmdet.engine.curves import draw_curves
from ghmdet.engine.detect import detect
from ghmdet.engine.device import peak_memory
from ghmdet.engine.loss_log import LOSSES, LossLog, NonFiniteLoss
from ghmdet.engine.observation import SpectrumLog
from ghmdet.engine.optim import WeightAverage, make_optimizer, set_rate, warmup_cosine, warmup_drops
from ghmdet.engine.run_folder import (
    DIVERGED,
    CsvLog,
    default_folder,
    note_changed_data,
    provenance,
    write_json,
)
from ghmdet.engine.settings import TrainConfig, seconds_of, validate_every
from ghmdet.engine.training_data import TrainingData
from ghmdet.errors import GhmdetError
from ghmdet.evaluation.score import Metrics, score
from ghmdet.files import hold, write_atomic
from ghmdet.models import ModelConfig, RetinaNet, load_weights, model_state
from ghmdet.models.synced_norm import synchronise
from ghmdet.progress import progress_bar
from ghmdet.signals import StopSignal
from ghmdet.words import many

if TYPE_CHECKING:
    from ghmdet.engine.board import Board, Draw

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CONTINUES = "the same command with --resume continues"
LONG = 30 * 60  # seconds to go from which a shorter training is mentioned
AGAIN, WRONG = 5, 60  # how many times the steps until the end is foretold again, if it is so many seconds off
METRICS_COLUMNS = ("step", "epoch", "seconds", "memory", *SCORES)


def train(
    data: Path | str,
    out: Path | str | None = None,
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    accept_changed_data: bool = False,
    say: Callable[[str], None] = print,
    started_at: float | None = None,
    figures: Mapping[str, Draw] | None = None,
    make_report: Callable[[Path], object] | None = None,
) -> Progress:
    """Train a detector on `data` and leave a run folder at `out`; returns how far it came and the best AP.

    The folder holds `best.pt` (the best averaged weights), `last.pt` (all that resuming needs), `log.csv` (a row a
    step), `metrics.csv` (a row a validation: seconds so far, peak memory in MiB, AP), `metrics.json` (the best one),
    `spectrum.npz` (what the steps saw, an epoch a row), `curves.png`, `batch.jpg`, `run.json`; `diverged.txt` says so
    of a run whose loss did not stay finite.

    Args:
        data: a data set that `ghmdet.data.read_data` reads.
        out: the run's folder; refused if it holds a run, unless `resume`. By default runs/NAME-N for a data set NAME:
            a new one, or the last one there to resume.
        config: the settings.
        resume: continue the run in `out` exactly where its `last.pt` stands, or begin it if there is none.
        accept_changed_data: resume also where pictures or labels are not as they were; `run.json` says so then.
        say: takes each line meant for the user.
        started_at: the reading of `time.monotonic()` from which time counts; by default now.
        figures: by name, what draws the spectrum of an epoch for TensorBoard, if the run writes there.
        make_report: called with the folder at the end, if the budget has time for it: about two validations.

    Raises:
        GhmdetError: a setting, the data or a checkpoint that cannot be used, before any work starts.
        NonFiniteLoss: training diverged; `last.pt` and `best.pt` are those of before.
        KeyboardInterrupt: stopped by a signal, after `last.pt` was written.
    """
    out = default_folder(Path(data), resume=resume) if out is None else Path(out)
    with hold(out) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
        run = begin_run(
            data,
            out,
            config or TrainConfig(),
            resume=resume,
            say=say,
            started_at=started_at,
            accept_changed_data=accept_changed_data,
        )
        return _run(Trainer(run, figures, reports=make_report is not None), make_report)


def _run(trainer: Trainer, make_report: Callable[[Path], object] | None) -> Progress:
    """Train to the end, and make the report if there is time for it."""
    run = trainer.run
    try:
        progress = trainer.fit()
    except NonFiniteLoss as error:
        write_atomic(run.folder / DIVERGED, f"{error}\n")
        raise
    if run.main:
        drop_previous(run.folder)
    run.say(f"best AP {progress.best_AP:.3f} after epoch {progress.best_epoch}: {run.folder / 'best.pt'}")
    command = f"ghmdet report {shlex.quote(str(run.folder))}"
    if make_report and not trainer.budget.can_report:
        run.say(f"no report, to end within the budget: {command}")
    elif make_report and run.main:
        try:
            make_report(run.folder)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped in the report; to make it: {command}") from None
    if run.config.budget:
        late = ", too late" if run.seconds > trainer.budget.seconds else ""
        ended = f"ended after {in_words(run.seconds)}{late}, in epoch {progress.epoch}"
        run.say(f"--budget {run.config.budget}: {ended}")
    return progress


class Trainer:
    """One run: `__init__` builds its parts in the order in which data flows, `fit` is the loop.

    figures: as of `train`. reports: whether a report will follow, for which a budget sets time aside.
    """

    def __init__(
        self, run: RunContext, figures: Mapping[str, Draw] | None = None, *, reports: bool = False
    ) -> None:
        run.config.network(), run.config.losses()  # a wrong name is an error before the data is read
        self.data = TrainingData(run)
        config = self.data.config
        self.run = run = replace(run, config=config)
        network, losses = config.network(), config.losses()
        if run.saved:  # a preset may have become another since
            network = ModelConfig.from_dict(run.saved["network"])
        self.model = model = RetinaNet(network, self.data.train.classes, losses)
        run.say(f"resuming {run.saved['file']}" if run.saved else load_weights(model, config.weights))
        processes = many(run.accelerator.num_processes, "process/processes")
        run.say(f"{config.model} on {run.device.reason}; {processes}")
        if run.accelerator.num_processes > 1 and not model.backbone.frozen:
            synchronise(model.backbone, run.device.type)
        model.to(run.accelerator.device).to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(
            model,
            model.backbone,
            lr=config.lr,
            backbone_lr=1.0 if config.weights == "none" else config.backbone_lr,
            weight_decay=config.weight_decay,
            name=config.optimizer,
        )
        self.average = WeightAverage(model, config.ema)
        self.spectrum = SpectrumLog(model, run.folder / "spectrum.npz", main=run.main)
        self.budget = Budget(
            seconds_of(config.budget) if config.budget else math.inf,
            elapsed=lambda: run.seconds,
            # On a CPU reading the loss costs nothing, so a bad one is met at once; on a GPU it makes it wait.
            interval=1 if run.device.type == "cpu" else 20,
            batches=math.ceil(len(self.data.val.records) / config.batch_size),
            reports=reports,
            agree=broadcast_object_list,
        )
        if run.seconds > self.budget.seconds - END and not run.saved:
            raise GhmdetError(
                f"--budget {config.budget}: reading the data and the model alone took {in_words(run.seconds)}:"
                " give more time"
            )
        self.arguments = run_arguments(run.data, run.folder, config)
        self.epochs = config.epochs
        """None where only the budget ends the run."""
        self.course = self.epochs * self.data.steps_per_epoch if self.epochs else 1000
        """Steps of the learning rate's course; without epochs the clock says how far along it the run is."""
        self.progress = Progress(**run.saved["place"]) if run.saved else Progress()
        if self.progress.vflip:
            self.data.turn(self.progress.vflip)
        self.parts: dict[str, Any] = {
            "model": model,
            "average": self.average,
            "optimizer": self.optimizer,
            "spectrum": self.spectrum,
            "budget": self.budget,
        }
        if run.accelerator.scaler:
            self.parts["scaler"] = run.accelerator.scaler
        if run.saved:
            restore(self.parts, run.saved, run.folder)
        self.parallel, self.optimizer = run.accelerator.prepare(model, self.optimizer)
        self.losses = LossLog(run, self.data.file_names)
        self.validations = CsvLog(run.folder / "metrics.csv", METRICS_COLUMNS)
        self.saved_at = time.monotonic()
        self.foretold: list[tuple[int, float]] = []  # after which step which end, in seconds of the run
        self.board: Board | None = None
        if run.main:
            self._open_files(figures or {})

    def _open_files(self, figures: Mapping[str, Draw]) -> None:
        run, step = self.run, self.progress.step
        run.say(f"the run's folder is {run.folder}")
        if unreadable := undrawable(self.data.train.classes):
            run.say(unreadable)
        if not run.saved:
            labels = {"training_boxes": self.data.train.boxes_per_class()}
            arguments = self.arguments | {"data": str(run.data.absolute())}  # found again from any folder
            write_json(run.folder / "run.json", provenance(arguments) | labels)
        if self.data.changed:
            note_changed_data(run.folder, step, self.data.changed)
            run.say(f"Warning: the data is not as it was: {'; '.join(self.data.changed)}")
        (run.folder / DIVERGED).unlink(missing_ok=True)
        lost = self.losses.cut_back(step), self.validations.cut_back(self.progress.validated_epoch, "epoch")
        for what in filter(None, lost):
            run.say(f"Warning: {what}")
        self.spectrum.continue_from(self.progress.epoch)
        if run.config.tensorboard:
            from ghmdet.engine.board import Board

            self.board = Board(run.folder / "tensorboard", self.data.val, figures, step)
            self.losses.also = self.validations.also = self.board.add_row

    def fit(self) -> Progress:
        """Train to the end of the epochs or of the budget, or until the AP has not risen for `patience` epochs."""
        run, config, progress, data = self.run, self.run.config, self.progress, self.data
        begun = progress.step, progress.validated_epoch
        board = contextlib.closing(self.board) if self.board else contextlib.nullcontext()
        with StopSignal() as stop, progress_bar(show=run.main, say=run.say) as show, board:
            if config.budget and not self.budget.validations:
                self._rehearse()
            ended = time.monotonic()
            while True:
                if self._validation_due():
                    show(self.position / self.course, "validating")
                    self._validate(stop)
                    self._save()
                    self.budget.validated(time.monotonic() - ended)
                if (self.over and not progress.batch) or self._gave_up():
                    break
                self.parallel.train()
                data.loader.batch_sampler.set_epoch(progress.epoch, start_batch=progress.batch)
                self.budget.continue_from(progress.step)
                for images, targets in data.batches():
                    if progress.batch >= data.steps_per_epoch * config.accumulate or self.over:
                        break  # left are batches that do not fill a step, or it was stopped after the last one
                    if progress.epoch == progress.batch == 0 and run.main:
                        draw_batch(run.folder / "batch.jpg", images, targets, data.train.classes)
                    if self._step(images, targets):
                        show(self.position / self.course, f"epoch {progress.epoch + 1}, step {progress.step}")
                        if len(self.losses.unread) >= self.budget.interval * config.accumulate:
                            self._look(stop)
                        if self.over:
                            break
                self.losses.read()  # a run that diverged ends here
                seen = self.spectrum.end_epoch()
                if self.board:
                    self.board.add_spectrum(seen, progress.step)
                progress.epoch, progress.batch = progress.epoch + 1, 0
                ended = time.monotonic()
                self._look(stop)
                self._save()
        if run.saved and begun == (progress.step, progress.validated_epoch):
            best = shlex.quote(str(run.folder / "best.pt"))
            run.say(f"this run was finished already; to train on, begin another: --weights {best} --epochs N")
        return progress

    @property
    def position(self) -> float:
        """How far along its course the run is: by steps or by the clock, whichever is further."""
        return max(self.progress.step if self.epochs else 0, self.budget.share * self.course)

    @property
    def rate(self) -> float:
        """The factor of the learning rate now."""
        place = self.position, self.course, self.run.config.warmup
        if drops := self.run.config.drops:
            return warmup_drops(*place, [epoch * self.data.steps_per_epoch for epoch in drops])
        return warmup_cosine(*place)

    @property
    def over(self) -> bool:
        """Whether it has come to the end."""
        return self.position >= self.course

    def _step(self, images: list[Tensor], targets: list[dict[str, Any]]) -> bool:
        """Forward and backward of one batch; whether it completed an optimizer step."""
        accelerator, config, progress = self.run.accelerator, self.run.config, self.progress
        progress.batch += 1
        stepping = progress.batch % config.accumulate == 0
        with contextlib.nullcontext() if stepping else accelerator.no_sync(self.parallel):
            losses = self.parallel(
                [image.to(accelerator.device, non_blocking=True) for image in images],
                [{name: target[name] for name in ("boxes", "labels")} for target in targets],
            )
            loss = torch.stack([losses[name] for name in LOSSES]).sum()
            accelerator.backward(loss / config.accumulate)
        rate = set_rate(self.optimizer, self.rate)
        norm = loss.new_zeros(())
        if stepping:
            norm = accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.average.update(self.model)
            progress.step += 1
        values = torch.stack([loss, *(losses[name] for name in LOSSES), norm]).detach().float()
        row = {"step": progress.step + (not stepping), "epoch": progress.epoch + 1, "lr": rate}
        self.losses.keep(row, values, [int(target["image_id"]) for target in targets])
        return stepping

    @property
    def _every(self) -> int | None:
        """Epochs between two validations; None where the budget says when one is due."""
        return self.run.config.val_every or (validate_every(self.epochs) if self.epochs else None)

    def _validation_due(self) -> bool:
        progress, every = self.progress, self._every
        if progress.batch or progress.epoch == progress.validated_epoch:
            return False
        if self.over:
            return True
        return progress.epoch - progress.validated_epoch >= every if every else self.budget.validation_due

    def _validate(self, stop: StopSignal) -> None:
        """Score the averaged weights and keep the best: each rank detects on its share, rank 0 scores and writes."""
        run, progress, folder, val = self.run, self.progress, self.run.folder, self.data.val
        try:
            looked = partial(self._end_validation, stop)
            results = gather_object(self._detect(val, advance=looked))
            found: Metrics = broadcast_object_list([score(val.to_coco(), results) if run.main else None])[0]
        except RuntimeError:  # as of a lost connection, where another rank was asked to stop too and is gone
            self._end_validation(stop, 0)
            raise
        AP = found.AP or 0.0
        progress.seconds, progress.validated_epoch = run.seconds, progress.epoch
        if better := progress.best_AP < AP:
            progress.best_AP, progress.best_epoch = AP, progress.epoch
        if run.main:
            if better:
                save_checkpoint(folder / "best.pt", self._detector_state())
                found.save_json(folder / "metrics.json")
            seconds, memory = round(progress.seconds, 1), peak_memory(run.device.type)
            row: dict[str, Any] = {"step": progress.step, "epoch": progress.epoch, "seconds": seconds}
            row["memory"] = None if memory is None else round(memory)
            self.validations.append(row | {name: found.to_dict()[name] for name in SCORES})
            draw_curves(folder)
        if self.board:
            self.board.add_predictions(results, progress.step)
        run.say(
            f"epoch {progress.epoch}{f'/{self.epochs}' if self.epochs else ''}: AP {AP:.3f}, AP50 {found.AP50 or 0:.3f}"
            f" (best {progress.best_AP:.3f}), {progress.seconds / 60:.1f} min"
        )
        known = run.config.augment.vflip if progress.vflip is None else progress.vflip
        if known is None and (found.AP50 or 0) >= symmetry.LEARNT and not self.over:
            turned = partial(self._detect, advance=looked, upside_down=True)
            if answer := symmetry.ask(val, results, turned, main=run.main):
                progress.vflip = answer.vflip
                self.data.turn(answer.vflip)
                run.say(str(answer))

    def _rehearse(self) -> None:
        """Time some batches of the validation, which a budget shorter than an epoch makes only at its end."""
        val, few = self.data.val, min(self.budget.batches, 3)
        first = val.records.take(np.arange(min(len(val.records), few * self.run.config.batch_size)))
        began = time.monotonic()
        with torch.random.fork_rng(devices=[]):  # with a budget the numbers are those of the epochs alone
            self._detect(replace(val, records=first))
        self.budget.batch = (time.monotonic() - began) / few

    def _detect(self, part: DetectionData, **how: Any) -> list[dict[str, Any]]:
        """What the averaged weights find in this rank's share of the pictures, `how` as of `detect`."""
        return detect(
            self.average.model,
            part,
            device=self.run.device,
            batch_size=self.run.config.batch_size,
            workers=self.run.workers,
            rank=self.run.accelerator.process_index,
            world_size=self.run.accelerator.num_processes,
            **how,
        )

    def _end_validation(self, stop: StopSignal, pictures: int) -> None:
        if stop.asked:  # the epoch was saved
            raise KeyboardInterrupt(f"stopped in the validation of epoch {self.progress.epoch}; {CONTINUES}")

    def _gave_up(self) -> bool:
        stale, patience = self.progress.validated_epoch - self.progress.best_epoch, self.run.config.patience
        if not patience or stale < patience:
            return False
        self.run.say(f"stopping early: no better AP than epoch {self.progress.best_epoch}'s")
        return True

    def _look(self, stop: StopSignal) -> None:
        """Read the losses and the clock; save where it is time, and stop where a signal asked for it."""
        due = time.monotonic() - self.saved_at > 60 * self.run.config.checkpoint_minutes
        due, stopping = self.losses.read(due, stop.asked)
        self.budget.look(self.progress.step)
        if not self.run.config.budget and self.budget.steady and len(self.foretold) < 2:
            self._foretell()
        if due or stopping:
            self._save()
        if stopping:
            epoch, step = self.progress.epoch + 1, self.progress.step
            raise KeyboardInterrupt(f"stopped in epoch {epoch} after step {step}; {CONTINUES}")

    def _foretell(self) -> None:
        """Say how long the run will take and when it is first judged; once more later where that was wrong."""
        step, before, left = self.progress.step, self.foretold[:1], self.course - self.progress.step
        if not left or (before and (step < AGAIN * before[0][0] or not self.budget.validations)):
            return
        every = self._every or 1
        validations = math.ceil(left / self.data.steps_per_epoch / every)
        seconds = left * self.budget.pace + validations * self.budget.validation
        self.foretold.append((step, self.run.seconds + seconds))
        if before and abs(before[0][1] - self.foretold[1][1]) < max(WRONG, seconds / 4):
            return
        less = "; for less, stop it and begin another run with a time: --budget 20m" if seconds > LONG else ""
        self.run.say(
            f"about {in_words(seconds)} to go: {many(left, 'step')} of {in_words(self.budget.pace)}, AP after every"
            f" {'epoch' if every == 1 else f'{every} epochs'}{less}"
        )

    def _save(self) -> None:
        self.losses.read()
        self.progress.seconds = self.run.seconds
        about = {"arguments": self.arguments, "place": asdict(self.progress), "rng": torch.get_rng_state()}
        prints = {"fingerprints": self.data.fingerprints, "learnt": self.data.learnt}
        state = about | prints | {name: part.state_dict() for name, part in self.parts.items()}
        if self.run.main:
            whole = self._detector_state() | {"training": state}
            save_checkpoint(self.run.folder / "last.pt", whole, keep=True)
        self.saved_at = time.monotonic()

    def _detector_state(self) -> dict[str, Any]:
        return model_state(self.average.model) | {"category_ids": list(self.data.train.category_ids)}
