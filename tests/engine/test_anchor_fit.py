from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from ghmdet.cli import main
from ghmdet.data import DetectionData, Records, read_data
from ghmdet.engine import anchor_fit
from ghmdet.engine.anchor_fit import anchor_warning, best_iou, fit_anchors, training_boxes
from ghmdet.errors import GhmdetError
from ghmdet.models import PRESETS, preset
from ghmdet.models.anchors import make_anchors
from measured_data import shared_data

SQUARES = replace(
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
    fit = fit_anchors(data, SQUARES)
    assert fit.groups == [
        ("all", 3, pytest.approx(1 / 3), pytest.approx(1.75 / 3)),
        ("cell", 1, 0, 1),
        ("speck", 2, 0.5, 0.375),
        ("8 to 16 px", 2, 0.5, 0.375),
        ("16 to 32 px", 1, 0, 1),
    ]
    assert fit.present.unmatched == pytest.approx((0 + 1 / 2) / 2)
    assert fit.present.mean_iou == pytest.approx((1 + 0.375) / 2)
    lines = [line.split() for line in fit.table().splitlines()]
    assert ["speck", "2", "50.0%", "0.375"] in lines
    assert ["these", "anchors", "1", "25.0%", "0.688"] in lines


@pytest.mark.parametrize("name", ["nano", "r50"])
@pytest.mark.parametrize("size", [(333, 250), (90, 410), (20, 20)])
def test_the_nearest_anchor_of_each_shape_is_the_best_of_all(name: str, size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    corners = np.sort(random.uniform(0, 1, (60, 2, 2)), axis=1) * size + [[[0, 0], [0.5, 0.5]]]
    data = given([(size, [(0, *box) for box in corners.reshape(60, 4).tolist()])])
    config = preset(name, size=320)
    boxes = training_boxes(data, config)
    anchors, _ = make_anchors(config, *boxes.canvas[0].tolist(), torch.device("cpu"))
    best = box_iou(boxes.boxes, anchors).amax(1)
    torch.testing.assert_close(best_iou(boxes, config), best, rtol=1e-5, atol=1e-6)


def test_no_boxes_and_one_tiny_box() -> None:
    empty = given([((64, 64), []), ((64, 64), [])])
    fit = fit_anchors(empty, SQUARES)
    assert fit.groups == [] and fit.tried == [] and fit.suggestion is None
    assert "leave the anchors as they are" in fit.table()
    assert anchor_warning(empty, SQUARES) is None

    tiny = given([((64, 64), []), ((64, 64), [(1, 30, 30, 31, 31)])])
    meets = (1, 1.0, pytest.approx(1 / 256))
    assert fit_anchors(tiny, SQUARES).groups == [("all", *meets), ("speck", *meets), ("0 to 8 px", *meets)]


def test_a_class_may_be_called_all() -> None:
    data = replace(given([((64, 64), [(0, 4, 4, 20, 20), (1, 30, 30, 34, 34)])]), classes=("cell", "all"))
    shares = [(group.name, group.boxes, group.unmatched) for group in fit_anchors(data, SQUARES).groups[:3]]
    assert shares == [("all", 2, 0.5), ("cell", 1, 0.0), ("all", 1, 1.0)]


def test_flat_boxes_get_flat_anchors_suggested_and_the_suggestion_holds() -> None:
    random = np.random.default_rng(1)
    boxes = []
    for _ in range(200):
        x, y, w = random.uniform(0, 150), random.uniform(0, 300), random.uniform(60, 160)
        boxes.append((0, x, y, x + w, y + w / 5))
    data = given([((320, 320), boxes[k : k + 10]) for k in range(0, 200, 10)])
    config = replace(preset("nano"), min_size=320, max_size=320)
    fit = fit_anchors(data, config)
    assert fit.present.unmatched > 0.9
    suggestion = fit.suggestion
    assert suggestion is not None
    assert suggestion.unmatched < 0.02 and suggestion.config.anchors_per_cell <= config.anchors_per_cell
    assert min(suggestion.config.anchor_ratios) == pytest.approx(0.2, abs=0.05)
    again = fit_anchors(data, suggestion.config)
    assert again.present == suggestion
    assert again.suggestion is None
    assert suggestion.options in fit.table()


def test_settings_are_tried_on_some_pictures_and_shares_are_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor_fit, "PICTURES", 1)
    data = given([((64, 64), [(0, 4, 4, 20, 20)]), ((64, 64), [(1, 30, 30, 34, 34)])])
    fit = fit_anchors(data, SQUARES)
    assert fit.groups[0].unmatched == 0.5
    assert fit.present.unmatched == 0


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
        ({"anchor_base": 0.0}, "--anchor-base 0.0: give a number from 0.01"),
        ({"anchor_base": float("nan")}, "--anchor-base nan"),
        ({"anchor_ratios": ()}, "no anchor ratios: give at least one"),
        ({"anchor_ratios": (1.0, -2.0)}, "--anchor-ratios -2.0: give a number from 0.01"),
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
    assert ["Platelets", "209", "18.7%", "0.597"] in [line.split() for line in said.splitlines()]
    assert "To match more boxes: ghmdet train ... --anchor-base 2.5" in said
    warning = anchor_warning(read_data(data, "train"), preset("nano", size=320))
    assert warning == "19% of the boxes of 'Platelets' meet no anchor at IoU 0.5 and get only their best one"
    assert anchor_warning(read_data(data, "train"), preset("nano")) is None
