from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from engine_cases import TINY
from ghmdet.engine import pacing
from ghmdet.engine.budget import Budget, Plan
from ghmdet.engine.checkpoint import load_checkpoint
from ghmdet.engine.optim import Curve, move_end, warmup_cosine
from ghmdet.engine.settings import TrainConfig, seconds_of
from ghmdet.engine.train import Trainer, train
from ghmdet.errors import GhmdetError

BUDGETED = replace(TINY, epochs=None, val_every=None)


@dataclass
class Machine:
    """A clock that steps, savings and validations move on, as slowly as `slowness` says at that time."""

    step: float = 1.0
    validation: float = 5.0
    slowness: Callable[[float], float] = lambda now: 1.0
    now: float = 0.0

    def work(self, seconds: float) -> None:
        self.now += seconds * self.slowness(self.now)


@dataclass
class Run:
    """What the trainer does with a budget, without the training."""

    machine: Machine
    budget: Budget
    start: float = 8.0
    plans: list[Plan] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def go(self) -> Run:
        machine, budget = self.machine, self.budget
        machine.now += self.start
        slow = machine.slowness(machine.now)
        budget.rehearsed(machine.step * slow, machine.validation * slow)
        plan, done, epoch, last = budget.plan(0), 0, 0, 0
        self.plans.append(plan)
        curve = Curve(plan.steps, 0.1)

        def follow(fresh: Plan) -> Plan:
            if fresh != plan:
                self.plans.append(fresh)
                curve.move_end(fresh.steps, done)
            return fresh

        while True:
            over = done >= plan.steps
            if over or epoch - last >= plan.every:
                began = machine.now
                machine.work(machine.validation)
                budget.validated(machine.now - began, done)
                self.validated.append(done)
                last = epoch
            if over:
                return self
            budget.begin_epoch(done)
            for _ in range(budget.per_epoch):
                self.rates.append(curve(done))
                machine.work(machine.step)
                done += 1
                plan = follow(budget.within_epoch(plan, done))
                if done >= plan.steps:
                    break
            epoch += 1
            budget.end_epoch(done)
            plan = follow(budget.revise(plan, done))


def simulated(
    seconds: float, per_epoch: int = 13, every: int | None = None, reports: bool = False, **machine: Any
) -> Run:
    made = Machine(**machine)
    return Run(made, Budget(seconds, 0.0, per_epoch, every, reports, clock=lambda: made.now)).go()


def test_a_steady_machine_keeps_its_first_plan_and_uses_the_time() -> None:
    run = simulated(1200.0, step=0.9, validation=8.0)
    assert len(run.plans) == 1
    assert run.plans[0].steps % 13 == 0
    assert 8 <= len(run.validated) <= 10
    assert 0.92 * 1200 < run.machine.now < 0.99 * 1200
    assert run.rates[-1] == pytest.approx(0.01, abs=1e-3)


def test_time_for_a_report_is_set_aside_where_the_budget_can_spare_it() -> None:
    run = simulated(1200.0, step=0.9, validation=8.0, reports=True)
    assert run.budget.reporting == 6 + 2 * 8
    assert run.budget.can_report
    assert run.machine.now < 1200 - 22
    short = simulated(120.0, step=0.9, validation=8.0, reports=True)  # it would take a fifth of the time
    assert short.machine.now == simulated(120.0, step=0.9, validation=8.0).machine.now
    assert not short.budget.can_report


@settings(deadline=None, max_examples=60)
@given(
    seconds=st.floats(60, 1200),
    per_epoch=st.integers(1, 200),
    every=st.none() | st.integers(1, 4),
    step=st.floats(0.3, 3),
    validation=st.floats(0.1, 15),
    change=st.floats(0, 1),
    factor=st.floats(0.3, 2.5),
)
def test_a_machine_that_changes_its_pace_ends_in_time(
    seconds: float,
    per_epoch: int,
    every: int | None,
    step: float,
    validation: float,
    change: float,
    factor: float,
) -> None:
    # No plan can foresee a last validation that turns slow when all the time is given away: it changes before that.
    when = change * (seconds - 40 * step - 5 * validation)
    run = simulated(
        seconds,
        per_epoch,
        every,
        step=step,
        validation=validation,
        slowness=lambda now: factor if now > when else 1.0,
    )
    assert run.machine.now <= seconds
    assert run.validated[-1] == len(run.rates)


@pytest.mark.parametrize("factor", [0.5, 2.0, 3.0])
def test_a_plan_follows_a_machine_that_turns_faster_or_slower_and_the_rate_comes_down(factor: float) -> None:
    run = simulated(1200.0, step=0.9, validation=8.0, slowness=lambda now: factor if now > 500 else 1.0)
    assert 1 < len(run.plans) < 12
    assert 0.9 * 1200 < run.machine.now < 1200
    assert run.rates[-1] == pytest.approx(0.01, abs=2e-3)
    falls = [before - after for before, after in zip(run.rates[10:], run.rates[11:], strict=False)]
    peak = run.rates.index(max(run.rates))
    assert min(falls[peak:]) >= 0  # a new plan never raises the rate again
    assert max(falls) < 0.05


def test_one_slow_epoch_changes_no_plan() -> None:
    run = simulated(1200.0, step=0.9, slowness=lambda now: 4.0 if 300 < now < 312 else 1.0)
    lengths = [plan.steps for plan in run.plans]
    assert min(lengths) > 0.9 * max(lengths)


def test_less_than_an_epoch_is_cut_inside_it_with_the_rate_down() -> None:
    run = simulated(120.0, per_epoch=1000)
    assert 60 < len(run.rates) < 120
    assert run.validated == [len(run.rates)]
    assert run.rates[-1] < 0.02


def test_validations_are_fewer_where_they_would_take_the_time() -> None:
    run = simulated(600.0, validation=50.0)
    assert len(run.validated) == 2


def test_a_last_epoch_that_turns_slow_is_cut() -> None:
    run = simulated(300.0, per_epoch=100, slowness=lambda now: 3.0 if now > 240 else 1.0)
    assert len(run.rates) % 100
    assert 280 < run.machine.now <= 300
    assert run.rates[-1] < 0.03


def test_a_moved_end_stretches_what_is_left() -> None:
    curve, other = Curve(100, 0.1), Curve(100, 0.1)
    other.move_end(200, 50)
    assert other(50) == pytest.approx(curve(50))
    assert other(125) == pytest.approx(curve(75))
    assert other(200) == pytest.approx(0.01)
    other.move_end(126, 125)
    assert other(125) == pytest.approx(curve(75), rel=0.01)
    assert other(126) == pytest.approx(0.01)


def test_a_schedule_keeps_its_moved_end_in_its_state() -> None:
    def schedule() -> LambdaLR:
        return warmup_cosine(torch.optim.SGD([torch.zeros(1)], lr=1.0), steps=10, warmup=0.2)

    one, other = schedule(), schedule()
    for _ in range(5):
        one.optimizer.step()
        one.step()
    move_end(one, 20)
    other.load_state_dict(one.state_dict())
    for made in (one, other):
        made.optimizer.step()
        made.step()
    assert other.get_last_lr() == one.get_last_lr()


@pytest.mark.parametrize("text", ["20", "m", "-3m", "0s", "1d", "1e3s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(GhmdetError, match="give a time such as 90s"):
        TrainConfig(budget=text)
    assert seconds_of("1.5m") == 90


def test_epochs_and_budget_exclude_each_other() -> None:
    with pytest.raises(GhmdetError, match="--epochs 3 and --budget 2m: give one"):
        TrainConfig(budget="2m", epochs=3)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_ends_within_its_budget_with_the_rate_down(squares: Path, tmp_path: Path) -> None:
    lines: list[Any] = []
    began = time.monotonic()
    place = train(
        squares, tmp_path / "run", replace(BUDGETED, budget="15s"), say=lines.append, report=lines.append
    )
    assert time.monotonic() - began < 15
    rates = [float(row["lr"]) for row in rows(tmp_path / "run" / "log.csv")]
    said = [line for line in lines if str(line).startswith("--budget 15s: ")]
    assert "epochs of 3 steps of" in said[0]
    assert "ended after" in said[-1]
    assert f"no report, to end within the budget: ghmdet report {tmp_path / 'run'}" in lines
    assert tmp_path / "run" not in lines
    plans = rows(tmp_path / "run" / "plan.csv")
    assert plans[0]["step"] == "0"
    assert rates[-1] < 0.3 * max(rates)  # of few steps the last is not far down
    assert int(plans[-1]["planned_steps"]) == place.step == len(rates)
    assert int(rows(tmp_path / "run" / "metrics.csv")[-1]["step"]) == place.step


def test_a_budget_too_small_for_a_step_is_refused_and_leaves_nothing(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(
        GhmdetError, match=r"--budget 0\.1s has no time .*: give at least \d+s, or \d+s for an epoch"
    ):
        train(squares, tmp_path / "run", replace(BUDGETED, budget="0.1s"), say=lambda line: None)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def three_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets of which three epochs are the plan, whatever the clock says."""
    monkeypatch.setattr(Budget, "plan", lambda self, done: Plan(9, 3))
    monkeypatch.setattr(Budget, "revise", lambda self, plan, done: plan)
    monkeypatch.setattr(Budget, "within_epoch", lambda self, plan, done: plan)


@pytest.mark.usefixtures("three_epochs")
def test_a_budgeted_run_is_that_of_its_epochs_and_goes_on_where_it_stopped(
    squares: Path, run: Path, tmp_path: Path
) -> None:
    class Interrupted(Trainer):
        def _step(self, *batch: Any) -> bool:
            stepped = super()._step(*batch)
            if self.place.step == 5 and (self.out / "plan.csv").exists():
                os.kill(os.getpid(), 15)
            return stepped

    lines: list[str] = []
    config, out = replace(BUDGETED, budget="1h"), tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        Interrupted(squares, out, config, False, lambda line: None).run()
    training = load_checkpoint(out / "last.pt")["training"]
    assert training["place"]["seconds"] > 0
    resumed = Trainer(squares, out, config, True, lines.append)
    assert resumed.pacing.budget is not None
    assert resumed.pacing.budget.began < time.monotonic() - training["place"]["seconds"]
    resumed.run()
    assert rows(out / "log.csv") == rows(run / "log.csv")
    one, other = (load_checkpoint(folder / "last.pt")["training"]["model"] for folder in (run, out))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert any("--epochs 3 --val-every 3 does the same without a clock" in line for line in lines)
    with pytest.raises(GhmdetError, match="budget 2h"):
        train(squares, out, replace(config, budget="2h"), resume=True)


def test_a_rank_follows_the_plan_of_rank_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    schedule = warmup_cosine(torch.optim.SGD([torch.zeros(1)], lr=1.0), steps=10, warmup=0.2)
    paced = pacing.Pacing(
        replace(BUDGETED, budget="1h"),
        3,
        schedule,
        tmp_path,
        began=time.monotonic(),
        reports=False,
        main=False,
        say=lambda line: None,
    )
    paced.rehearsed(1.0, 1.0)
    monkeypatch.setattr(pacing, "broadcast_object_list", lambda mine: [Plan(6, 1)])
    paced.begin(0.0)
    paced.begin_epoch(0)
    paced.end_look(1)
    assert paced.plan == Plan(6, 1)
    assert schedule.lr_lambdas[0].steps == 6  # type: ignore[union-attr]
    assert not list(tmp_path.iterdir())
