"""How many of a synthetic set's unusual objects a detector finds, compared with the usual ones.

ghmdet data synth scenes --hard-share 0.2
ghmdet train scenes --out runs/ghm
ghmdet val runs/ghm/best.pt scenes --out runs/ghm/val
python examples/hard_examples.py scenes/annotations/instances_val.json runs/ghm/val/predictions.json
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from torchvision.ops import box_convert, box_iou


def recall_by_look(annotations: dict, results: list[dict], threshold: float) -> dict[int, tuple[int, int]]:
    """For usual (0) and unusual (1) objects: how many are found (IoU .5, right class), and how many there are."""
    detections = defaultdict(list)
    for result in results:
        if result["score"] >= threshold:
            detections[result["image_id"], result["category_id"]].append(result["bbox"])
    counts = {0: (0, 0), 1: (0, 0)}
    for truth in annotations["annotations"]:
        near = torch.tensor(detections[truth["image_id"], truth["category_id"]]).reshape(-1, 4)
        box = torch.tensor([truth["bbox"]])
        iou = box_iou(box_convert(box, "xywh", "xyxy"), box_convert(near, "xywh", "xyxy"))
        found, total = counts[truth["hard"]]
        counts[truth["hard"]] = found + int((iou >= 0.5).any()), total + 1
    return counts


def main() -> None:
    """Print the two recalls."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--threshold", type=float, default=0.3, help="least score that counts")
    arguments = parser.parse_args()
    annotations, results = (
        json.loads(path.read_text()) for path in (arguments.annotations, arguments.results)
    )
    for hard, (found, total) in recall_by_look(annotations, results, arguments.threshold).items():
        print(f"{'unusual' if hard else 'usual':>8}: {found} of {total} found ({found / max(total, 1):.0%})")


if __name__ == "__main__":
    main()
