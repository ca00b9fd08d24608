"""Annotations and results to score, made up."""

from __future__ import annotations

from typing import Any

import numpy as np

Sets = tuple[dict[str, Any], list[dict[str, Any]]]


def random_set(seed: int, detections_per_image: int = 12) -> Sets:
    """Images without boxes, crowds, tied scores, duplicate boxes, wrong classes, areas unlike the box's."""
    rng = np.random.default_rng(seed)
    images = [int(i) for i in rng.permutation(10_000)[: rng.integers(2, 12)]]
    categories = [int(i) for i in rng.permutation(90)[: rng.integers(1, 5)]]
    boxes: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        for _ in range(rng.integers(0, 9)):
            size = rng.choice([12.0, 50.0, 150.0]) * rng.uniform(0.6, 1.6, 2)
            box = [*rng.uniform(0, 300, 2).round(1).tolist(), *size.round(1).tolist()]
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": image,
                    "category_id": int(rng.choice(categories)),
                    "bbox": box,
                    "area": box[2] * box[3] * float(rng.choice([1.0, 0.7])),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
        mine = [b for b in boxes if b["image_id"] == image]
        for _ in range(rng.integers(0, detections_per_image)):
            near = mine[rng.integers(len(mine))] if mine and rng.random() < 0.8 else None
            box = (
                near["bbox"] if near else [*rng.uniform(0, 300, 2).tolist(), *rng.uniform(5, 120, 2).tolist()]
            )
            moved = (np.array(box) * rng.choice([1.0, 1.02, 1.1, 0.9], 4)).tolist()
            right = near is not None and rng.random() < 0.8
            results.append(
                {
                    "image_id": image,
                    "category_id": near["category_id"] if near and right else int(rng.choice(categories)),
                    "bbox": moved,
                    "score": round(float(rng.random()), 1),
                }
            )
    rng.shuffle(results)  # type: ignore[arg-type]
    truth = {
        "images": [{"id": i} for i in images],
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
        "annotations": boxes,
    }
    return truth, results


def small() -> Sets:
    truth = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 3, "name": "car"}, {"id": 5, "name": "bus"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [5, 5, 200, 200], "area": 40000, "iscrowd": 0},
        ],
    }
    found = [
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 20, 20], "score": 0.9},
        {"image_id": 2, "category_id": 3, "bbox": [5, 5, 200, 200], "score": 0.8},
    ]
    return truth, found


def one_detection(truth: dict[str, Any]) -> dict[str, Any]:
    """One detection that fits the annotations' ids, for the sets that drew none (pycocotools fails on [])."""
    image, category = truth["images"][0]["id"], truth["categories"][0]["id"]
    return {"image_id": image, "category_id": category, "bbox": [1.0, 1.0, 9.0, 9.0], "score": 0.5}
