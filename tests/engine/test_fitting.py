from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine_cases import TINY
from ghmdet.data import read_data
from ghmdet.engine.checkpoint import as_saved
from ghmdet.engine.fitting import FEWEST, MOST, STEPS, epochs_for, fit_to_data
from ghmdet.engine.settings import TrainConfig
from ghmdet.engine.train import train
from ghmdet.errors import GhmdetError


@pytest.mark.parametrize("pictures", [1, 15, 16, 200, 1600, 5000, 10**6])
def test_few_pictures_get_many_epochs_within_limits(pictures: int) -> None:
    epochs = epochs_for(pictures, 16)
    assert FEWEST <= epochs <= MOST
    assert epochs >= epochs_for(pictures + 1000, 16)
    if FEWEST < epochs < MOST:
        assert STEPS <= epochs * (pictures // 16) < STEPS + pictures // 16


def test_what_is_given_is_kept_and_what_is_chosen_is_said(squares: Path) -> None:
    pictures, said = read_data(squares, "train"), list[str]()
    assert fit_to_data(TrainConfig(epochs=7), pictures, said.append).epochs == 7
    assert fit_to_data(TrainConfig(budget="1m"), pictures, said.append).epochs is None
    assert said == []
    assert fit_to_data(TrainConfig(batch_size=4), pictures, said.append).epochs == 267
    assert said == ["267 epochs, for 12 training pictures (--epochs or --budget gives another)"]


def test_a_resumed_run_keeps_what_was_chosen_for_it(squares: Path, tmp_path: Path) -> None:
    config = replace(TINY, epochs=1)
    train(squares, tmp_path / "x", config, say=lambda line: None)
    done = train(squares, tmp_path / "x", replace(config, epochs=None), resume=True, say=lambda line: None)
    assert done.epoch == 1
    assert json.loads((tmp_path / "x" / "run.json").read_text())["arguments"]["epochs"] == 1
    with pytest.raises(GhmdetError, match=r"epochs 2 \(the run has 1\)"):
        train(squares, tmp_path / "x", replace(config, epochs=2), resume=True, say=lambda line: None)
    assert as_saved(TrainConfig(size=64), {"arguments": {"size": 320, "epochs": 9}}) == TrainConfig(
        size=64, epochs=9
    )
