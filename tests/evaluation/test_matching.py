from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

import ghmdet
from ghmdet.evaluation.matching import THRESHOLDS, matches, overlaps
from score_cases import small


def test_only_one_module_imports_hotcoco() -> None:
    root = Path(ghmdet.__file__).parent
    imports = re.compile(r"^\s*(import|from) hotcoco", re.MULTILINE)
    importing = [file for file in root.rglob("*.py") if imports.search(file.read_text(encoding="utf-8"))]
    assert [file.relative_to(root).as_posix() for file in importing] == ["evaluation/matching.py"]


def test_a_threshold_itself_is_reached_and_the_next_is_not() -> None:
    assert pytest.approx(np.arange(10, 20) / 20) == THRESHOLDS
    truth, found = small()
    for i, width in enumerate(np.arange(10, 20) / 20):
        found[0]["bbox"] = [0, 0, 20 * float(width), 20]
        hit = matches(truth, found)["car"].hit[:, 0]
        assert hit.tolist() == [True] * (i + 1) + [False] * (9 - i)


@pytest.mark.parametrize("counts", [(5, 7), (0, 3), (3, 0), (0, 0)])
def test_overlaps_are_iou_and_the_share_of_the_first_boxs_area(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    boxes, others = (
        np.hstack([low := rng.uniform(0, 50, (n, 2)), low + rng.uniform(9, 50, (n, 2))]) for n in counts
    )
    expected = box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).numpy()
    np.testing.assert_allclose(overlaps(boxes, others), expected)
    low, high = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None]
    shared = (high - low).clip(min=0).prod(axis=2)
    np.testing.assert_allclose(overlaps(boxes, others, crowds=True), shared / area)
