from __future__ import annotations

import csv
import io
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine_cases import TINY, Interrupted
from ghmdet.engine.budget import Budget
from ghmdet.engine.checkpoint import load_checkpoint
from ghmdet.engine.context import begin_run
from ghmdet.engine.optim import warmup_cosine
from ghmdet.engine.settings import TrainConfig, seconds_of
from ghmdet.engine.train import Trainer, train
from ghmdet.errors import GhmdetError
from ghmdet.progress import counting, progress_bar

COURSE = 1000
BUDGETED = replace(TINY, epochs=None, val_every=None)


@dataclass
class Machine:
    """A clock that steps, savings and validations move on, as slowly as `slowness` says at that time."""

    step: float = 1.0
    validation: float = 5.0
    saving: float = 0.1
    slowness: Callable[[float], float] = lambda now: 1.0
    stall: tuple[float, float] = (math.inf, 0.0)
    """When it stands still, and for how long."""
    now: float = 0.0

    def work(self, seconds: float) -> None:
        before = self.now
        self.now += seconds * self.slowness(self.now)
        when, how_long = self.stall
        if before <= when < self.now:
            self.now += how_long


@dataclass
class Run:
    """What the trainer does with a budget, without the training."""

    machine: Machine
    budget: Budget
    per_epoch: int = 13
    start: float = 8.0
    validated: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    done: int = 0

    def go(self, until: float = math.inf) -> Run:
        """Train to the end, or to the first look after a time."""
        machine, budget = self.machine, self.budget
        machine.now += self.start
        ended, epoch, last = machine.now, 0, 0
        while True:
            over = budget.share >= 1
            if epoch > last and (over or budget.validation_due):
                machine.work(machine.validation)
                budget.validated(machine.now - ended)
                self.validated.append(self.done)
                last = epoch
            if over:
                return self
            budget.continue_from(self.done)
            unread = 0
            for _ in range(self.per_epoch):
                self.rates.append(warmup_cosine(budget.share * COURSE, COURSE, 0.1))
                machine.work(machine.step)
                self.done += 1
                unread += 1
                if unread >= budget.interval:
                    budget.look(self.done)
                    unread = 0
                if machine.now > until:
                    return self
                if budget.share >= 1:
                    break
            epoch, ended = epoch + 1, machine.now
            budget.look(self.done)
            machine.work(machine.saving)
            budget.look(self.done)

    def check_the_rate_comes_down(self) -> None:
        peak = self.rates.index(max(self.rates))
        falls = [
            before - after for before, after in zip(self.rates[peak:], self.rates[peak + 1 :], strict=False)
        ]
        assert min(falls) >= 0  # nothing raises the rate again
        assert self.rates[-1] < 0.05


def simulated(
    seconds: float,
    per_epoch: int = 13,
    *,
    batches: int = 6,
    reports: bool = False,
    look_every: int = 1,
    batch: float = math.inf,
    **machine: Any,
) -> Run:
    made = Machine(**machine)
    budget = Budget(seconds, lambda: made.now, look_every, batches, reports, batch=batch)
    return Run(made, budget, per_epoch).go()


@pytest.mark.parametrize(("per_epoch", "look_every"), [(1, 1), (13, 1), (100, 20), (400, 20)])
def test_a_steady_machine_uses_the_time_and_brings_the_rate_down(per_epoch: int, look_every: int) -> None:
    run = simulated(1200.0, per_epoch, look_every=look_every, step=0.9, validation=8.0)
    assert 0.95 * 1200 < run.machine.now < 0.99 * 1200
    assert (7 if per_epoch < 20 else 3) <= len(run.validated) <= 10
    assert run.validated[-1] == run.done
    run.check_the_rate_comes_down()
    assert max(run.rates) > 0.99
    assert run.rates[-1] == pytest.approx(0.01, abs=2e-3)


def test_time_for_a_report_is_set_aside_where_the_budget_can_spare_it() -> None:
    run = simulated(1200.0, step=0.9, validation=8.0, reports=True)
    assert run.budget.reporting == pytest.approx(6 + 2 * 8.1)
    assert run.budget.can_report
    assert run.machine.now < 1200 - 22
    short = simulated(120.0, step=0.9, validation=8.0, reports=True)  # it would take a fifth of the time
    assert short.machine.now == simulated(120.0, step=0.9, validation=8.0).machine.now
    assert not short.budget.can_report


@settings(deadline=None, max_examples=150)
# Its only validation is the last one, on a machine that is slow from the start.
@example(60.0, 2, 1, 1.0, 1, 1.0, 1.0, 0.0, 2.5, False)
@given(
    seconds=st.floats(60, 1200),
    per_epoch=st.integers(1, 200),
    look_every=st.sampled_from([1, 20]),
    step=st.floats(0.1, 1.5),
    batches=st.integers(1, 12),
    ease=st.floats(0.2, 1.0),
    saving=st.floats(0.0, 1.0),
    change=st.floats(0, 1),
    factor=st.floats(0.3, 2.5),
    rehearsed=st.booleans(),
)
def test_a_machine_that_changes_its_pace_ends_in_time(
    seconds: float,
    per_epoch: int,
    look_every: int,
    step: float,
    batches: int,
    ease: float,
    saving: float,
    change: float,
    factor: float,
    rehearsed: bool,
) -> None:
    validation = 2 + ease * batches * step
    # Nothing can foresee a last validation that turns slow when all the time is given away: it changes before that.
    when = change * (seconds - 5 * max(look_every, 8) * step - 5 * validation - 5)
    # Nor a rehearsal that the machine turns slow right after it.
    rehearsal = ease * step * (factor if when < 8 + 6 * step else 1.0)
    run = simulated(
        seconds,
        per_epoch,
        batches=batches,
        look_every=look_every,
        step=step,
        validation=validation,
        saving=saving,
        batch=rehearsal if rehearsed else math.inf,
        slowness=lambda now: factor if now > when else 1.0,
    )
    assert run.machine.now <= seconds or run.done == 2
    assert run.validated[-1] == len(run.rates)
    assert len(run.validated) <= 11
    if run.done > 100 and look_every == 1:
        run.check_the_rate_comes_down()


@pytest.mark.parametrize("factor", [0.5, 2.0, 3.0])
def test_the_rate_follows_a_machine_that_turns_faster_or_slower_half_way(factor: float) -> None:
    run = simulated(1200.0, step=0.9, validation=8.0, slowness=lambda now: factor if now > 500 else 1.0)
    assert 0.93 * 1200 < run.machine.now < 1200
    run.check_the_rate_comes_down()
    falls = [before - after for before, after in zip(run.rates[10:], run.rates[11:], strict=False)]
    assert max(falls) < 0.06


def test_a_machine_that_turns_slower_after_its_last_validation_ends_in_time() -> None:
    run = simulated(600.0, 30, batches=25, validation=20.0, slowness=lambda now: 2.5 if now > 480 else 1.0)
    assert 570 < run.machine.now <= 600
    run.check_the_rate_comes_down()


@settings(deadline=None, max_examples=60)
@given(when=st.floats(10, 1000), how_long=st.floats(1, 150))
def test_a_machine_that_stalls_goes_on_to_the_end_of_the_time(when: float, how_long: float) -> None:
    run = simulated(1200.0, step=0.9, validation=8.0, stall=(when, how_long))
    assert 0.8 * 1200 < run.machine.now < 1200
    run.check_the_rate_comes_down()


def test_a_busy_machine_trains_on_as_before() -> None:
    """Where every second step takes three times as long; a plan made at each step would change at each."""
    busy = simulated(1200.0, step=0.5, validation=8.0, slowness=lambda now: 1 + 2 * (int(now * 7) % 2))
    assert 0.95 * 1200 < busy.machine.now < 1200
    busy.check_the_rate_comes_down()
    falls = [before - after for before, after in zip(busy.rates[200:], busy.rates[201:], strict=False)]
    assert max(falls) < 0.05


def test_less_than_an_epoch_is_cut_inside_it_with_the_rate_down() -> None:
    run = simulated(120.0, per_epoch=1000)
    assert 80 < len(run.rates) < 120
    assert run.validated == [len(run.rates)]
    run.check_the_rate_comes_down()


def test_less_than_an_epoch_uses_the_time_where_a_validation_was_rehearsed() -> None:
    """Eleven batches in a third of the time of as many steps: 8 s in place of 17 s are expected, from a minute."""
    many = {"per_epoch": 25, "step": 1.2, "validation": 5.0, "batches": 11}
    assert simulated(60.0, **many).machine.now < 47
    run = simulated(60.0, batch=0.4, **many)
    assert 50 < run.machine.now < 58 and run.validated == [run.done]
    assert (
        simulated(60.0, batch=9.0, **many).machine.now < 47
    )  # a first batch may be slow: never more than a step
    run.check_the_rate_comes_down()


def test_validations_are_fewer_where_they_would_take_the_time() -> None:
    run = simulated(600.0, validation=50.0, batches=40)
    assert len(run.validated) == 2
    assert run.machine.now < 600


def test_two_steps_are_made_however_little_time_there_is() -> None:
    """The first, which is slow on every machine, does not say how long the next one takes."""
    assert simulated(9.0).done == 2
    slow_start = simulated(60.0, step=0.5, validation=4.0, stall=(8.0, 10.0))
    assert slow_start.done > 40 and 48 < slow_start.machine.now < 60


def test_a_run_goes_on_where_it_stopped() -> None:
    made = Machine(step=0.9, validation=8.0)
    first = Run(made, Budget(1200.0, lambda: made.now, 1, 6, False)).go(until=700)
    later = Machine(step=0.9, validation=8.0)
    budget = Budget(1200.0, lambda: made.now + later.now, 1, 6, False)
    budget.load_state_dict(first.budget.state_dict())
    assert budget.first == 8.0 and len(budget.validations) == len(first.validated) > 3
    second = Run(later, budget).go()
    assert second.rates[0] == pytest.approx(first.rates[-1], abs=0.01)
    second.rates = first.rates + second.rates
    second.check_the_rate_comes_down()
    assert 0.95 * 1200 < made.now + later.now < 1200
    assert len(first.validated) + len(second.validated) <= 11


def test_a_rank_follows_the_clock_of_rank_0() -> None:
    told: list[list[Any]] = []

    def agree(mine: list[Any]) -> list[Any]:
        told.append(mine)
        return [0.25, True, 7]

    now = [0.0]
    budget = Budget(100.0, lambda: now[0], 1, 1, False, agree)
    budget.continue_from(0)
    for step in (1, 2):
        now[0] += 25.0
        budget.look(step)
    assert told == [[1.0, False, 1]]
    assert (budget.share, budget.validation_due, budget.interval) == (0.25, True, 7)


def test_without_a_budget_only_the_pace_is_known() -> None:
    now = [100.0]
    budget = Budget(
        math.inf, lambda: now[0], 20, 1, True, agree=lambda mine: pytest.fail("nothing to agree on")
    )
    budget.continue_from(0)
    for step in range(20, 200, 20):  # the first five looks are slow
        now[0] += 30.0 if step <= 100 else 10.0
        budget.look(step)
    assert not budget.steady
    now[0] += 60.0
    budget.look(200)
    assert budget.steady and budget.pace == 0.5
    assert (budget.share, budget.interval) == (0, 20)


def test_a_run_says_soon_how_long_it_will_take_and_when_it_is_judged(squares: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    train(squares, tmp_path / "run", replace(TINY, epochs=9, val_every=None), say=lines.append)
    (place,) = (i for i, line in enumerate(lines) if line.startswith("about "))
    assert re.fullmatch(r"about .* s to go: 17 steps of 0\.\d+ s, AP after every epoch", lines[place])
    assert lines[place - 1].startswith("epoch 3/9: AP")


def test_nothing_is_foretold_after_the_last_step(squares: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    train(squares, tmp_path / "run", replace(TINY, epochs=5, batch_size=6, val_every=None), say=lines.append)
    assert not [line for line in lines if line.startswith("about ")]


def test_a_time_that_the_first_steps_foretold_wrongly_is_foretold_once_more(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def slow_at_first(self: Trainer, *batch: object) -> object:
        time.sleep(0.3 if self.progress.step < 10 else 0)
        return step(self, *batch)

    monkeypatch.setattr(Trainer, "_step", slow_at_first)
    config = replace(TINY, epochs=6, batch_size=1, val_every=2)
    for wrong, times in ((1, 2), (1000, 1)):
        monkeypatch.setattr("ghmdet.engine.train.WRONG", wrong)
        lines: list[str] = []
        train(squares, tmp_path / str(wrong), config, say=lines.append)
        told = [line for line in lines if line.startswith("about ")]
        assert " to go: 62 steps of " in told[0] and told[0].endswith(" s, AP after every 2 epochs")
        assert len(told) == times
        assert times == 1 or " to go: 22 steps of " in told[1]


def test_a_long_run_is_told_of_a_shorter_one(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ghmdet.engine.train.LONG", 0)
    lines: list[str] = []
    train(squares, tmp_path / "run", replace(TINY, epochs=4, val_every=None), say=lines.append)
    (line,) = (line for line in lines if line.startswith("about "))
    assert line.endswith(
        "AP after every epoch; for less, stop it and begin another run with a time: --budget 20m"
    )


def test_without_a_terminal_progress_is_a_line_in_the_first_minute_and_ever_fewer_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, lines = [100.0], list[str]()
    monkeypatch.setattr("ghmdet.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stdout", io.StringIO())
    with progress_bar(show=True, say=lines.append) as show:
        for step in range(1000):
            show(step / 1000, f"epoch 1, step {step}")
            now[0] += 1
    assert lines == [f"epoch 1, step {step}: {step / 10:.1f}%" for step in (30, 60, 120, 240, 480, 960)]
    for total, of in ((1000, " of 1000"), (None, "")):
        monkeypatch.setattr("sys.stderr", err := io.StringIO())
        with counting("pictures", total) as advance:
            for _ in range(1000):
                now[0] += 1
                advance(1)
        assert err.getvalue().splitlines() == [f"pictures: {n}{of}" for n in (30, 60, 120, 240, 480, 960)]


@pytest.mark.parametrize("text", ["20", "m", "-3m", "0s", "1d", "1e3s", "99999999h", "9" * 400 + "s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(GhmdetError, match="give a time such as 90s"):
        TrainConfig(budget=text)
    assert seconds_of("1.5m") == 90


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_ends_within_its_budget_with_the_rate_down(squares: Path, tmp_path: Path) -> None:
    lines: list[Any] = []
    began = time.monotonic()
    place = train(
        squares, tmp_path / "run", replace(BUDGETED, budget="15s"), say=lines.append, make_report=lines.append
    )
    assert time.monotonic() - began < 15
    rates = [float(row["lr"]) for row in rows(tmp_path / "run" / "log.csv")]
    (said,) = [line for line in lines if "--budget" in str(line)]
    assert said.startswith("--budget 15s: ended after ") and ", in epoch " in said
    assert f"no report, to end within the budget: ghmdet report {tmp_path / 'run'}" in lines
    assert tmp_path / "run" not in lines
    if place.step > 10:  # a stalled machine ends it before
        assert rates[-1] < 0.2 * max(rates)
    validations = rows(tmp_path / "run" / "metrics.csv")
    assert place.step == len(rates) == int(validations[-1]["step"])
    assert len(validations) <= 11


def test_a_validation_that_was_interrupted_is_made_up_for(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "run", []

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ghmdet.engine.train.draw_curves", interrupt)  # its row is there, its save is not
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(squares, out, replace(BUDGETED, budget="60s"), resume=True, say=lambda line: None)
        (row,) = rows(out / "metrics.csv")
        seen.append((row["step"], row["epoch"], row["AP"]))
    assert seen[0] == seen[1] and len(rows(out / "log.csv")) == int(seen[0][0])


def test_a_budget_without_time_for_training_is_refused_and_leaves_nothing(
    squares: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        GhmdetError, match=r"--budget 0\.1s: reading the data and the model alone took .* s: give"
    ):
        train(squares, tmp_path / "run", replace(BUDGETED, budget="0.1s"), say=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_with_epochs_and_a_budget_the_first_to_end_decides(squares: Path, run: Path, tmp_path: Path) -> None:
    """The epochs do here, also in a run that was interrupted: the numbers are those of the epochs alone."""

    config, out = replace(TINY, budget="100h"), tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        Interrupted(begin_run(squares, out, config, say=lambda line: None)).fit()
    training = load_checkpoint(out / "last.pt")["training"]
    assert training["place"]["seconds"] > 0
    resumed = Trainer(begin_run(squares, out, config, resume=True, say=lambda line: None))
    assert resumed.run.started_at < time.monotonic() - training["place"]["seconds"]
    resumed.fit()
    assert rows(out / "log.csv") == rows(run / "log.csv")
    one, other = (load_checkpoint(folder / "last.pt")["training"]["model"] for folder in (run, out))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    with pytest.raises(GhmdetError, match="budget 2h"):
        train(squares, out, replace(config, budget="2h"), resume=True)
