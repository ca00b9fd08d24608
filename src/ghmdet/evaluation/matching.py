"""COCO's matching of results with annotations: the only module that imports hotcoco."""

from __future__ import annotations

from typing import Any

import hotcoco
import numpy as np

from ghmdet.evaluation.tables import CocoTables, Flags, Floats, Ints

BINS = 10  # of equal width over the scores 0..1, for the calibration error


def evaluate(tables: CocoTables, kept: Flags | None = None) -> Any:
    """hotcoco's evaluation of the results, or of the `kept` [m] of them, matched at .50, .55 … .95 and all sizes.

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
    detections = np.column_stack([tables.dt_image + 1, tables.dt_box, tables.dt_score, tables.dt_class + 1])
    evaluation = hotcoco.COCOeval(
        coco, coco.load_res(detections if kept is None else detections[kept]), "bbox"
    )
    evaluation.evaluate()
    return evaluation


def at_half(evaluation: Any) -> Any:
    """The same evaluation at IoU .50 alone, over boxes of all sizes."""
    # Matched anew at the one threshold and size: reading all of the evaluation's matches takes many times longer.
    half = hotcoco.COCOeval(evaluation.coco_gt, evaluation.coco_dt, "bbox")
    params = half.params
    params.iouThrs, params.areaRng, params.areaRngLbl, params.maxDets = [0.5], [[0, 1e10]], ["all"], [100]
    half.evaluate()
    return half


def counted(half: Any) -> tuple[Ints, Floats, Flags, Ints]:
    """Label, score, whether it found a box, and row of each detection that counts (it lies in no crowd): four of [n].

    half: what :func:`at_half` gives. Of each image and class the best 100 detections.
    """
    entries = [entry for entry in half.eval_imgs if entry is not None]
    label = np.repeat(
        np.array([entry["category_id"] - 1 for entry in entries], dtype=np.int64),
        [len(entry["dtScores"]) for entry in entries],
    )
    scores = np.array([value for entry in entries for value in entry["dtScores"]], dtype=np.float64)
    hit = np.array([value for entry in entries for value in entry["dtMatched"][0]], dtype=bool)
    rows = np.array([value - 1 for entry in entries for value in entry["dtIds"]], dtype=np.int64)
    kept = ~np.array([value for entry in entries for value in entry["dtIgnore"][0]], dtype=bool)
    return label[kept], scores[kept], hit[kept], rows[kept]
