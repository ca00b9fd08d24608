from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from engine_cases import TINY
from hypothesis import given
from hypothesis import strategies as st

from ghmdet.config import TrainConfig, seconds_of, validate_every
from ghmdet.engine import train as train_module
from ghmdet.engine.budget import Budget, epochs_that_fit
from ghmdet.engine.train import train
from ghmdet.errors import GhmdetError

positive = st.floats(0.01, 100)


def cost(epochs: int, done: int, epoch: float, validation: float, every: int | None) -> float:
    """Epoch by epoch, as the trainer does it."""
    step, seconds = every or validate_every(epochs), 0.0
    for number in range(done + 1, epochs + 1):
        seconds += epoch + (number % step == 0 or number == epochs) * validation
    return seconds


@given(st.floats(0, 500), st.floats(0.5, 100), positive, st.integers(0, 50), st.none() | st.integers(1, 5))
def test_a_plan_fits_and_no_longer_one_does(left, epoch, validation, done, every) -> None:
    epochs = epochs_that_fit(left, epoch, validation, done=done, every=every)
    assert epochs >= done
    if epochs > done:
        assert cost(epochs, done, epoch, validation, every) <= left * (1 + 1e-9)
    for longer in range(epochs + 1, epochs + 12):
        assert cost(longer, done, epoch, validation, every) > left * (1 - 1e-9)


def test_the_first_guess_leaves_the_slow_first_step_out() -> None:
    budget = Budget(1000.0)
    budget.guess([9.0, 1.0, 1.0, 1.2], steps_per_epoch=10, batch_size=16, val_pictures=64)
    assert budget.epochs == [10.0]
    assert budget.validation == 4.0
    assert budget.plan(elapsed=0, done=0) == 92


@pytest.mark.parametrize("text", ["20", "m", "-3m", "0s", "1d", "1e3s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(GhmdetError, match="give a time such as 90s"):
        TrainConfig(budget=text)
    assert seconds_of("1.5m") == 90


def test_epochs_and_budget_exclude_each_other() -> None:
    with pytest.raises(GhmdetError, match="--epochs 3 and --budget 2m: give one"):
        TrainConfig(budget="2m", epochs=3)


class Clock:
    """A time that passes as it is looked at, faster after a while."""

    def __init__(self, slow_after: float = float("inf")) -> None:
        self.now, self.slow_after = 0.0, slow_after

    def monotonic(self) -> float:
        self.now += 0.1 if self.now < self.slow_after else 0.25
        return self.now


@pytest.mark.parametrize("slow_after", [float("inf"), 12.0])
def test_a_run_ends_within_its_budget_with_the_rate_down(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_after: float
) -> None:
    clock = Clock(slow_after)
    monkeypatch.setattr(train_module, "time", clock)
    lines: list[str] = []
    config = replace(TINY, epochs=None, val_every=None, budget="40s")
    place = train(squares, tmp_path / "run", config, say=lines.append)
    assert 28 < clock.now < 40
    assert place.epoch == place.epochs > 3
    with (tmp_path / "run" / "log.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates[-1] < 0.1 * max(rates)
    assert any(line.startswith("--budget 40s: ") for line in lines)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert int(list(csv.DictReader(file))[-1]["epoch"]) == place.epoch


def test_a_budget_too_small_for_an_epoch_still_leaves_a_detector(squares: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    place = train(
        squares, tmp_path / "run", replace(TINY, epochs=None, val_every=None, budget="0.1s"), say=lines.append
    )
    assert place.epoch == place.epochs == 1
    assert place.step < 3
    assert (tmp_path / "run" / "best.pt").exists()
    assert any("more than it" in line for line in lines)
