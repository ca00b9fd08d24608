from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ghmdet.cli import main
from ghmdet.data import DetectionData, Records, read_data
from ghmdet.engine import anchor_fit
from ghmdet.engine.anchor_fit import anchor_warning, best_iou, fit_anchors, positives_per_box, training_boxes
from ghmdet.errors import GhmdetError
from ghmdet.models import PRESETS, preset
from ghmdet.models.anchors import make_anchors
from ghmdet.models.targets import match, pairwise_iou
from measured_data import shared_data

CPU = torch.device("cpu")
SQUARES = dataclasses.replace(
    preset("nano"), min_size=64, max_size=64, anchor_scales=(1.0,), anchor_ratios=(1.0,), anchor_base=2.0
)
"""Pictures of 64 x 64 with squares of 16, 32, 64 and 128 pixels around 4, 12, 20, ...; 8, 24, ...; 16, 48; 32."""


def given(
    pictures: list[tuple[tuple[int, int], list[tuple[int, float, float, float, float]]]],
) -> DetectionData:
    """Pictures as (width, height) and boxes (label, x1, y1, x2, y2) of the classes cell and speck."""
    rows = [box for _, boxes in pictures for box in boxes]
    return DetectionData(
        root=Path("set"),
        format="COCO",
        split="train",
        classes=("cell", "speck"),
        category_ids=(1, 2),
        records=Records(
            Path("set"),
            [f"{i}.jpg" for i in range(len(pictures))],
            np.arange(len(pictures)),
            np.array([size for size, _ in pictures], dtype=np.int32),
            np.cumsum([0, *(len(boxes) for _, boxes in pictures)]),
            np.array([box[1:] for box in rows], dtype=np.float32).reshape(-1, 4),
            np.array([box[0] for box in rows], dtype=np.int32),
            np.zeros(len(rows), dtype=bool),
            np.zeros(len(rows), dtype=np.float32),
        ),
        problems=(),
    )


def test_three_boxes_by_hand() -> None:
    """The anchor around (12, 12) itself; a square of 8 in it (64 of 256); a box that is the upper half of one."""
    data = given(
        [
            ((128, 128), [(0, 8, 8, 40, 40), (1, 16, 16, 32, 32)]),  # 4 4 20 20 and 8 8 16 16 in training
            ((64, 64), [(1, 44, 4, 60, 12)]),  # half of the anchor 44 4 60 20
        ]
    )
    boxes = training_boxes(data, SQUARES)
    assert boxes.boxes.tolist() == [[4, 4, 20, 20], [8, 8, 16, 16], [44, 4, 60, 12]]
    assert best_iou(boxes, SQUARES).tolist() == pytest.approx([1, 0.25, 0.5])
    # The square of 8 wants the very anchor that the square of 16 fills: the latter keeps it, and it alone.
    assert positives_per_box(boxes, SQUARES).tolist()[0] == 1
    fit = fit_anchors(data, SQUARES)
    assert {row.name: (row.boxes, row.below_positive) for row in fit.rows} == {
        "all": (3, pytest.approx(1 / 3)),
        "cell": (1, 0.0),
        "speck": (2, 0.5),
        "8 to 16 px": (2, 0.5),
        "16 to 32 px": (1, 0.0),
    }
    assert fit.present.below_positive == pytest.approx((0 + 1 / 2) / 2)
    assert fit.present.mean_iou == pytest.approx((1 + 0.375) / 2)
    assert fit.without_positive == 1
    assert fit.worst == ("0.jpg: speck [16, 16, 32, 32], in training 8 x 8 px, best IoU 0.25",)


@pytest.mark.parametrize("name", ["nano", "r50"])
@pytest.mark.parametrize("size", [(333, 250), (90, 410), (20, 20)])
def test_the_nearest_anchor_of_each_shape_is_the_best_of_all_and_positives_are_those_of_training(
    name: str, size: tuple[int, int]
) -> None:
    random = np.random.default_rng(0)
    corners = np.sort(random.uniform(0, 1, (60, 2, 2)), axis=1) * size + [[[0, 0], [0.5, 0.5]]]
    data = given([(size, [(0, *box) for box in corners.reshape(60, 4).tolist()])])
    config = preset(name, size=320)
    boxes = training_boxes(data, config)
    anchors, _ = make_anchors(config, *boxes.canvas[0].tolist(), CPU)
    torch.testing.assert_close(
        best_iou(boxes, config), pairwise_iou(boxes.boxes[None], anchors)[0].amax(1), rtol=1e-5, atol=1e-6
    )
    matches = match(
        boxes.boxes[None], torch.ones(1, 60, dtype=torch.bool), anchors, positive_iou=0.5, background_iou=0.4
    )
    assert positives_per_box(boxes, config).tolist() == [int((matches == k).sum()) for k in range(60)]


def test_no_boxes_and_one_tiny_box() -> None:
    empty = given([((64, 64), []), ((64, 64), [])])
    fit = fit_anchors(empty, SQUARES)
    assert fit.rows[0].boxes == 0 and fit.tried == () and fit.suggestion is None
    assert "leave the anchors as they are" in fit.table()
    assert anchor_warning(empty, SQUARES) is None

    tiny = given([((64, 64), []), ((64, 64), [(1, 30, 30, 31, 31)])])
    fit = fit_anchors(tiny, SQUARES)
    assert [(row.name, row.boxes, row.below_positive) for row in fit.rows] == [
        ("all", 1, 1.0),
        ("speck", 1, 1.0),
        ("0 to 8 px", 1, 1.0),
    ]
    assert fit.rows[0].iou[0] == pytest.approx(1 / 256)
    assert "1.jpg: speck [30, 30, 31, 31], in training 1 x 1 px, best IoU 0.00" in fit.table()


def test_flat_boxes_get_flat_anchors_suggested_and_the_suggestion_holds() -> None:
    random = np.random.default_rng(1)
    boxes = []
    for _ in range(200):
        x, y, w = random.uniform(0, 150), random.uniform(0, 300), random.uniform(60, 160)
        boxes.append((0, x, y, x + w, y + w / 5))
    data = given([((320, 320), boxes[k : k + 10]) for k in range(0, 200, 10)])
    config = dataclasses.replace(preset("nano"), min_size=320, max_size=320)
    fit = fit_anchors(data, config)
    assert fit.present.below_positive > 0.9
    suggestion = fit.suggestion
    assert suggestion is not None and suggestion.base is not None
    assert suggestion.below_positive < 0.02 and suggestion.anchors_per_cell <= config.anchors_per_cell
    assert min(suggestion.ratios) == pytest.approx(0.2, abs=0.05)
    chosen = dataclasses.replace(config, anchor_base=suggestion.base, anchor_ratios=suggestion.ratios)
    again = fit_anchors(data, chosen)
    assert again.present == suggestion
    assert again.suggestion is None
    assert suggestion.options in fit.table()


def test_positives_are_counted_on_some_pictures_and_shares_on_all() -> None:
    data = given([((64, 64), [(0, 4, 4, 20, 20)]), ((64, 64), [(1, 30, 30, 34, 34)])])
    fit = fit_anchors(data, SQUARES, pictures=1)
    assert (fit.matched_pictures, fit.pictures) == (1, 2)
    rows = {row.name: row for row in fit.rows}
    assert rows["all"].below_positive == 0.5
    assert rows["cell"].positives == (1, 1, 1)
    assert all(np.isnan(rows["speck"].positives))
    assert fit.present.below_positive == 0


def test_the_warning_names_the_class_that_is_worst_off(monkeypatch: pytest.MonkeyPatch) -> None:
    good, poor = (0, 4, 4, 20, 20), (1, 30, 30, 34, 34)
    data = given([((64, 64), [good] * 76), ((64, 64), [poor] * 4)])
    assert anchor_warning(data, SQUARES) is None  # 4 of 80 are 5 %, and 4 specks are too few to say more
    data = given([((64, 64), [good] * 75), ((64, 64), [poor] * 5)])
    assert (anchor_warning(data, SQUARES) or "").startswith("6% of the boxes meet no anchor at IoU 0.5")
    data = given([((64, 64), [good] * 9)] * 100 + [((64, 64), [poor])] * 20)
    assert (anchor_warning(data, SQUARES) or "").startswith("100% of the boxes of 'speck' meet no anchor")
    monkeypatch.setattr(anchor_fit, "WARN_BOXES", 40)
    assert anchor_warning(data, SQUARES) is None  # one speck is among the five pictures now looked at


def test_presets_take_anchors_and_a_size() -> None:
    assert preset("r50", anchor_base=2, anchor_ratios=(1.0,)).level_sizes[0] == pytest.approx(
        (16, 16 * 2 ** (1 / 3), 16 * 2 ** (2 / 3))
    )
    assert preset("r50", anchor_ratios=(0.5, 1.0)).level_sizes == PRESETS["r50"].level_sizes
    assert preset("nano", size=480).max_size == 480
    for change, said in (
        ({"anchor_base": 0.0}, "anchor base 0.0: give a number above 0"),
        ({"anchor_base": float("nan")}, "anchor base nan"),
        ({"anchor_ratios": ()}, "anchor ratios .*at least one"),
        ({"anchor_ratios": (1.0, -2.0)}, "anchor ratios .*above 0"),
        ({"size": 0}, "size must be a whole number of at least 1, not 0"),
        ({"size": 320.5}, "size must be a whole number of at least 1, not 320.5"),
    ):
        with pytest.raises(GhmdetError, match=said):
            preset("nano", **change)  # type: ignore[arg-type]


def test_the_command_prints_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    """The figures that the measurement data had when the presets were chosen: platelets want a smaller base at 320."""
    data = shared_data("bccd")
    with pytest.raises(SystemExit) as stopped:
        main(["data", "anchors", str(data), "--size", "320"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "Platelets         209   18.7%    4.8%" in said
    assert "To match more boxes: ghmdet train ... --anchor-base 2.5" in said
    warning = anchor_warning(read_data(data, "train"), preset("nano", size=320))
    assert warning == "19% of the boxes of 'Platelets' meet no anchor at IoU 0.5 and get only their best one"
    assert anchor_warning(read_data(data, "train"), preset("nano")) is None
