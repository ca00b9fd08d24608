"""COCO's matching of detections with annotations, and what follows from it: the only module that imports hotcoco."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import hotcoco
import numpy as np
from hotcoco.metrics import calibration_curve, calibration_error
from hotcoco.primitives import bbox_iou

from ghmdet.evaluation.tables import Annotations, CocoTables, Flags, Floats, Ints, Results, read_tables

THRESHOLDS: list[float] = hotcoco.Params("bbox").iou_thrs  # .50, .55 … .95
BINS = 10  # of the scores


def evaluate(tables: CocoTables, at: Sequence[float] = (), kept: Flags | None = None) -> Any:
    """hotcoco's evaluation of the results, or of the `kept` [m] of them.

    By default it is COCO's own, at ten thresholds of IoU and for each range of size. Given thresholds `at`, it is at
    these and for boxes of all sizes together, so that its matches are read four times faster.

    Image and category ids are the tables' ranks plus one, a detection's id its row (of the kept ones) plus one.
    """
    # Ids become ranks 1..n, annotations' too: only their order matters (it settles ties between images),
    # float64 cannot hold every id, and pycocotools misjudges an annotation whose id is 0.
    coco = hotcoco.COCO.from_arrays(
        [{"id": i + 1} for i in range(tables.images)],
        [{"id": k + 1, "name": str(k)} for k in range(len(tables.labels))],
        tables.gt_image + 1,
        tables.gt_class + 1,
        tables.gt_box,
        area=tables.gt_area,
        iscrowd=tables.crowd.astype(np.int64),
    )
    rows = np.column_stack([tables.dt_image + 1, tables.dt_box, tables.dt_score, tables.dt_class + 1])
    evaluation = hotcoco.COCOeval(coco, coco.load_res(rows if kept is None else rows[kept]), "bbox")
    if at:
        params = evaluation.params
        params.iouThrs, params.maxDets = list(at), [100]
        params.areaRng, params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    return evaluation


class Matches(NamedTuple):
    """The best 100 detections [n] of each image and class, and what each is at T thresholds of IoU.

    image, label: ranks. row: the place in the results. hit: [T, n], whether it found a box. ignored: [T, n], whether it
    counts neither way, as in a crowd.
    """

    image: Ints
    label: Ints
    row: Ints
    score: Floats
    hit: Flags
    ignored: Flags


def matches_of(evaluation: Any) -> Matches:
    """The matches of an evaluation for boxes of all sizes together, by class, image and falling score."""
    entries = [entry for entry in evaluation.eval_imgs if entry is not None]
    sizes = [len(entry["dtScores"]) for entry in entries]

    def repeated(key: str) -> Ints:
        return np.repeat(np.array([entry[key] - 1 for entry in entries], dtype=np.int64), sizes)

    def flags(key: str) -> Flags:
        thresholds = range(len(evaluation.params.iouThrs))
        return np.array(
            [[value for entry in entries for value in entry[key][t]] for t in thresholds], dtype=bool
        )

    return Matches(
        image=repeated("image_id"),
        label=repeated("category_id"),
        row=np.array([value - 1 for entry in entries for value in entry["dtIds"]], dtype=np.int64),
        score=np.array([value for entry in entries for value in entry["dtScores"]], dtype=np.float64),
        hit=flags("dtMatched"),
        ignored=flags("dtIgnore"),
    )


class ClassMatches(NamedTuple):
    """One class's detections [n], best first, and what each is at COCO's ten thresholds of IoU.

    image: the place of its image in ascending order of the ids. hit, ignored: [10, n], whether it found a box, and
    whether it counts neither way (it lies in a crowd). boxes: [images], the boxes to find in each image.
    """

    image: Ints
    hit: Flags
    ignored: Flags
    boxes: Ints


def matches(annotations: Annotations, results: Results) -> dict[str, ClassMatches]:
    """COCO's matching by class name, for boxes of all sizes together; arguments and errors as in `score`."""
    tables = read_tables(annotations, results)
    found = matches_of(evaluate(tables, THRESHOLDS))
    order = np.argsort(-found.score, kind="stable")
    by_class = {}
    for k, label in enumerate(tables.labels):
        mine = order[found.label[order] == k]
        boxes = np.bincount(tables.gt_image[~tables.crowd & (tables.gt_class == k)], minlength=tables.images)
        by_class[label] = ClassMatches(found.image[mine], found.hit[:, mine], found.ignored[:, mine], boxes)
    return by_class


class Reliability(TypedDict):
    """Detections in ten regions of equal width over their scores 0..1, between the 11 edges.

    share: of those in each, how many hit (None: there are none). detections: how many there are in each. ECE: expected
    calibration error, the mean over all detections of |mean score - share| in their region.
    """

    edges: list[float]
    share: list[float | None]
    detections: list[int]
    ECE: float | None


def reliability(scores: Floats, hit: Flags) -> Reliability | None:
    """What share of the detections [n] of about a score hit; None where a score lies outside 0..1.

    >>> reliability(np.array([0.96, 0.92, 0.1]), np.array([True, False, False]))["share"][8:]
    [None, 0.5]
    """
    if ((scores < 0) | (scores > 1)).any():
        return None
    bins = calibration_curve(scores, hit, BINS)
    return Reliability(
        edges=[i / BINS for i in range(BINS + 1)],
        share=[one["avg_accuracy"] if one["count"] else None for one in bins],
        detections=[one["count"] for one in bins],
        ECE=calibration_error(scores, hit, BINS)[0] if len(scores) else None,
    )


def overlaps(boxes: Floats, others: Floats, *, crowds: bool = False) -> Floats:
    """The IoU [n, m] of boxes [n, 4] and [m, 4] (corners x1 y1 x2 y2); with `crowds` the share of the first's area."""
    sized, others_sized = (np.hstack([b[:, :2], b[:, 2:] - b[:, :2]]) for b in (boxes, others))
    iou: Floats = bbox_iou(sized, others_sized, np.full(len(others), crowds))
    return iou
