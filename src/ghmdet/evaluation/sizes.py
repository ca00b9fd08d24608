"""How well objects of each size are found, the sizes being those that a detector sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np

from ghmdet.evaluation.matching import evaluate, found_boxes
from ghmdet.evaluation.tables import CocoTables

EDGES = (0, 8, 16, 32, 96)  # pixels: where ranges of size begin; a size is the square root of a box's area
LARGEST = 1e10  # square pixels, as COCO has it


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
        defined = precision[..., number][
            ..., (precision[0, 0, :, number] > -1)
        ]  # classes that have such boxes
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
