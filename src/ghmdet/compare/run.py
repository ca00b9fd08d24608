"""`ghmdet compare`: train several arms alike, judge them alike, and say what differs beyond chance."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ghmdet.compare.arms import REFUSED, read_arms, settings
from ghmdet.compare.page import summary, write_comparison
from ghmdet.compare.plan import Outcome, Plan, Run
from ghmdet.compare.result import judge
from ghmdet.data import read_data, require_images
from ghmdet.data.images import require_apart
from ghmdet.engine.budget import in_words
from ghmdet.engine.device import choose_device
from ghmdet.engine.fitting import fit_to_data
from ghmdet.engine.run_folder import read_rows
from ghmdet.engine.settings import SharedConfig, TrainConfig
from ghmdet.errors import Busy, GhmdetError, PartlyDone
from ghmdet.files import hold
from ghmdet.progress import progress_bar
from ghmdet.signals import StopSignal

WAITING = "waiting for another process:"


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
    config: Annotated[SharedConfig | None, Parameter(name="*")] = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Train several losses alike on your data and say which are better beyond chance.

    Interrupted, the same command continues; finished runs are never repeated. docs/compare.md says how it judges.

    Args:
        data: Folder of the data set, or its COCO .json or YOLO data.yaml.
        out: Folder for the comparison: its runs, comparison.json, comparison.md and figures.
        arms: Class losses with commas between them (ghm is ghm-c), or a YAML file of settings by arm. Differences are
            taken from the first.
        seeds: Runs of each arm, with seeds from `--seed` on; the same for every arm.
        split: Part of the data set that the arms are judged on.
        weights_grid: Weights of the class loss with commas between them, of which each arm chooses one on held-out
            training pictures; none takes each loss's own weight.
        tune_epochs: Epochs of a run of the grid; by default as many as of the others.
        list_commands: Only print the training commands that can be run now, one a line, for other hosts; nothing when
            all are done.
        config: The settings of all arms alike.
        say: Takes each line meant for the user.

    Returns:
        What `comparison.json` holds, None if commands were printed.

    Raises:
        GhmdetError: an option, an arm or the data that cannot be used, or `out` holds something else; every arm failed.
        PartlyDone: after all is written: an arm failed, or has a run that came to nothing.
        KeyboardInterrupt: stopped by a signal; the run of the moment is saved.
    """
    base: TrainConfig = config or SharedConfig()
    if base.augment.vflip is None:  # each arm would ask a detector of its own
        base = replace(base, augment=replace(base.augment, vflip=0.0))
    for name in settings(base).keys() & REFUSED.keys():
        raise GhmdetError(f"--{name.replace('_', '-')} {getattr(base, name)}: {REFUSED[name]}")
    for name, value in (("seeds", seeds), ("tune-epochs", tune_epochs)):
        if value is not None and not 1 <= value <= 1000:
            raise GhmdetError(f"--{name} {value}: give a whole number from 1 to 1000")
    grid = read_grid(weights_grid)
    settings_of = read_arms(arms, base)
    for arm in settings_of.values():
        if not list_commands:  # other hosts may have other devices
            choose_device(arm.device, arm.precision)
    train = read_data(data, base.train_split)
    told: list[str] = []  # what was chosen for all arms; an arm with other settings may get something else
    base = fit_to_data(base, train, told.append)
    fitted = {}
    for name, own in settings_of.items():
        chosen: list[str] = []
        fitted[name] = fit_to_data(own, train, chosen.append)
        told += [f"{name}: {line}" for line in chosen if line not in told]
    for line in () if list_commands else told:
        say(line)
    plan = Plan(
        data=data,
        out=out,
        base=base,
        arms=fitted,
        seeds=range(base.seed, base.seed + seeds),
        grid=grid,
        tune_epochs=tune_epochs,
    )
    part = read_data(data, split, classes=train.classes)
    if part.split == train.split:
        raise GhmdetError(f"--split {split}: the arms are trained on it: give another part to judge them on")
    require_images(train)
    require_images(part)
    require_apart(out, train)
    if list_commands:
        plan.keep(train)
        for command in plan.commands():
            say(command)
        return None
    with hold(out):
        plan.keep(train)
        say(plan.describe(len(train.records)))
        failed = _make_runs(plan, say)
        result, spectra = judge(plan, part, failed, say)
        say(summary(result))
        trained = {folder.name for folder in (out / "runs" / "final").glob("*") if folder.is_dir()}
        if left := sorted(trained - result["arms"].keys()):
            say(f"not in this result, though trained here: {', '.join(left)} (name them in --arms, too)")
        say(f"written: {', '.join(map(str, write_comparison(out, result, spectra)))}")
    bad = [name for name, arm in result["arms"].items() if arm.get("failed") or arm.get("unlearnt")]
    if bad:
        raise PartlyDone(f"of {', '.join(bad)} it says little: a run came to nothing, as said above")
    return result


def read_grid(given: str) -> tuple[float, ...] | None:
    """The weights of a grid in ascending order, None for none; raises GhmdetError for what is no weight.

    >>> read_grid("0.2,0.1"), read_grid("none")
    ((0.1, 0.2), None)
    """
    if given == "none":
        return None
    try:
        weights = sorted({float(weight) for weight in given.split(",")})
    except ValueError:
        weights = []
    if not weights or not all(0 < weight < float("inf") for weight in weights):
        raise GhmdetError(f"--weights-grid {given}: give weights above 0 with commas between them, or none")
    return tuple(weights)


def _make_runs(plan: Plan, say: Callable[[str], None]) -> dict[str, str]:
    """Make every run that is missing; why arms failed whose runs did not merely diverge."""
    failed: dict[str, str] = {}
    done, trained, minutes, longest = 0, 0.0, 0.0, 0.0
    with StopSignal() as stop, progress_bar(show=True) as show:
        while True:
            standing = {arm: plan.stand(arm) for arm in plan.arms if arm not in failed}
            ready = [run for arm in standing.values() for run in arm.missing]
            if not ready:
                return failed
            untuned = [arm for arm, one in standing.items() if one.weight is None and not one.failed]
            later = [plan.run(arm, 1.0, seed) for arm in untuned for seed in plan.seeds]
            run, others = ready[0], [*ready[1:], *later]
            total = done + 1 + len(others)
            # A short one's start and validation weigh more, so the first of the long ones says it again.
            news = run.work > longest
            heard = partial(foretell, run, say, others=others, aloud=news)
            longest = max(longest, run.work)
            reason = train_run(run, stop, partial(show, done / total), heard)
            if stop.asked:
                raise KeyboardInterrupt(f"stopped in {run}; the same command continues there")
            outcome = run.outcome()
            if outcome is None:
                if "--accept-changed-data" in reason:
                    reason += f" (by hand: ghmdet {shlex.join([*run.command, '--accept-changed-data'])})"
                gone = f"the last AP is not in its metrics.csv: remove {run.out}, and it is trained anew"
                outcome = Outcome(failed=reason or gone)
                failed[run.arm] = f"{run}: {outcome.failed}"
            done += 1
            if outcome.AP is None:
                say(f"[{done}/{total}] {run}: failed: {outcome.failed}")
                continue
            trained, minutes = trained + run.work, minutes + outcome.minutes
            rest = max(1, minutes / trained * sum(each.left for each in others))
            more = f"; {total - done} more, about {rest:.0f} min" if done < total else ""
            say(f"[{done}/{total}] {run}: AP {outcome.AP:.3f}, {outcome.minutes:.1f} min{more}")


def foretell(
    run: Run,
    say: Callable[[str], None],
    line: str,
    more: str = "",
    others: Sequence[Run] = (),
    aloud: bool = True,
) -> None:
    """Pass on that a run waits, or how long it will take, and with it the others, if this line says so."""
    if line.startswith(WAITING):
        say(f"{run}: {line}")
    if not aloud:
        return
    if time_to_go := re.match(r"about (?:(\d+) min ?)?(?:([\d.]+) s )?", line):
        seconds = 60 * int(time_to_go[1] or 0) + float(time_to_go[2] or 0)
        if others:
            seconds *= 1 + sum(each.left for each in others) / run.left
            more += f"; all {1 + len(others)} runs to go about {in_words(seconds)}"
        say(f"{run}: {line.partition(',')[0]}{more}")


def train_run(
    run: Run, stop: StopSignal, show: Callable[[str], None], heard: Callable[[str], None] = lambda line: None
) -> str:
    """Train one run in a process of its own, which a signal lets stop where it can go on; why it failed, if it did.

    Where another process trains it already, as one whose `ghmdet compare` was killed, that one is waited for.

    show: called again and again with where it is. heard: called with each line that it says.
    """
    told = ""
    while not stop.asked:
        try:
            with hold(run.out):
                break
        except Busy as busy:
            if not told:
                told = f"{WAITING} {str(busy).partition(': wait')[0]}"
                heard(told)
            show(f"{run}: another process trains it, which is waited for")
            time.sleep(1)
    if stop.asked:
        return ""
    run.out.mkdir(parents=True, exist_ok=True)
    output, log = run.out / "output.txt", run.out / "log.csv"
    with output.open("ab") as file, output.open(encoding="utf-8", errors="replace") as said:
        said.seek(0, os.SEEK_END)
        # A session of its own: the terminal's interrupt must reach it once, from here.
        process = subprocess.Popen(
            [sys.executable, "-m", "ghmdet", *run.command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if stop.asked:
                    process.terminate()
                    process.wait()
                rows = read_rows(log)
                of = f"/{run.config.epochs}" if run.config.epochs else ""
                show(f"{run}, epoch {rows[-1]['epoch'] if rows else 0}{of}")
                for line in said:
                    heard(line.strip())
                time.sleep(0.5)
        finally:
            process.kill()  # if a second signal left the loop
            process.wait()
    if process.returncode < 0:
        return f"ended by signal {-process.returncode}, see {output}"
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("ghmdet: ") if lines and process.returncode else ""
