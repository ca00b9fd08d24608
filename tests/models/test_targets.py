from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from detector_cases import ARTICLE, TINY, padded, random_boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from ghmdet.errors import GhmdetError
from ghmdet.models import targets as module
from ghmdet.models.anchors import make_anchors
from ghmdet.models.presets import ModelConfig
from ghmdet.models.targets import anchor_targets, box_overlaps, check_targets
from operations import WAITS, Operations, as_an_accelerator

CPU = torch.device("cpu")


def best(count: int) -> ModelConfig:
    return dataclasses.replace(TINY, best_anchors=count)


def diou(box: list[float], anchor: list[float]) -> float:
    """One pair, as Zheng et al. 2020 write it: IoU - d^2 / c^2."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = box, anchor
    overlap = max(0.0, min(x2, u2) - max(x1, u1)) * max(0.0, min(y2, v2) - max(y1, v1))
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap
    centres = ((x1 + x2 - u1 - u2) / 2) ** 2 + ((y1 + y2 - v1 - v2) / 2) ** 2
    around = (max(x2, u2) - min(x1, u1)) ** 2 + (max(y2, v2) - min(y1, v1)) ** 2
    return overlap / union - centres / around


def naive_best(
    boxes: list[list[float]], anchors: list[list[float]], count: int, worth: list[list[float]] | None = None
) -> list[int]:
    """The box of each anchor, -1 for background, -2 for ignored: pair by pair, with Python's numbers."""
    worth = worth or [[diou(box, anchor) for anchor in anchors] for box in boxes]
    iou = box_iou(torch.tensor(boxes).double(), torch.tensor(anchors).double()).amax(0)
    rows = [-2 if most >= 0.4 else -1 for most in iou.tolist()]
    least = [sorted(mine)[-count] for mine in worth]
    for at in range(len(anchors)):
        wanting = [row for row, mine in enumerate(worth) if mine[at] >= least[row]]
        if wanting:
            rows[at] = max(wanting, key=lambda row: worth[row][at])
    for row, mine in enumerate(worth):
        if row not in rows:  # the best anchor that is not the last of another box
            free = [at for at, owner in enumerate(rows) if owner < 0 or rows.count(owner) > 1]
            free = [at for at in free if mine[at] >= least[row]]
            if free:
                rows[max(free, key=mine.__getitem__)] = row
    return rows


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_batched_match_equals_torchvisions_for_each_picture(counts, seed):
    torch.manual_seed(seed)
    anchors, _ = make_anchors(TINY, 96, 128, CPU)
    boxes = [random_boxes(count) for count in counts]
    matches = anchor_targets(*padded(boxes), anchors, ARTICLE, 3).rows
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
    wanted = anchor_targets(boxes, torch.zeros(1, 1).long(), anchors, ARTICLE, 3)
    assert wanted.rows.tolist() == [[-1, -1]]


def test_targets_name_class_background_and_ignored():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 10, 22], [50, 50, 60, 60]])
    targets = padded([torch.tensor([[0.0, 0, 10, 10]])], [torch.tensor([2])])
    labels, boxes, rows = anchor_targets(*targets, anchors, ARTICLE, 3)
    assert labels.tolist() == [[2, 2, -1, 3]] and rows.tolist() == [[0, 0, -2, -1]]
    assert boxes[0, :2].tolist() == [[0, 0, 10, 10]] * 2
    assert torch.equal(boxes[0, 2:], anchors[2:])  # those without a box: their own place, of positive size


@pytest.mark.parametrize("low_quality_iou", [0.1, 0.3])
def test_every_box_keeps_its_best_anchor(low_quality_iou):
    side = 10 * low_quality_iou**0.5
    anchors = torch.tensor([[0.0, 0, 10, 10], [100, 100, 110, 110]])
    boxes = torch.tensor([[[0.0, 0, side, side]]])
    wanted = anchor_targets(boxes, torch.zeros(1, 1).long(), anchors, ARTICLE, 3)
    assert wanted.rows.tolist() == [[0, -1]]


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    best_of=st.integers(1, 12),
)
def test_best_anchors_equal_the_slow_reference_for_each_picture(counts, seed, best_of):
    torch.manual_seed(seed)
    anchors = make_anchors(TINY, 96, 128, CPU)[0][::7]
    boxes = [random_boxes(count) for count in counts]
    found = anchor_targets(*padded(boxes), anchors, best(best_of), 3).rows
    for index, rows in enumerate(boxes):
        assert found[index].tolist() == naive_best(rows.tolist(), anchors.tolist(), best_of)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 12), seed=st.integers(0, 2**31), best_of=st.integers(1, 9))
def test_in_a_crowd_each_box_keeps_an_anchor_while_there_are_enough(count, seed, best_of):
    torch.manual_seed(seed)
    anchors = make_anchors(TINY, 96, 128, CPU)[0][::2]
    corner = 40 + 12 * torch.rand(count, 2)
    boxes = torch.cat((corner, corner + 3 + torch.rand(count, 2)), dim=1)
    boxes = torch.cat((boxes, boxes[:2]))  # twice in the same place, as with two classes
    rows = anchor_targets(*padded([boxes]), anchors, best(best_of), 3).rows[0].tolist()
    worth = box_overlaps(boxes[None], anchors)[1][0]  # such boxes are so near ties that rounding decides
    assert rows == naive_best(boxes.tolist(), anchors.tolist(), best_of, worth.tolist())
    for row in set(range(len(boxes))) - set(rows):
        for at in worth[row].topk(best_of).indices.tolist():
            assert rows.count(rows[at]) == 1


def test_two_classes_of_one_box_have_an_anchor_each_on_every_device(monkeypatch):
    anchors, _ = make_anchors(TINY, 96, 128, CPU)
    boxes = torch.tensor([[33.0, 33, 36, 37]]).repeat(5, 1)
    targets = padded([boxes[:2], random_boxes(3), boxes], [torch.arange(n) for n in (2, 3, 5)])
    labels, _, rows = anchor_targets(*targets, anchors, best(9), 5)
    assert {*labels[0].tolist()} == {0, 1, 5} and {*labels[2].tolist()} == {0, 1, 2, 3, 4, 5}
    assert (rows[2] >= 0).sum() == (rows[0] >= 0).sum() >= 9  # as many as the one box would have
    as_an_accelerator(monkeypatch)
    with Operations() as seen:
        there = anchor_targets(*targets, anchors, best(9), 5).rows
    assert not seen.names & WAITS and torch.equal(there, rows)


def test_box_overlaps_by_hand():
    boxes = torch.tensor([[[0.0, 0, 10, 10]]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10], [0, 0, 20, 20]])
    iou, closeness = box_overlaps(boxes, anchors)
    assert torch.allclose(iou, torch.tensor([[[1, 1 / 3, 0, 1 / 4]]]))
    # centres 0, 5, 20 and sqrt(50) apart; what surrounds both has diagonals of sqrt(200, 325, 1000, 800)
    assert torch.allclose(closeness, torch.tensor([[[1, 1 / 3 - 25 / 325, -400 / 1000, 1 / 4 - 50 / 800]]]))


def test_an_anchor_that_two_boxes_want_goes_to_the_one_it_is_best_for():
    anchors = torch.tensor([[0.0, 0, 10, 10], [8, 0, 18, 10], [16, 0, 26, 10], [50, 50, 60, 60]])
    boxes = torch.tensor(
        [[[0.0, 0, 12, 10], [14, 0, 26, 10]]]
    )  # the second anchor is the second best of both
    wanted = anchor_targets(boxes, torch.tensor([[0, 1]]), anchors, best(2), 3)
    assert wanted.rows.tolist() == [[0, 0, 1, -1]]  # a tie goes to the first
    boxes[0, 1, 0] = 13.0
    wanted = anchor_targets(boxes, torch.tensor([[0, 1]]), anchors, best(2), 3)
    assert wanted.rows.tolist() == [[0, 1, 1, -1]]
    assert wanted.labels.tolist() == [[0, 1, 1, 3]]


def test_an_anchor_that_overlaps_a_box_and_is_not_among_its_best_is_ignored():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [0, 0, 10, 25], [0, 0, 10, 26]])
    wanted = anchor_targets(torch.tensor([[[0.0, 0, 10, 10]]]), torch.zeros(1, 1).long(), anchors, best(1), 3)
    assert wanted.rows.tolist() == [[0, -2, -2, -1]] and wanted.labels.tolist() == [[0, -1, -1, 3]]


def test_what_is_ignored_stays_so_where_a_box_has_lost_its_anchors():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60]])
    boxes = torch.tensor([[[0.0, 0, 10, 10]] * 2])  # the second wants what is the first one's last
    wanted = anchor_targets(boxes, torch.tensor([[0, 1]]), anchors, best(1), 3)
    assert wanted.rows.tolist() == [[0, -2, -1]] and wanted.labels.tolist() == [[0, -1, 3]]


@pytest.mark.parametrize("box", [[33.0, 33, 35, 35], [0, 0, 1, 1], [127, 95, 128, 96], [3, 3, 3.5, 80]])
def test_a_box_smaller_than_a_cell_has_its_anchors_around_its_own_place(box):
    anchors, _ = make_anchors(TINY, 96, 128, CPU)
    rows = anchor_targets(*padded([torch.tensor([box])]), anchors, best(6), 3).rows[0]
    mine = anchors[rows == 0]
    assert 6 <= len(mine) <= 12 and (rows[rows != 0] == -1).all()
    middle = torch.tensor([box[0] + box[2], box[1] + box[3]]) / 2
    assert (mine[:, :2] < middle).all() and (mine[:, 2:] > middle).all()


def test_a_box_that_covers_the_picture_has_its_best_anchors():
    anchors, counts = make_anchors(TINY, 96, 128, CPU)
    rows = anchor_targets(*padded([torch.tensor([[0.0, 0, 128, 96]])]), anchors, best(9), 3).rows[0]
    assert 9 <= (rows == 0).sum() <= 18
    assert (rows == 0).nonzero().min() >= sum(counts[:2])  # of the two coarsest levels


@settings(max_examples=50, deadline=None)
@given(
    corner=st.tuples(st.floats(0, 127), st.floats(0, 95)),
    share=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
)
def test_every_box_inside_the_picture_has_at_least_its_number_of_anchors(corner, share):
    x, y = corner
    box = torch.tensor([[x, y, x + (128 - x) * share[0], y + (96 - y) * share[1]]])
    anchors, _ = make_anchors(TINY, 96, 128, CPU)
    if (box[:, 2:] > box[:, :2]).all():
        assert (anchor_targets(*padded([box]), anchors, best(9), 3).rows == 0).sum() >= 9


def test_padding_and_the_other_pictures_change_nothing():
    anchors, _ = make_anchors(TINY, 96, 128, CPU)
    torch.manual_seed(1)
    boxes = [random_boxes(3), torch.zeros(0, 4), random_boxes(8)]
    together = anchor_targets(*padded(boxes), anchors, best(9), 3)
    for index, rows in enumerate(boxes):
        alone = anchor_targets(*padded([rows]), anchors, best(9), 3)
        assert torch.equal(together.rows[index], alone.rows[0])
        assert torch.equal(together.labels[index], alone.labels[0])
    assert (together.rows[1] == -1).all()


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    pairs=st.integers(1, 5000),
    best_of=st.sampled_from([0, 1, 9]),
    crowded=st.booleans(),
)
def test_boxes_a_few_at_a_time_match_as_all_at_once(counts, seed, pairs, best_of, crowded):
    torch.manual_seed(seed)
    anchors = make_anchors(TINY, 96, 128, CPU)[0][::5]
    boxes = [random_boxes(count) / (8 if crowded else 1) for count in counts]
    boxes[-1] = torch.cat((boxes[-1], boxes[-1][:3]))  # of two classes: equally good everywhere
    config = dataclasses.replace(TINY, best_anchors=best_of)
    together = anchor_targets(*padded(boxes), anchors, config, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAIRS", pairs)
        for name, values in anchor_targets(*padded(boxes), anchors, config, 3)._asdict().items():
            assert torch.equal(values, getattr(together, name)), name


MANY = """
import resource, torch
from ghmdet.models import PRESETS
from ghmdet.models.anchors import make_anchors
from ghmdet.models.targets import anchor_targets
config = PRESETS["nano"]
anchors = make_anchors(config, 128, 128, torch.device("cpu"))[0]
for count in (1000, 20_000):
    corner = 120 * torch.rand(1, count, 2)
    boxes = torch.cat((corner, corner + 1 + 6 * torch.rand_like(corner)), dim=2)
    rows = anchor_targets(boxes, torch.zeros(1, count).long(), anchors, config, 1).rows
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, rows.unique().numel())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is in KiB on Linux only")
def test_memory_does_not_grow_with_the_boxes_of_a_picture():
    told = subprocess.run([sys.executable, "-c", MANY], stdout=subprocess.PIPE, check=True).stdout.split()
    few, matched, many, matched_too = map(int, told)
    assert matched > 500 and matched_too > 1000
    assert many < few + 50  # MiB; all boxes at once take 877 more


def test_more_anchors_than_there_are_is_all_of_them():
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    wanted = anchor_targets(torch.tensor([[[0.0, 0, 9, 9]]]), torch.zeros(1, 1).long(), anchors, best(9), 3)
    assert wanted.rows.tolist() == [[0, 0]]


def target(boxes, labels):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=None if labels else torch.int64),
    }


GOOD = target([[0, 0, 5, 5]], [1])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([GOOD], "1 target for 2 images"),
        ([GOOD, target([[0, 0, 5, 5], [9, 1, 4, 5]], [0, 0])], r"target 1, box 1 is \[9.0, 1.0, 4.0, 5.0\]"),
        ([target([[0, 0, 5, 0]], [0]), GOOD], r"target 0, box 0 is \[0.0, 0.0, 5.0, 0.0\]"),
        ([GOOD, target([[3, 0, 2, 5]], [0])], r"target 1, box 0 is \[3.0, 0.0, 2.0, 5.0\]"),
        (
            [target([], []), target([[0, 0, 5, 5.006], [0, 7, 5, 7]], [0, 0])],
            r"target 1, box 1 is \[0.0, 7.0, 5.0, 7.0\]",
        ),
        (
            [GOOD, {"boxes": torch.zeros(1, 5), "labels": torch.zeros(1).long()}],
            r"boxes \[1, 5\] and labels \[1\]; they must",
        ),
        (
            [GOOD, {"boxes": torch.zeros(4), "labels": torch.zeros(4).long()}],
            r"boxes \[4\] and labels \[4\]; they must be \[n, 4\] and \[n\]",
        ),
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
