"""cleanlab's object-detection label quality on the detections that `benchmarks/audit.py --keep` wrote.

    CLEANLAB/bin/python benchmarks/audit_cleanlab.py KEPT SCORES       # in an environment of its own: it is AGPL
    python benchmarks/audit.py DATA ... --peer KEPT SCORES              # its average precision, as a row

Each of its three scores of a box (overlooked, badly located, swapped) becomes a list of suspicions, 1 - score. It is
asked with its own thresholds of scores, for detectors that are sure (.95 and .5), and with two lower pairs.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from cleanlab.internal.constants import ALPHA
from cleanlab.object_detection.rank import (
    _get_valid_inputs_for_compute_scores,
    compute_badloc_box_scores,
    compute_overlooked_box_scores,
    compute_swap_box_scores,
)

THRESHOLDS = {"own": (0.95, 0.5), "half": (0.5, 0.25), "low": (0.05, 0.05)}


def corners(bbox: list[float]) -> list[float]:
    return [bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]]


def main() -> None:
    kept = json.loads(Path(sys.argv[1]).read_text())
    classes = {category: label for label, category in enumerate(kept["categories"])}
    images = sorted({one["image_id"] for one in kept["labels"]})
    labels, predictions = [], []
    for image in images:
        own = [one for one in kept["labels"] if one["image_id"] == image]
        seen = [one for one in kept["detections"] if one["image_id"] == image]
        boxes = np.array([corners(one["bbox"]) for one in own])
        labels.append({"bboxes": boxes, "labels": np.array([classes[one["category_id"]] for one in own])})
        rows = [
            [[*corners(one["bbox"]), one["score"]] for one in seen if classes[one["category_id"]] == k]
            for k in range(len(classes))
        ]
        predictions.append([np.array(each, dtype=float).reshape(-1, 5) for each in rows])
    overlaps = _get_valid_inputs_for_compute_scores(
        ALPHA, labels, predictions
    )  # they take nearly all the time
    items: dict[str, list[dict[str, Any]]] = {}
    for name, (high, low) in THRESHOLDS.items():
        given = {"labels": labels, "predictions": predictions, "auxiliary_inputs": overlaps}
        missing = compute_overlooked_box_scores(**given, high_probability_threshold=high)
        badloc = compute_badloc_box_scores(**given, low_probability_threshold=low)
        swap = compute_swap_box_scores(**given, high_probability_threshold=high)
        for i, image in enumerate(images):
            found = np.concatenate(predictions[i])
            of_found = np.repeat(np.arange(len(classes)), [len(each) for each in predictions[i]])
            sets = {
                "overlooked": (missing[i], of_found, found[:, :4]),
                "badloc": (badloc[i], labels[i]["labels"], labels[i]["bboxes"]),
                "swap": (swap[i], labels[i]["labels"], labels[i]["bboxes"]),
            }
            for what, (scores, of, boxes) in sets.items():
                told = items.setdefault(f"{what}, {name} thresholds", [])
                for s, k, box in zip(scores, of, boxes, strict=True):
                    if not np.isnan(s):
                        told.append(
                            {
                                "score": 1 - float(s),
                                "image": image,
                                "missing": what == "overlooked",
                                "label": int(k),
                                "box": box.tolist(),
                            }
                        )
    Path(sys.argv[2]).write_text(json.dumps(items))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
