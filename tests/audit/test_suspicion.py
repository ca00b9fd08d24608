"""Each kind of wrong label on hand-made detections whose right answer is known."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghmdet.audit import KINDS, Label, Suspicion, audit
from ghmdet.audit.suspicion import LEAST, judge, judge_all, rank
from ghmdet.data import DetectionData, read_data
from ghmdet.engine.detect import Detector
from ghmdet.engine.observation import look
from ghmdet.errors import DataError
from ghmdet.evaluation.hardest import Scored
from ghmdet.models import RetinaNet, preset
from small_sets import Picture, coco_content, draw

CAT, DOG = 0, 1
BOX = (20.0, 20.0, 60.0, 60.0)
HALF = (40.0, 40.0, 80.0, 80.0)  # BOX moved by half of its sides: IoU 1/7
Row = tuple[int, tuple[float, float, float, float]]


def labelled(root: Path, *rows: Row, crowd: int | None = None) -> DetectionData:
    """A picture of 200 x 200 pixels with these labels."""
    content = coco_content([Picture("a.jpg", 200, 200, [(label, *box) for label, box in rows])])
    if crowd is not None:
        content["annotations"][crowd]["iscrowd"] = 1
    (root / "train.json").write_text(json.dumps(content))
    draw(root / "a.jpg", 200, 200)
    return read_data(root / "train.json")


def seen(*rows: tuple[int, tuple[float, float, float, float], float]) -> list[dict[str, Any]]:
    """Detections of the picture as COCO results."""
    return [
        {
            "image_id": 1,
            "category_id": 10 * (k + 1),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for k, (x1, y1, x2, y2), score in rows
    ]


def only(found: list[Suspicion]) -> Suspicion:
    (one,) = found
    return one


def test_an_object_without_a_label(tmp_path: Path) -> None:
    data = labelled(tmp_path, (CAT, BOX))
    far = (100.0, 100.0, 140.0, 140.0)
    results = seen((CAT, BOX, 1.0), (DOG, far, 0.8), (CAT, (102.0, 100.0, 142.0, 140.0), 0.7))
    one, other = audit(results, data)
    assert one == Suspicion(0, "missing", None, None, Label(DOG, far), 0.8, 0.8, None)
    # It may be of the other class: that is in the list of the kind, not in the one list.
    assert (other.kind, other.suggested.label, other.score, other.likeliest) == ("missing", CAT, 0.7, False)
    # Without NMS a detector finds it many times: it is told of once for each class.
    again = seen(*((CAT, (102.0 + x, 100.0, 142.0 + x, 140.0), 0.6) for x in (0.1, 0.2, 0.3)))
    assert audit(results + again, data) == [one, other]
    # A label beside it counts as far as it is not seen itself.
    half = audit(seen((CAT, BOX, 0.4), (DOG, HALF, 0.7)), data)[0]
    assert half.kind == "missing" and half.score == pytest.approx(0.7 * (1 - 0.6 / 7))
    assert half.g == pytest.approx(0.7)


def test_a_label_of_another_class(tmp_path: Path) -> None:
    data = labelled(tmp_path, (CAT, BOX))
    one, nothing = audit(seen((DOG, BOX, 0.8), (CAT, BOX, 0.1)), data)
    assert one.kind == "class" and one.row == 0 and one.likeliest
    # It has a score as a label on nothing, too: twice 1 - .8, by detections only, and 1 - .1.
    assert (nothing.kind, nothing.row, nothing.likeliest) == ("spurious", 0, False)
    assert nothing.score == pytest.approx((0.2 * 0.2 * 0.9) ** (1 / 3))
    assert (one.given, one.suggested) == (Label(CAT, BOX), Label(DOG, BOX))
    assert one.score == pytest.approx((0.8 * 0.9 * 8 / 9) ** (1 / 3)) and one.g == pytest.approx(0.9)
    assert one.gr == pytest.approx(0)


def test_a_box_beside_its_object(tmp_path: Path) -> None:
    others: list[Row] = [(CAT, (x, 120.0, x + 30, 150.0)) for x in (0.0, 50.0, 100.0, 150.0)]
    data = labelled(tmp_path, (CAT, HALF), *others)
    close = [(k, (x1, y1, x2 + 3, y2), 0.9) for k, (x1, y1, x2, y2) in others]
    found = audit(seen((CAT, BOX, 0.9), *close), data)
    one = found[0]
    assert one.kind == "shifted" and (one.given, one.suggested) == (Label(CAT, HALF), Label(CAT, BOX))
    # Boxes that are seen are usually 3 of 33 pixels narrower, and their centres half of that to the left.
    usual = (1.5 / 33, 1e-3, np.log(33 / 30), 1e-3)
    gr = max(0.5 / np.hypot(0.5, usual[0]), 0.5 / np.hypot(0.5, usual[1]))
    assert one.gr == pytest.approx(gr)
    assert one.score == pytest.approx((0.9 * (6 / 7) * (1 - 1 / 7**2) * gr) ** (1 / 4))
    first = [each for each in found if each.likeliest]
    assert [each.kind for each in first].count("missing") == 0  # the same object, told of once
    assert all(each.score < 0.5 for each in first[1:])
    (there,) = [each for each in found if each.kind == "missing"]
    assert there.score == pytest.approx(0.9 * (6 / 7)) and not there.likeliest


def test_a_faint_detection_that_fits_a_label_speaks_against_its_being_beside_its_object(
    tmp_path: Path,
) -> None:
    data = labelled(tmp_path, (CAT, HALF))
    faint = (40.0, 40.0, 80.0, 72.0)  # IoU .8
    found = audit(seen((CAT, BOX, 0.9), (CAT, faint, 0.1)), data)
    one = next(each for each in found if each.kind == "shifted")
    # One label is seen, and it is off by a fifth of its height at the detection on it.
    usual = (1e-3, 4 / 32, 1e-3, np.log(40 / 32))
    gr = max(0.5 / np.hypot(0.5, usual[0]), 0.5 / np.hypot(0.5, usual[1]))
    assert one.score == pytest.approx((0.9 * (6 / 7) * (1 - 0.1) * (1 - 0.8**2) * gr) ** (1 / 4))


@pytest.mark.parametrize("second", [BOX, (22.0, 20.0, 62.0, 62.0)])
@pytest.mark.parametrize(("own", "sure", "kind"), [(0.9, 0.95, "shifted"), (0.6, 0.99, "missing")])
def test_one_place_has_one_suspicion_of_an_object_without_its_box(
    tmp_path: Path, second: tuple[float, float, float, float], own: float, sure: float, kind: str
) -> None:
    """A label beside its object and a missing label there would give the object two boxes if both were accepted."""
    data = labelled(tmp_path, (CAT, HALF), (CAT, (120.0, 120.0, 160.0, 160.0)))
    loose = (CAT, (122.0, 124.0, 163.0, 160.0), 0.9)  # what is usual is not exact
    found = audit(seen((CAT, BOX, own), (DOG, second, sure), loose), data)
    first = [one for one in found if one.likeliest]
    bring = [one for one in first if one.kind in ("missing", "shifted") and one.suggested]
    assert [one.kind for one in bring] == [kind]
    # The label has its next likeliest suspicion, where it is no longer told to move.
    assert sum(one.row == 0 for one in first) == 1
    # Either is in the list of its kind.
    assert {"missing", "shifted"} <= {one.kind for one in found}


def test_a_label_is_not_told_to_move_onto_the_object_of_another(tmp_path: Path) -> None:
    data = labelled(tmp_path, (CAT, HALF), (CAT, (20.0, 20.0, 60.0, 98.0)))  # IoU 40 / 78 with BOX
    assert "shifted" not in {one.kind for one in audit(seen((CAT, BOX, 0.95)), data)}
    other = labelled(tmp_path, (CAT, HALF), (DOG, BOX))  # of another class: a label may be missing there
    assert "shifted" in {one.kind for one in audit(seen((CAT, BOX, 0.95)), other)}


def test_a_label_on_nothing(tmp_path: Path) -> None:
    data = labelled(tmp_path, (CAT, BOX), (CAT, (100.0, 100.0, 150.0, 150.0)))
    one = only(audit(seen((CAT, BOX, 1.0)), data))
    assert (one.kind, one.row, one.suggested, one.g, one.gr) == ("spurious", 1, None, 1, None)
    assert one.score == 1
    # What is seen beside it counts half at half of IoU .5, if it is of the label's class.
    beside = (130.0, 100.0, 180.0, 150.0)  # IoU .25
    for label, score in ((CAT, (1 - 0.4 / 2) ** (1 / 3)), (DOG, 1)):
        found = audit(seen((CAT, BOX, 1.0), (label, beside, 0.4)), data)
        assert next(each for each in found if each.kind == "spurious").score == pytest.approx(score)
    # On it any class counts, by its detections and by its anchors, which are the same here.
    found = audit(seen((CAT, BOX, 1.0), (DOG, (100.0, 100.0, 150.0, 170.0), 0.3)), data)
    assert next(each for each in found if each.kind == "spurious").score == pytest.approx(0.7 ** (2 / 3))


def test_a_second_label_on_an_object(tmp_path: Path) -> None:
    looser = (20.0, 20.0, 60.0, 64.0)  # IoU 40 / 44
    data = labelled(tmp_path, (CAT, looser), (CAT, BOX))
    one = only(audit(seen((CAT, BOX, 1.0)), data))
    assert (one.kind, one.row, one.suggested) == ("duplicate", 0, None)
    assert one.score == pytest.approx(40 / 44)
    # Two detections of two objects behind one another: no duplicate.
    assert not audit(seen((CAT, BOX, 0.97), (CAT, looser, 0.96)), data)
    # Labels of two classes are no duplicates.
    two = labelled(tmp_path, (DOG, looser), (CAT, BOX))
    assert "duplicate" not in {each.kind for each in audit(seen((CAT, BOX, 0.9)), two)}


def test_labels_that_are_seen_raise_no_suspicion(tmp_path: Path) -> None:
    data = labelled(tmp_path, (CAT, BOX), (DOG, (100.0, 100.0, 150.0, 150.0)))
    assert audit(seen((CAT, BOX, 0.97), (DOG, (101.0, 100.0, 150.0, 150.0), 0.9)), data) == []


def test_pictures_without_labels_or_detections_are_judged_too(tmp_path: Path) -> None:
    boxes = [(CAT, *BOX)]
    content = coco_content(
        [Picture("a.jpg", 200, 200, boxes), Picture("b.jpg", 200, 200), Picture("c.jpg", 200, 200)]
    )
    (tmp_path / "train.json").write_text(json.dumps(content))
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        draw(tmp_path / name, 200, 200)
    data = read_data(tmp_path / "train.json")
    found = audit([one | {"image_id": 3} for one in seen((DOG, BOX, 0.9))], data)
    assert [(one.picture, one.kind, one.score) for one in found] == [
        (0, "spurious", 1.0),
        (2, "missing", 0.9),
    ]


def test_crowds_are_neither_judged_nor_missing_labels(tmp_path: Path) -> None:
    data = labelled(tmp_path, (CAT, (100.0, 100.0, 200.0, 200.0)), (CAT, BOX), crowd=0)
    found = audit(seen((CAT, (110.0, 110.0, 150.0, 150.0), 0.9)), data)
    assert [(one.kind, one.row) for one in found] == [("spurious", 1)]


def test_what_anchors_score_counts_where_there_is_no_detection() -> None:
    boxes, labels = np.array([BOX]), np.array([CAT])
    nothing = Scored(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0))
    anchors = np.array([[0.1, 0.6]])
    one = judge(nothing, boxes, labels, 2, anchors, np.zeros((0, 4)))
    wanted = [(0.6 * 0.9 * 6 / 7) ** (1 / 3), 0, 0.4 ** (1 / 3), 0]
    assert one.scores[0] == pytest.approx(wanted) and one.other.tolist() == [DOG]
    assert one.g.tolist() == pytest.approx([0.9])


def drawn(root: Path, seed: int) -> tuple[DetectionData, list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)

    def rows(n: int) -> list[Row]:
        low = rng.uniform(0, 120, (n, 2))
        boxes = np.concatenate([low, low + rng.uniform(20, 60, (n, 2))], axis=1).tolist()
        return [(int(rng.integers(2)), (b[0], b[1], b[2], b[3])) for b in boxes]

    return labelled(root, *rows(8)), seen(*((k, box, float(rng.uniform())) for k, box in rows(30)))


@pytest.mark.parametrize("seed", range(5))
def test_the_likeliest_comes_first_and_order_of_the_results_is_nothing(tmp_path: Path, seed: int) -> None:
    data, results = drawn(tmp_path, seed)
    found = audit(results, data)
    first = [one for one in found if one.likeliest]
    assert found[: len(first)] == first
    for part in (first, found[len(first) :]):
        scores = [one.score for one in part]
        assert scores == sorted(scores, reverse=True) and min(scores) >= LEAST and max(scores) <= 1
    of_labels = [one.row for one in first if one.row is not None]
    assert len(of_labels) == len(set(of_labels)) and {one.kind for one in found} <= set(KINDS)
    both = [(one.row, one.kind) for one in found if one.row is not None]
    assert len(both) == len(set(both)) and set(both) > {(one.row, one.kind) for one in first if one.row}
    assert all(0 <= one.g <= 1 and 0 <= (one.gr or 0) <= 1 for one in found)
    shuffled = random.Random(seed).sample(results, len(results))
    assert audit(shuffled, data) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 99}, "'category_id' is 99"),
        ({"image_id": 7}, "'image_id' is 7"),
        ({"score": "high"}, "score"),
        ({"score": 95.0}, "a score is 95, and scores lie between 0 and 1: divide per cent"),
        ({"score": -1.2}, "a score is -1.2"),
        ({"bbox": [1, 2, 3]}, "bbox"),
    ],
)
def test_results_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = labelled(tmp_path, (CAT, BOX))
    with pytest.raises(DataError, match=message):
        audit([seen((CAT, BOX, 0.9))[0] | change], data)


def test_a_detector_is_judged_by_what_its_pass_sees(tmp_path: Path) -> None:
    data = labelled(tmp_path, (CAT, BOX), (DOG, HALF), crowd=1)
    detector = Detector(RetinaNet(preset("nano", size=128), data.classes))
    detector.model.head.class_logits.bias.data.fill_(-1.0)
    ((image, one),) = judge_all(detector, data)
    (saw,) = look(detector, data)
    assert image == 1 and one.rows.tolist() == [0] and saw.seen.shape == (1, len(data.classes))
    assert saw.results and one.g[0] <= 1 - saw.seen[0, CAT] + 1e-9
    assert audit(detector, data) == rank([(image, one)], data) != []
