"""What a results list gets wrong: precision-recall curves, confusions, error kinds, reliability, scores by size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ghmdet.evaluation.matching import Reliability, counted, evaluate, found_boxes, match, reliability
from ghmdet.evaluation.score import THRESHOLD, Metrics, metrics_of
from ghmdet.evaluation.tables import Annotations, CocoTables, Floats, Ints, Results, read_tables

EDGES = (0, 8, 16, 32, 96)  # pixels: where ranges of size begin; a size is the square root of a box's area
LARGEST = 1e10  # square pixels, as COCO has it
ERRORS = {
    "Cls": "wrong class",
    "Loc": "badly located",
    "Both": "wrong class and badly located",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


class ErrorKind(TypedDict):
    """One of TIDE's kinds of error: how many detections (or missed boxes) have it, and what AP50 would gain without."""

    kind: str
    count: int
    AP50_lost: float


class Curve(TypedDict):
    """One class's precision at the recalls 0, .01 … 1, at IoU .50 and .75: two lists of 101."""

    precision: list[float]
    precision75: list[float]


class Findings(NamedTuple):
    """What `find` found.

    confusion: [K + 1, K + 1], rows truth, columns detected, last of both background. reliability: None where a score
    lies outside 0..1.
    """

    labels: list[str]
    metrics: Metrics
    curves: dict[str, Curve | None]
    confusion: Ints
    errors: list[ErrorKind]
    reliability: Reliability | None
    sizes: list[SizeMetrics]


def find(annotations: Annotations, results: Results, scale: Mapping[int, float] | None = None) -> Findings:
    """How good detections are and what is wrong with them; arguments and errors as in `score`.

    scale: by image id, the sides of its objects as the detector sees them over those in the annotations, for the
    ranges of size; 1 by default.

    Returns:
        The metrics of `score` and each class's curve (None for a class without boxes). The confusion matrix of the
        detections that score at least .5, matched at IoU .50 whatever their class. TIDE's kinds of error (Bolya et al.
        2020), at IoU .50 and .10 for background, of detections of any score. The reliability at IoU .50. A crowd box is
        nothing to find, and what is found in it no mistake.
    """
    tables = read_tables(annotations, results)
    evaluation, half = evaluate(tables), evaluate(tables, at=[0.5])
    evaluation.accumulate()
    matches = match(tables, half)
    scores, hit, rows = counted(matches)
    # hotcoco's matrix knows no crowds: what lies in them must not come to it. Its own limit is 100 an image.
    kept = np.isin(np.arange(len(tables.dt_score)), rows) & (tables.dt_score >= THRESHOLD)
    confusion = evaluate(tables, kept=kept).confusion_matrix(iou_thr=0.5, max_det=max(1, int(kept.sum())))
    errors = half.tide_errors(pos_thr=0.5, bg_thr=0.1)
    return Findings(
        labels=tables.labels,
        metrics=metrics_of(tables, evaluation.eval, matches),
        curves={
            label: _curve(evaluation.eval["precision"][:, :, k]) for k, label in enumerate(tables.labels)
        },
        confusion=confusion["matrix"].astype(np.int64),
        errors=[
            ErrorKind(kind=kind, count=errors["counts"][name], AP50_lost=errors["delta_ap"][name])
            for name, kind in ERRORS.items()
        ],
        reliability=reliability(scores, hit),
        sizes=by_size(tables, half, scale or {}, THRESHOLD),
    )


def _curve(precision: Floats) -> Curve | None:
    """From precision [IoU 10, recall 101, size, detections], -1 where there is no box."""
    half, strict = precision[0, :, 0, -1].round(4).tolist(), precision[5, :, 0, -1].round(4).tolist()
    return Curve(precision=half, precision75=strict) if half[0] >= 0 else None


class SizeMetrics(TypedDict):
    """The objects of `least` to below `most` pixels (None: no end); the scores are None where there are none.

    AP, AP50: as COCO's by size. recall: the share of the objects that a detection of score .5 or more finds at IoU .50.
    """

    least: int
    most: int | None
    boxes: int
    AP: float | None
    AP50: float | None
    recall: float | None


def by_size(tables: CocoTables, half: Any, scale: Mapping[int, float], threshold: float) -> list[SizeMetrics]:
    """Scores for each range of size; crowds are nothing to find.

    Args:
        tables: annotations and results.
        half: their evaluation at IoU .50.
        scale: by image id, the sides of its objects as the detector sees them over those in the annotations; 1 for
            images that it lacks.
        threshold: the least score of the detections that count for the recall.
    """
    of_image = np.array([scale.get(image, 1.0) for image in sorted(tables.truth.images)])
    box = tables.truth.box * of_image[tables.gt_image, None]
    with np.errstate(over="ignore"):
        area = np.minimum(box[:, 2] * box[:, 3], LARGEST)
    # COCO counts both ends of a range in, ours are without their upper end.
    ranges = [(low**2, np.nextafter(high**2, 0)) for low, high in pairwise((*EDGES, math.sqrt(LARGEST) + 1))]
    scaled = replace(
        tables,
        truth=replace(tables.truth, box=box),
        gt_area=area,
        dt_box=tables.dt_box * of_image[tables.dt_image, None],
    )
    evaluation = evaluate(scaled, areas=ranges)
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # [IoU 10, recall 101, class, size]
    found = found_boxes(tables, half, threshold)
    rows = []
    for number, (low, high) in enumerate(ranges):
        mine = (low <= area) & (area <= high) & ~tables.truth.crowd
        # Of the classes that have such boxes.
        defined = precision[..., number][..., (precision[0, 0, :, number] > -1)]
        rows.append(
            SizeMetrics(
                least=EDGES[number],
                most=EDGES[number + 1] if number + 1 < len(EDGES) else None,
                boxes=int(mine.sum()),
                AP=float(defined.mean()) if defined.size else None,
                AP50=float(defined[0].mean()) if defined.size else None,
                recall=float(found[mine].mean()) if mine.any() else None,
            )
        )
    return rows
