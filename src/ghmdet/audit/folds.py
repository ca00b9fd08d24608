"""Detectors that did not learn the labels they judge: each part of a split is judged by a run on the other parts."""

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ghmdet.audit.suspicion import Judged, judge_all
from ghmdet.compare.arms import kept
from ghmdet.compare.plan import Run
from ghmdet.compare.run import foretell, train_run
from ghmdet.data import DetectionData
from ghmdet.data.share import folds
from ghmdet.engine.detect import Detector
from ghmdet.engine.fitting import fit_to_data
from ghmdet.engine.run_folder import DIVERGED, read_json, read_rows, write_json
from ghmdet.engine.settings import TrainConfig, seconds_of
from ghmdet.errors import DataError, GhmdetError
from ghmdet.progress import counting, progress_bar
from ghmdet.signals import StopSignal

AT_THE_END = 10**6  # epochs between two validations: no checkpoint is chosen on what is judged


@dataclass(frozen=True)
class Fold(Run):
    """The run that judges one part: a `ghmdet train` command of its own."""

    part: DetectionData

    @property
    def over(self) -> bool:
        """Whether it was trained to its end; raises GhmdetError where it diverged."""
        diverged = self.out / DIVERGED
        if diverged.exists():
            why = diverged.read_text(encoding="utf-8").strip()
            raise GhmdetError(f"{self.out} diverged: {why}: give a lower --lr and another --out")
        return bool(read_rows(self.out / "metrics.csv"))

    def __str__(self) -> str:
        return self.arm


def plan(
    data: DetectionData, out: Path, number: int, config: TrainConfig, say: Callable[[str], None]
) -> list[Fold]:
    """The runs of an audit below `out`, and the annotations that each is trained on, written where they are not yet.

    Pictures that look alike are in one part. A budget is shared evenly.

    Raises:
        GhmdetError: `out` holds an audit of other labels or settings, or something else.
        DataError: too few pictures, or one that cannot be read.
    """
    if number < 2:
        raise GhmdetError(f"--folds {number}: give 2 or more")
    config = fit_to_data(config, data, say)
    if config.budget:
        config = replace(config, budget=f"{seconds_of(config.budget) / number:g}s")
    config = replace(config, train_split="train", val_split="val", val_every=AT_THE_END)
    file = out / "folds" / "plan.json"
    now, before = {"folds": number} | kept(config), read_json(file)
    there = kept(TrainConfig()) | before if before else now
    for name, value in now.items():
        if there.get(name) != value:
            other = f"{name} {value} (there {there.get(name)})"
            raise GhmdetError(f"{out} holds an audit with other settings: {other}: give another --out")
    halves = []
    for i, chosen in enumerate(folds(data, number), start=1):
        others = np.setdiff1d(np.arange(len(data.records)), chosen)
        part = replace(data, records=data.records.take(chosen), split="val", problems=())
        rest = replace(data, records=data.records.take(others), split="train", problems=())
        halves.append((rest, part))
        for split, lacks in ((rest, "train on"), (part, "judge")):
            if split.records.crowd.all():
                raise DataError(
                    f"{data.root}: fold {i} has no boxes to {lacks}: too few pictures have labels for"
                    f" {number} folds: give fewer --folds, or a --checkpoint of other pictures"
                )
    runs = []
    for i, both in enumerate(halves, start=1):
        folder = out / "folds" / f"fold{i}"
        for split in both:
            content, labels = split.to_coco(absolute=True), folder / f"instances_{split.split}.json"
            if before is None:
                write_json(labels, content)
            elif read_json(labels) != content:
                raise GhmdetError(f"{labels}: the pictures or labels have changed since: give another --out")
        runs.append(Fold(f"fold {i}", folder, out / "runs" / f"fold{i}", config, False, both[1]))
    write_json(file, now)
    return runs


def commands(runs: list[Fold]) -> list[str]:
    """The training commands that are not over, in any order."""
    return [shlex.join(["ghmdet", *run.command]) for run in runs if not run.over]


def train_all(runs: list[Fold], say: Callable[[str], None]) -> None:
    """Train each run that is not over; raises GhmdetError if one fails, KeyboardInterrupt if a signal stops it."""
    with StopSignal() as stop, progress_bar(show=True) as show:
        for done, run in enumerate(runs):
            if run.over:
                continue
            began = time.monotonic()
            more = f", {len(runs)} folds in all; for less, begin another audit with a time: --budget 20m"
            heard = partial(foretell, run, say, more=more)
            reason = train_run(run, stop, partial(show, done / len(runs)), heard)
            if stop.asked:
                raise KeyboardInterrupt(f"stopped in {run}; the same command continues there")
            if reason or not run.over:
                raise GhmdetError(f"{run.out}: {reason or 'its training did not end'}")
            say(f"{run} of {len(runs)} trained in {(time.monotonic() - began) / 60:.1f} min: {run.out}")


def agreement(runs: list[Fold]) -> float:
    """The least AP50 of any fold's detector on the labels that it judges."""
    return min(float(read_rows(run.out / "metrics.csv")[-1]["AP50"] or 0) for run in runs)


def judge_folds(runs: list[Fold], device: str) -> Iterator[tuple[int, Judged]]:
    """What each run's detector sees of the part that it did not learn (see `judge_all`)."""
    with counting("pictures", sum(len(run.part.records) for run in runs)) as advance:
        for run in runs:
            detector = Detector.load(run.out / "last.pt", device=device, precision="fp32")
            yield from judge_all(detector, run.part, advance)
