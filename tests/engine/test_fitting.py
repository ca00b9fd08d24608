from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engine_cases import TINY
from ghmdet.data import read_data
from ghmdet.data.records import Records
from ghmdet.engine.checkpoint import as_saved
from ghmdet.engine.fitting import FEWEST, MOST, STEPS, epochs_for, fit_to_data, size_for
from ghmdet.engine.settings import TrainConfig
from ghmdet.engine.train import train
from ghmdet.errors import GhmdetError
from ghmdet.models import preset


@pytest.mark.parametrize("pictures", [1, 15, 16, 200, 1600, 5000, 10**6])
def test_few_pictures_get_many_epochs_within_limits(pictures: int) -> None:
    epochs = epochs_for(pictures, 8)
    assert FEWEST <= epochs <= MOST
    assert epochs >= epochs_for(pictures + 1000, 8)
    if FEWEST < epochs < MOST:
        assert STEPS <= epochs * (pictures // 8) < STEPS + pictures // 8


def test_what_is_given_is_kept_and_what_is_chosen_is_said(squares: Path) -> None:
    pictures, said = read_data(squares, "train"), list[str]()
    assert fit_to_data(TrainConfig(epochs=7), pictures, said.append).epochs == 7
    assert fit_to_data(TrainConfig(budget="1m"), pictures, said.append).epochs is None
    assert said == []
    assert fit_to_data(TrainConfig(batch_size=4), pictures, said.append).epochs == 300
    assert said == ["300 epochs, for 12 training pictures (--epochs gives another)"]


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


def records(sides: list[float], picture: tuple[int, int] = (1920, 1440), crowd: int = 0) -> Records:
    """Two pictures of a size, the first without a box, the second with square boxes; the last `crowd` are crowds."""
    boxes = np.array([[0, 0, side, side] for side in sides], dtype=np.float32).reshape(-1, 4)
    return Records(
        Path(),
        ["a.png", "b.png"],
        np.array([1, 2]),
        np.array([picture] * 2, dtype=np.int32),
        np.array([0, 0, len(sides)]),
        boxes,
        np.zeros(len(sides), dtype=np.int32),
        np.arange(len(sides)) >= len(sides) - crowd,
        boxes[:, 2] * boxes[:, 3],
    )


@pytest.mark.parametrize(
    ("boxes", "picture", "size"),
    [
        ([80, 80, 80, 400], (1920, 1440), 384),  # 16 pixels at 384: as it is
        ([60, 60, 60, 400], (1920, 1440), 512),  # 12 pixels at 384
        ([60, 60, 60, 400], (1440, 1920), 512),
        ([60, 400, 400, 400, 400, 400], (1920, 1440), 384),  # fewer than a quarter are small
        ([4, 4, 4, 4], (1920, 1440), 640),  # the most
        ([4, 4, 4, 4], (500, 375), 480),  # not more than there are pixels
        ([4, 4, 4, 4], (200, 150), 384),
        ([], (1920, 1440), 384),
    ],
)
def test_small_boxes_get_larger_pictures(boxes: list[float], picture: tuple[int, int], size: int) -> None:
    assert size_for(records(boxes, picture), preset("nano")) == size


def test_crowds_are_no_small_boxes() -> None:
    assert size_for(records([80, 80, 4, 4], crowd=2), preset("nano")) == 384


def test_a_preset_of_large_pictures_stays() -> None:
    assert size_for(records([4, 4], (4000, 3000)), preset("r50")) == 1333
    assert size_for(records([4, 4], (4000, 3000)), preset("r50_small")) == 1056


def test_a_larger_size_is_said_with_its_price() -> None:
    said = list[str]()
    large = SimpleNamespace(records=records([80, 80, 80, 400]))
    assert fit_to_data(TrainConfig(epochs=1), large, said.append).size == 384  # type: ignore[arg-type]
    assert not said
    data = SimpleNamespace(records=records([60, 60, 60, 400]))
    config = fit_to_data(TrainConfig(epochs=1), data, said.append)  # type: ignore[arg-type]
    assert config.size == 512
    assert said == [
        "pictures of 512 pixels, not 384, where a quarter of the boxes or more would have sides under 16 pixels:"
        " a step takes 1.8 times as long"
        " (--size gives another)"
    ]
    assert fit_to_data(TrainConfig(epochs=1, size=320), data).size == 320  # type: ignore[arg-type]
    assert fit_to_data(TrainConfig(budget="1m"), data).size is None  # type: ignore[arg-type]
