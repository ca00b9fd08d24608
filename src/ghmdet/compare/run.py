"""`ghmdet compare`: train several arms alike, judge them alike, and say what differs beyond chance."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ghmdet.compare.arms import read_arms
from ghmdet.compare.plan import Outcome, Plan, Run
from ghmdet.compare.result import Comparison, compare_runs
from ghmdet.data import read_data, require_images
from ghmdet.engine.loss_log import LOG_COLUMNS
from ghmdet.engine.progress import StopSignal
from ghmdet.engine.settings import TrainConfig
from ghmdet.errors import GhmdetError
from ghmdet.models import LossConfig, preset


def plan_comparison(
    data: Path | str,
    out: Path | str,
    base: TrainConfig,
    *,
    arms: str,
    seeds: int,
    weights_grid: str,
    tune_epochs: int | None = None,
) -> Plan:
    """The plan of a comparison, kept in `out`; `compare` says what each argument is.

    Raises:
        GhmdetError: an option, an arm or the data that cannot be used, or a folder that holds something else.
    """
    for name, value in (("seeds", seeds), ("tune-epochs", tune_epochs)):
        if value is not None and value < 1:
            raise GhmdetError(f"--{name} {value}: give a whole number of at least 1")
    if base.cls_loss != TrainConfig.cls_loss:
        raise GhmdetError(
            f"--cls-loss {base.cls_loss}: the arms are the losses: give --arms {base.cls_loss},..."
        )
    if base.val_every is not None or base.patience:
        raise GhmdetError(
            "--val-every and --patience choose among a run's epochs: a comparison judges the last one of every run"
        )
    if base.budget is not None:
        raise GhmdetError(
            f"--budget {base.budget}: as many epochs as fit are not the same for all arms: give --epochs"
        )
    plan = Plan(
        data=Path(data),
        out=Path(out),
        base=base,
        arms=tuple(read_arms(arms, base)),
        seeds=seeds,
        grid=_grid(weights_grid),
        tune_epochs=tune_epochs,
    )
    for arm in plan.arms:
        config = arm.config
        preset(
            config.model, size=config.size, anchor_base=config.anchor_base, anchor_ratios=config.anchor_ratios
        )
        LossConfig(config.cls_loss, config.box_loss, config.cls_weight, config.box_weight)
    train = read_data(plan.data, base.train_split)
    require_images(train)
    plan.keep(train)
    return plan


def _grid(given: str) -> tuple[float, ...] | None:
    """
    >>> _grid("0.2,0.1"), _grid("none")
    ((0.1, 0.2), None)
    """
    if given == "none":
        return None
    try:
        weights = sorted({float(weight) for weight in given.split(",")})
    except ValueError:
        weights = []
    if not weights or not 0 < weights[0] <= weights[-1] < float("inf"):
        raise GhmdetError(f"--weights-grid {given}: give weights above 0 with commas between them, or none")
    return tuple(weights)


def missing_commands(plan: Plan) -> list[str]:
    """The commands that can be run now, in any order and on any host that sees the same folders; none when all is done.

    The final runs follow once the grid of their arm is done: list again then.
    """
    return [shlex.join(["ghmdet", *run.command]) for arm in plan.arms for run in plan.missing(arm)]


def compare(
    data: Path,
    /,
    *,
    out: Path,
    arms: str = "ce,ohem,focal,ghm",
    seeds: int = 3,
    split: str = "val",
    weights_grid: str = "0.025,0.05,0.1,0.2,0.4",
    tune_epochs: int | None = None,
    list_commands: Annotated[bool, Parameter(name="--list", negative=())] = False,
    config: Annotated[TrainConfig | None, Parameter(name="*")] = None,
    say: Callable[[str], None] = print,
) -> None:
    """Train several losses alike on your data and say which are better beyond chance.

    Interrupted, the same command continues; finished runs are never repeated. docs/compare.md says how it judges.

    Args:
        data: Folder of the data set, or a COCO annotations file.
        out: Folder for the comparison: its runs, comparison.json, comparison.md and pictures.
        arms: Class losses with commas between them (ghm is ghm-c), or a YAML file of settings by arm. Differences are
            taken from the first.
        seeds: Runs of each arm, with seeds from `--seed` on; the same for every arm.
        split: Part of the data set that the arms are judged on.
        weights_grid: Weights of the class loss among which each arm chooses on held-out training pictures; none takes
            each loss's own weight.
        tune_epochs: Epochs of a run of the grid; by default as many as of the others.
        list_commands: Only print the training commands that can be run now, one a line, for other hosts; nothing when
            all are done.
        config: The settings of all arms alike.
        say: Takes each line meant for the user.

    Raises:
        GhmdetError: an option, an arm or the data that cannot be used; every arm failed.
        KeyboardInterrupt: stopped by a signal; the run of the moment is saved.
    """
    plan = plan_comparison(
        data,
        out,
        config or TrainConfig(),
        arms=arms,
        seeds=seeds,
        weights_grid=weights_grid,
        tune_epochs=tune_epochs,
    )
    if list_commands:
        for command in missing_commands(plan):
            say(command)
    else:
        carry_out(plan, split, say)


def carry_out(plan: Plan, split: str = "val", say: Callable[[str], None] = print) -> Comparison:
    """Make the missing runs one after another, judge the last weights of the final ones, and write the result.

    Args:
        plan: from `plan_comparison`.
        split: the part of the data that the arms are judged on.
        say: takes each line meant for the user.

    Raises:
        GhmdetError: every arm failed; the first reason.
        KeyboardInterrupt: stopped by a signal; the run of the moment is saved.
    """
    judged = read_data(plan.data, split, classes=read_data(plan.data, plan.base.train_split).classes)
    if judged.split == plan.base.train_split:
        raise GhmdetError(f"--split {split}: the arms are trained on it: give another part to judge them on")
    require_images(judged)
    failed = _make_runs(plan, say)
    result = compare_runs(plan, judged, failed, say)
    say(result.table())
    say(f"written: {', '.join(map(str, result.save(plan.out)))}")
    return result


def _make_runs(plan: Plan, say: Callable[[str], None]) -> dict[str, str]:
    """Make every run that is missing; why arms failed whose runs did not merely diverge."""
    failed: dict[str, str] = {}
    with StopSignal() as stop, _View(say) as view:
        while True:
            arms = [arm for arm in plan.arms if arm.name not in failed]
            ready = [run for arm in arms for run in plan.missing(arm)]
            if not ready:
                return failed
            run, left = ready[0], len(ready) + sum(plan.later(arm) for arm in arms)
            view.begin(run, left)
            reason = _train(run, stop, view.show)
            if stop.asked:
                raise KeyboardInterrupt(f"stopped in {run}; the same command continues there")
            outcome = run.outcome()
            if outcome is None:
                outcome = Outcome(None, failed=reason or "it left no figures")
                failed[run.arm] = f"{run}: {outcome.failed}"
            view.end(run, outcome)


class _View:
    """Says which run of how many is being made and how long the rest may take."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.done, self.left = 0, 0
        self.epochs, self.minutes = 0, 0.0
        self.began = 0.0
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        terminal = sys.stderr.isatty()
        self.progress = Progress(*columns, transient=True, console=Console(stderr=True), disable=not terminal)
        self.bar = self.progress.add_task("", total=None)

    def __enter__(self) -> _View:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def begin(self, run: Run, left: int) -> None:
        """A run begins, the first of `left`."""
        self.left, self.began = left, time.monotonic()
        self.show(run)

    def show(self, run: Run) -> None:
        """Draw how far the run is."""
        about = f"{run}, epoch {_epoch(run)}/{run.config.total_epochs}{self._rest(run)}"
        self.progress.update(self.bar, completed=self.done, total=self.done + self.left, description=about)

    def end(self, run: Run, outcome: Outcome) -> None:
        """The run is over."""
        self.done, self.left = self.done + 1, self.left - 1
        place = f"[{self.done}/{self.done + self.left}] {run}"
        if outcome.AP is None:
            self.say(f"{place}: failed: {outcome.failed}")
            return
        self.epochs += run.config.total_epochs
        self.minutes += (time.monotonic() - self.began) / 60
        self.say(f"{place}: AP {outcome.AP:.3f}, {outcome.minutes:.1f} min{self._rest(run)}")

    def _rest(self, run: Run) -> str:
        if not self.epochs or not self.left:
            return ""
        minutes = self.minutes / self.epochs * run.config.total_epochs * self.left
        return f"; {self.left} more, about {minutes:.0f} min" if minutes >= 1 else f"; {self.left} more"


def _train(run: Run, stop: StopSignal, show: Callable[[Run], None]) -> str:
    """Train one run in a process of its own, which a signal lets stop where it can go on; why it failed, if it did."""
    run.out.mkdir(parents=True, exist_ok=True)
    output = run.out / "output.txt"
    with output.open("ab") as file:
        # A session of its own: the terminal's interrupt must reach it once, from here.
        process = subprocess.Popen(
            [sys.executable, "-m", "ghmdet", *run.command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            told = False
            while process.poll() is None:
                show(run)
                if stop.asked and not told:
                    process.terminate()
                    told = True
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode < 0:
        return f"ended by signal {-process.returncode}, see {output}"
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("ghmdet: ") if lines and process.returncode else ""


def _epoch(run: Run) -> str:
    """The epoch that the run is in, from the last whole row of its log."""
    log = run.out / "log.csv"
    if not log.exists():
        return "0"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 1000))
        rows = [line.split(b",") for line in file.read().split(b"\n")[:-1]]
    epoch = (
        rows[-1][LOG_COLUMNS.index("epoch")].decode() if rows and len(rows[-1]) == len(LOG_COLUMNS) else ""
    )
    return epoch if epoch.isdigit() else "0"
