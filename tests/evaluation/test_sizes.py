from __future__ import annotations

from typing import Any

import pytest

from ghmdet.evaluation.findings import find
from score_cases import random_set


def boxes(*sides: float, picture: int = 1, crowd: int = 0) -> list[dict[str, Any]]:
    return [
        {"image_id": picture, "category_id": 1, "bbox": [200.0 * i, 0, side, side], "iscrowd": crowd}
        for i, side in enumerate(sides)
    ]


def truth(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    images = [{"id": i} for i in (2, 1)]  # not in the order of their ids
    return {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": annotations}


def rows(*arguments: Any) -> list[tuple[int, int | None, float | None, float | None]]:
    found = find(*arguments).sizes
    shown = [one["AP50"] if one["AP50"] is None else round(one["AP50"], 6) for one in found]
    return [(one["least"], one["boxes"], AP50, one["recall"]) for one, AP50 in zip(found, shown, strict=True)]


def test_each_object_counts_in_one_range_and_is_found_by_sure_detections() -> None:
    given = truth([*boxes(7.9, 8, 15, 16, 96), *boxes(40, 50, picture=2, crowd=1)])
    results = [one | {"score": 0.4 if one["bbox"][2] == 15 else 0.9} for one in boxes(7.9, 8, 15, 16)]
    assert rows(given, results) == [
        (0, 1, 1.0, 1.0),
        (8, 2, 1.0, 0.5),  # the one that scores .4 is found, but not surely
        (16, 1, 1.0, 1.0),
        (32, 0, None, None),
        (96, 1, 0.0, 0.0),
    ]


def test_sizes_are_those_that_the_detector_sees_in_each_picture() -> None:
    given = truth([*boxes(20), *boxes(20, picture=2)])
    results = [one | {"score": 0.9} for one in boxes(20)]
    assert rows(given, results, {1: 0.5, 2: 4.0})[1:4] == [
        (8, 1, 1.0, 1.0),
        (16, 0, None, None),
        (32, 1, 0.0, 0.0),
    ]
    assert rows(given, results, {2: 4.0})[2:4] == [(16, 1, 1.0, 1.0), (32, 1, 0.0, 0.0)]


@pytest.mark.parametrize("seed", range(4))
def test_ranges_agree_with_cocos_own_and_with_the_whole(seed: int) -> None:
    annotations, results = random_set(seed)
    for one in annotations["annotations"]:
        one["area"] = one["bbox"][2] * one["bbox"][3]  # not a mask's
    found = find(annotations, results)
    if found.metrics.APm is None:
        assert found.sizes[3]["AP"] is None
    else:
        assert found.sizes[3]["AP"] == pytest.approx(found.metrics.APm)
    assert sum(one["boxes"] for one in found.sizes) == found.metrics.boxes
    recall = sum(one["boxes"] * one["recall"] for one in found.sizes if one["boxes"]) / found.metrics.boxes
    assert recall == pytest.approx(found.metrics.scores["recall"])


def test_boxes_of_absurd_size_stay_in_the_last_range() -> None:
    assert rows(truth(boxes(1e200, 1e6)), [])[4] == (96, 2, 0.0, 0.0)
