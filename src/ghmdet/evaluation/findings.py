"""What a results list gets wrong: precision-recall curves, confusions, error kinds and reliability, all hotcoco's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ghmdet.evaluation.matching import BINS, at_half, counted, evaluate
from ghmdet.evaluation.score import Metrics, metrics_of
from ghmdet.evaluation.score_use import THRESHOLD
from ghmdet.evaluation.tables import CocoTables, Floats, Ints, read_tables

ERRORS = {
    "Cls": "wrong class",
    "Loc": "badly located",
    "Both": "wrong class and badly located",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


class ErrorKind(TypedDict):
    """One of TIDE's kinds of error: how many detections (or missed boxes) have it, what AP50 would rise by without."""

    kind: str
    count: int
    AP50_lost: float


class Curve(TypedDict):
    """One class's precision at the recalls 0, .01 … 1, at IoU .50 and .75: two lists of 101."""

    precision: list[float]
    precision75: list[float]


class Reliability(TypedDict):
    """Detections in ten regions of equal score, by their 11 edges: how many, and the share that hit (None: none)."""

    edges: list[float]
    share: list[float | None]
    detections: list[int]


class Findings(NamedTuple):
    """What :func:`find` found; `confusion` [K + 1, K + 1]: rows truth, columns detected, last of both background."""

    labels: list[str]
    metrics: Metrics
    curves: dict[str, Curve | None]
    confusion: Ints
    errors: list[ErrorKind]
    reliability: Reliability


def find(
    annotations: Path | str | Mapping[str, Any], results: Path | str | Sequence[Mapping[str, Any]]
) -> Findings:
    """How good detections are and what is wrong with them.

    Args:
        annotations: as :func:`ghmdet.evaluation.score.score` takes them.
        results: likewise; scores in 0..1.

    Returns:
        The score's figures and each class's curve (None for a class without boxes). The confusion matrix of the
        detections that score at least .5, matched at IoU .50 whatever their class. TIDE's kinds of error (Bolya et al.
        2020), at IoU .50 and .10 for background, of detections of any score. The reliability at IoU .50. A crowd box is
        nothing to find, and what is found in it no mistake.

    Raises:
        DataError: as :func:`ghmdet.evaluation.score.score`.
    """
    tables = read_tables(annotations, results)
    evaluation = evaluate(tables)
    evaluation.accumulate()
    half = at_half(evaluation)
    metrics = metrics_of(tables, evaluation.eval, half)
    return Findings(
        labels=tables.labels,
        metrics=metrics,
        curves=_curves(tables.labels, evaluation.eval["precision"]),
        confusion=_confusion(tables, counted(half)[3]),
        errors=_errors(half),
        reliability=_reliability(half),
    )


def _curves(labels: Sequence[str], precision: Floats) -> dict[str, Curve | None]:
    curves: dict[str, Curve | None] = {}
    for k, label in enumerate(labels):
        half, strict = precision[0, :, k, 0, -1], precision[5, :, k, 0, -1]
        undefined = half[0] < 0  # there is no box
        curves[label] = None if undefined else Curve(precision=_rounded(half), precision75=_rounded(strict))
    return curves


def _rounded(values: Floats) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _confusion(tables: CocoTables, rows: Ints) -> Ints:
    # hotcoco's matrix knows no crowds: what lies in them must not come to it.
    kept = np.zeros(len(tables.dt_score), dtype=bool)
    kept[rows] = True
    kept &= tables.dt_score >= THRESHOLD
    most = max(1, int(kept.sum()))  # its own limit is 100 an image over all classes
    matrix = evaluate(tables, kept).confusion_matrix(iou_thr=0.5, max_det=most)["matrix"]
    confusion: Ints = matrix.astype(np.int64)
    return confusion


def _errors(half: Any) -> list[ErrorKind]:
    found = half.tide_errors(pos_thr=0.5, bg_thr=0.1)
    return [
        ErrorKind(kind=kind, count=found["counts"][name], AP50_lost=found["delta_ap"][name])
        for name, kind in ERRORS.items()
    ]


def _reliability(half: Any) -> Reliability:
    bins = half.calibration(n_bins=BINS, iou_threshold=0.5)["bins"]
    return Reliability(
        edges=[round(i / BINS, 3) for i in range(BINS + 1)],
        share=[one["avg_accuracy"] if one["count"] else None for one in bins],
        detections=[one["count"] for one in bins],
    )
