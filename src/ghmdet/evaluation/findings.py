"""What a results list gets wrong: precision-recall curves, confusions, error kinds and reliability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import numpy as np

from ghmdet.evaluation.matching import Reliability, counted, evaluate, match, reliability
from ghmdet.evaluation.score import THRESHOLD, Metrics, metrics_of
from ghmdet.evaluation.sizes import SizeMetrics, by_size
from ghmdet.evaluation.tables import Annotations, Floats, Ints, Results, read_tables

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
