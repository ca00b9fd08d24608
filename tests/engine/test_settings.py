from __future__ import annotations

import dataclasses
import math
import re
import typing
from pathlib import Path

import pytest
from accelerate.utils import set_seed

from engine_cases import TINY
from ghmdet.cli import main
from ghmdet.engine.evaluate import validate
from ghmdet.engine.predict import predict
from ghmdet.engine.settings import TrainConfig, validate_every
from ghmdet.engine.train import train
from ghmdet.errors import GhmdetError
from ghmdet.report.inspection import write_spectrum

KINDS = typing.get_type_hints(TrainConfig, include_extras=False)
WHOLE = [name for name, kind in KINDS.items() if kind in (int, int | None)]
REAL = [name for name, kind in KINDS.items() if kind in (float, float | None)]


def test_the_numeric_settings_are_all_known_here() -> None:
    assert len(WHOLE) == 8 and len(REAL) == 10
    assert {"seed", "workers", "epochs"} < set(WHOLE) and {"lr", "ema", "clip_norm"} < set(REAL)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [-1, 10**30, 2.5, math.nan, math.inf])
def test_a_whole_number_that_cannot_be_used_is_named_with_its_mend(name: str, value: float) -> None:
    with pytest.raises(
        GhmdetError, match=rf"--{name.replace('_', '-')} .*: give a whole number from \d+ to \d+"
    ):
        TrainConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("value", [-1.0, 1e30, math.nan, math.inf, -math.inf])
def test_a_number_that_cannot_be_used_is_named_with_its_mend(name: str, value: float) -> None:
    with pytest.raises(
        GhmdetError, match=rf"--{name.replace('_', '-')} {re.escape(str(value))}: give a number from"
    ):
        TrainConfig(**{name: value})  # type: ignore[arg-type]


def test_a_seed_that_no_generator_takes_is_one_line_and_the_largest_that_all_take_is_accepted(
    capsys: pytest.CaptureFixture[str], squares: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(squares), "--out", str(tmp_path / "x"), "--seed", "5000000000"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "ghmdet: --seed 5000000000: give a whole number from 0 to 4294967295\n"
    )
    set_seed(TrainConfig(seed=2**32 - 1).seed)


def test_the_ends_of_the_ranges_can_be_trained_with(squares: Path, tmp_path: Path) -> None:
    ends = {
        "seed": 2**32 - 1,
        "batch_size": 10**6,
        "val_every": 10**6,
        "patience": 10**6,
        "weight_decay": 0.0,
        "clip_norm": 1e9,
        "checkpoint_minutes": 1e9,
        "lr": 1e-12,
        "ema": 0.0,
        "warmup": 0.0,
    }
    place = train(squares, tmp_path / "x", dataclasses.replace(TINY, epochs=1, **ends), say=lambda line: None)
    assert place.step == 1


@pytest.mark.parametrize("epochs", [*range(1, 40), 199, 1000, 10**6])
def test_about_ten_validations_are_at_most_ten(epochs: int) -> None:
    validations = math.ceil(epochs / validate_every(epochs))
    assert min(epochs, 5) <= validations <= 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threshold": math.nan}, "--threshold nan: give a number from 0 to 1"),
        ({"threshold": 30.0}, "--threshold 30"),
        ({"batch_size": 0}, "--batch-size 0: give a whole number from 1"),
        ({"batch_size": 10**30}, "--batch-size 1"),
    ],
)
def test_numbers_of_the_other_commands_are_looked_at_before_any_work(
    options: dict[str, float], said: str, tmp_path: Path
) -> None:
    with pytest.raises(GhmdetError, match=said):
        predict(tmp_path / "no.pt", tmp_path, out=tmp_path / "out", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("workers", -1), ("workers", 10**9)])
def test_batches_and_workers_of_a_validation_are_looked_at_before_any_work(
    name: str, value: int, tmp_path: Path
) -> None:
    said = f"--{name.replace('_', '-')} {value}: give a whole number from"
    with pytest.raises(GhmdetError, match=said):
        validate(tmp_path / "no.pt", tmp_path, **{name: value})
    if name == "workers":
        with pytest.raises(GhmdetError, match=said):
            write_spectrum(tmp_path / "no.pt", tmp_path, out=tmp_path / "out", workers=value)
