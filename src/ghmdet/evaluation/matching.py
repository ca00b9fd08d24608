"""COCO's matching of detections with annotations, and what follows from it: the only module that imports hotcoco."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import hotcoco
import numpy as np
from hotcoco.metrics import calibration_curve, calibration_error
from hotcoco.primitives import bbox_iou

from ghmdet.evaluation.tables import Annotations, CocoTables, Flags, Floats, Ints, Results, read_tables

THRESHOLDS: list[float] = hotcoco.Params("bbox").iou_thrs  # .50, .55 … .95
BINS = 10  # of the scores


def evaluate(
    tables: CocoTables,
    at: Sequence[float] = (),
    kept: Flags | None = None,
    areas: Sequence[tuple[float, float]] = (),
) -> Any:
    """hotcoco's evaluation of the results, or of the `kept` [m] of them.

    By default it is COCO's own, at ten thresholds of IoU and for each range of size. Given thresholds `at`, it is at
    these and for boxes of all sizes together, so that its matches are read four times faster. Given `areas`, it is for
    these ranges, both ends counted in, and 100 detections.

    Image and category ids are the tables' ranks plus one, a detection's id its row (of the kept ones) plus one.
    """
    # Ids become ranks 1..n, annotations' too: only their order matters (it settles ties between images),
    # float64 cannot hold every id, and pycocotools misjudges an annotation whose id is 0.
    coco = hotcoco.COCO.from_arrays(
        [{"id": i + 1} for i in range(len(tables.truth.images))],
        [{"id": k + 1, "name": str(k)} for k in range(len(tables.labels))],
        tables.gt_image + 1,
        tables.gt_class + 1,
        tables.truth.box,
        area=tables.gt_area,
        iscrowd=tables.truth.crowd.astype(np.int64),
    )
    rows = np.column_stack([tables.dt_image + 1, tables.dt_box, tables.dt_score, tables.dt_class + 1])
    evaluation = hotcoco.COCOeval(coco, coco.load_res(rows if kept is None else rows[kept]), "bbox")
    if at:
        params = evaluation.params
        params.iouThrs, params.maxDets = list(at), [100]
        params.areaRng, params.areaRngLbl = [[0, 1e10]], ["all"]
    if areas:
        evaluation.params.maxDets = [100]
        evaluation.params.areaRng = [list(area) for area in areas]
        evaluation.params.areaRngLbl = [str(number) for number in range(len(areas))]
    evaluation.evaluate()
    return evaluation


class ClassMatches(NamedTuple):
    """One class's detections [n], the best 100 of each image, best first, and what each is at T thresholds of IoU.

    image: the place of its image in ascending order of the ids. hit, ignored: [T, n], whether it found a box, and
    whether it counts neither way (it lies in a crowd). boxes: [images], the boxes to find in each image. score: [n].
    row: [n], its place in the results.
    """

    image: Ints
    hit: Flags
    ignored: Flags
    boxes: Ints
    score: Floats
    row: Ints


def match(tables: CocoTables, evaluation: Any) -> list[ClassMatches]:
    """What became of the detections of each class, from an evaluation for boxes of all sizes together."""
    entries: list[list[dict[str, Any]]] = [[] for _ in tables.labels]
    for entry in evaluation.eval_imgs:
        if entry is not None:
            entries[entry["category_id"] - 1].append(entry)
    thresholds = range(len(evaluation.params.iouThrs))
    found = []
    for k, mine in enumerate(entries):
        images = np.array([entry["image_id"] - 1 for entry in mine], dtype=np.int64)
        score = np.array([value for entry in mine for value in entry["dtScores"]], dtype=np.float64)
        row = np.array([number - 1 for entry in mine for number in entry["dtIds"]], dtype=np.int64)
        hit, ignored = (
            np.array([[value for entry in mine for value in entry[key][t]] for t in thresholds], dtype=bool)
            for key in ("dtMatched", "dtIgnore")
        )
        to_find = tables.gt_image[~tables.truth.crowd & (tables.gt_class == k)]
        boxes = np.bincount(to_find, minlength=len(tables.truth.images))
        image = np.repeat(images, [len(entry["dtIds"]) for entry in mine])
        best = np.argsort(-score, kind="stable")
        found.append(ClassMatches(image[best], hit[:, best], ignored[:, best], boxes, score[best], row[best]))
    return found


def counted(half: Sequence[ClassMatches]) -> tuple[Floats, Flags, Ints]:
    """The score of each detection of any class that counts at the first threshold, whether it hit, its row: [n]."""
    kept = [(one, ~one.ignored[0]) for one in half]
    score, hit, row = zip(*((one.score[k], one.hit[0, k], one.row[k]) for one, k in kept), strict=True)
    return np.concatenate(score), np.concatenate(hit), np.concatenate(row)


def found_boxes(tables: CocoTables, evaluation: Any, threshold: float) -> Flags:
    """Which annotations [n] a detection that scores at least `threshold` finds at an evaluation's first IoU."""
    found = np.zeros(len(tables.gt_image), dtype=bool)
    for entry in evaluation.eval_imgs:
        if entry is not None:
            matched = zip(entry["dtScores"], entry["dtMatches"][0], strict=True)
            found[[number - 1 for score, number in matched if number and score >= threshold]] = True
    return found


def matches(annotations: Annotations, results: Results) -> dict[str, ClassMatches]:
    """Each class's matches by its name, at COCO's ten thresholds; arguments and errors as in `score`."""
    tables = read_tables(annotations, results)
    return dict(zip(tables.labels, match(tables, evaluate(tables, THRESHOLDS)), strict=True))


class Reliability(TypedDict):
    """How often detections of about a score hit: the scores 0..1 in ten bins of equal width, between 11 edges.

    detections: how many there are in each bin. share: the share of them that hit, None where there are none. ECE:
    expected calibration error, the mean over all detections of |mean score - share| in their bin.
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
