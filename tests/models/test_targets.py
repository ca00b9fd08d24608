from __future__ import annotations

import pytest
import torch
from detector_cases import TINY, padded, random_boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from ghmdet.errors import GhmdetError
from ghmdet.models.anchors import make_anchors
from ghmdet.models.targets import anchor_targets, check_targets

CPU = torch.device("cpu")


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_batched_match_equals_torchvisions_for_each_picture(counts, seed):
    torch.manual_seed(seed)
    anchors, _ = make_anchors(TINY, 96, 128, CPU)
    boxes = [random_boxes(count) for count in counts]
    matches = anchor_targets(*padded(boxes), anchors, TINY, 3).rows
    reference = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    for index, rows in enumerate(boxes):
        assert torch.equal(matches[index], reference(box_iou(rows, anchors)))


def test_pictures_without_boxes_are_all_background():
    anchors, _ = make_anchors(TINY, 96, 128, CPU)
    wanted = anchor_targets(*padded([torch.zeros(0, 4), random_boxes(3)]), anchors, TINY, 3)
    assert (wanted.rows[0] == -1).all() and (wanted.labels[0] == 3).all()
    assert (wanted.rows[1] >= 0).any()
    empty = anchor_targets(*padded([torch.zeros(0, 4)]), anchors, TINY, 3)
    assert (empty.rows == -1).all() and (empty.labels == 3).all()


def test_a_box_that_no_anchor_touches_takes_none():
    # torchvision would give such a box every anchor that touches nothing: a whole picture of positives
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    boxes = torch.tensor([[[100.0, 100, 110, 110]]])
    wanted = anchor_targets(boxes, torch.zeros(1, 1).long(), anchors, TINY, 3)
    assert wanted.rows.tolist() == [[-1, -1]]


def test_targets_name_class_background_and_ignored():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 10, 22], [50, 50, 60, 60]])
    targets = padded([torch.tensor([[0.0, 0, 10, 10]])], [torch.tensor([2])])
    labels, boxes, rows = anchor_targets(*targets, anchors, TINY, 3)
    assert labels.tolist() == [[2, 2, -1, 3]] and rows.tolist() == [[0, 0, -2, -1]]
    assert boxes[0, :2].tolist() == [[0, 0, 10, 10]] * 2
    assert torch.equal(boxes[0, 2:], anchors[2:])  # those without a box: their own place, of positive size


@pytest.mark.parametrize("low_quality_iou", [0.1, 0.3])
def test_every_box_keeps_its_best_anchor(low_quality_iou):
    side = 10 * low_quality_iou**0.5
    anchors = torch.tensor([[0.0, 0, 10, 10], [100, 100, 110, 110]])
    boxes = torch.tensor([[[0.0, 0, side, side]]])
    wanted = anchor_targets(boxes, torch.zeros(1, 1).long(), anchors, TINY, 3)
    assert wanted.rows.tolist() == [[0, -1]]


def target(boxes, labels):
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels)}


GOOD = target([[0, 0, 5, 5]], [1])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([GOOD], "1 targets for 2 images"),
        ([GOOD, target([[0, 0, 5, 5], [9, 1, 4, 5]], [0, 0])], r"target 1, box 1 is \[9.0, 1.0, 4.0, 5.0\]"),
        ([target([[0, 0, 5, 0]], [0]), GOOD], r"target 0, box 0 is \[0.0, 0.0, 5.0, 0.0\]"),
        ([GOOD, target([[0, 0, float("nan"), 5]], [0])], r"target 1, box 0 is \[0.0, 0.0, nan, 5.0\]"),
        ([GOOD, target([[0, 0, float("inf"), 5]], [0])], r"target 1, box 0 is \[0.0, 0.0, inf, 5.0\]"),
        (
            [GOOD, target([[0, 0, 5, 5]], [3])],
            r"target 1, box 0 has label 3; the detector's 3 classes are 0..2",
        ),
        ([GOOD, target([[0, 0, 5, 5]], [-1])], "target 1, box 0 has label -1"),
        ([GOOD, target([[0, 0, 5, 5]], [0, 1])], r"target 1 has boxes \[1, 4\] and labels \[2\]"),
        ([GOOD, target([[0, 0, 5, 5]], [0.0])], "target 1 has labels of torch.float32"),
    ],
)
def test_bad_targets_are_named(targets, message):
    with pytest.raises(GhmdetError, match=message) as caught:
        check_targets(targets, images=2, num_classes=3)
    assert "\n" not in str(caught.value)


def test_targets_without_boxes_are_good():
    check_targets([GOOD, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}], 2, 3)
