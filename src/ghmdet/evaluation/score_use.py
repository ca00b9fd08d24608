"""What detections are worth when those above a score are kept: precision, recall and F1 against the threshold."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import numpy as np

from ghmdet.evaluation.tables import Flags, Floats

THRESHOLD = 0.5  # where users of detectors cut


class ScoreUse(TypedDict):
    """How scores can be used, at IoU .50; None where there are no detections or no boxes to find.

    ECE: expected calibration error; None also where any score lies outside 0..1.
    precision, recall, F1: of the detections that score at least .5; precision is None where there are none.
    best_F1, best_threshold: the highest F1, and the score to keep for it; the latter is None where nothing hits.
    """

    ECE: float | None
    precision: float | None
    recall: float | None
    F1: float | None
    best_F1: float | None
    best_threshold: float | None


def score_use(scores: Floats, hit: Flags, boxes: int, ece: float | None) -> ScoreUse:
    """Precision, recall and F1 = 2 hits / (kept + boxes) of detections kept by score.

    Args:
        scores: of all detections [n], in any order.
        hit: which of them found a box [n]; each box is found once, by the best of its detections.
        boxes: how many there were to find.
        ece: their expected calibration error, which is handed on.

    >>> use = score_use(np.array([0.9, 0.8, 0.4]), np.array([True, False, True]), boxes=2, ece=None)
    >>> use["F1"], use["best_F1"], use["best_threshold"]
    (0.5, 0.8, 0.4)
    """
    if not len(scores) or not boxes:
        return ScoreUse(ECE=None, precision=None, recall=None, F1=None, best_F1=None, best_threshold=None)
    order = np.argsort(-scores)
    falling, hits = scores[order], np.cumsum(hit[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + boxes)
    f1[:-1][falling[1:] == falling[:-1]] = 0  # equal scores are kept together
    best = int(f1.argmax())
    kept = int((scores >= THRESHOLD).sum())
    found = int(hits[kept - 1]) if kept else 0
    return ScoreUse(
        ECE=ece,
        precision=found / kept if kept else None,
        recall=found / boxes,
        F1=2 * found / (kept + boxes),
        best_F1=float(f1[best]),
        best_threshold=float(falling[best]) if hits[-1] else None,
    )


class Reliability(NamedTuple):
    """Detections by score, in regions of equal width over 0..1; |score - hits| averaged over detections is the ECE."""

    detections: Floats
    """How many there are in each, [n]."""
    score: Floats
    """Their mean score, [n]; NaN where there are none."""
    hits: Floats
    """The share of them that hit, [n]; NaN where there are none."""


def reliability(scores: Floats, hit: Flags, bins: int) -> Reliability:
    """What share of the detections of about a score hit: the numbers of a reliability diagram.

    Args:
        scores: in 0..1, [n].
        hit: which of them found a box, [n].
        bins: the number of regions.

    >>> reliability(np.array([0.9, 0.8, 0.1]), np.array([True, False, False]), bins=2).hits.tolist()
    [0.0, 0.5]
    """
    place = np.minimum((scores * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins).astype(np.float64)
    there = np.where(count > 0, count, np.nan)
    return Reliability(
        count,
        np.bincount(place, scores, minlength=bins) / there,
        np.bincount(place, hit.astype(np.float64), minlength=bins) / there,
    )
