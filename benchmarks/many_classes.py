"""The class losses of the detector with 1,203 classes, as LVIS has: forward and backward, and the memory they take.

    python benchmarks/many_classes.py

Logits [2, 12750, 1203] float32 (two pictures of 320 pixels), 9 positives to each of 20 objects, giou beside. The arms
take turns in processes of their own, each with one thread; a figure is the median over rounds of the processor's time.
Rows go to results/many_classes.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch

from ghmdet.engine.device import keep_freed_memory
from ghmdet.models.loss import DetectionLoss, LossConfig
from rows import append_row, today

PICTURES, ANCHORS, CLASSES = 2, 12_750, 1203


def measure(arm: str, steps: int) -> dict[str, float]:
    """The median seconds of a step, and the MiB that it takes beside logits and offsets."""
    torch.set_num_threads(1)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(PICTURES, ANCHORS, CLASSES, generator=generator).sub_(7).requires_grad_()
    deltas = torch.zeros(PICTURES, ANCHORS, 4, requires_grad=True)
    anchors = torch.tensor([0.0, 0, 32, 32]).repeat(ANCHORS, 1)
    labels = torch.full((PICTURES, ANCHORS), CLASSES)
    labels[:, :180] = torch.randint(0, CLASSES, (PICTURES, 180), generator=generator)
    loss, taken = DetectionLoss(LossConfig(cls_loss=arm), CLASSES), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(steps):
        logits.grad = deltas.grad = None
        began = time.process_time()
        sum(loss(logits, deltas, labels, anchors.expand(PICTURES, -1, -1), anchors).values()).backward()
        taken.append(time.process_time() - began)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": statistics.median(taken[1:]), "mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--arm", help="measure this one here, as the processes do")
    given = parser.parse_args()
    if given.arm:
        print(json.dumps(measure(given.arm, given.steps)))
        return
    seen: dict[str, list[dict[str, float]]] = {"ce": [], "focal": [], "ghm-c": []}
    for _ in range(given.rounds):
        for arm, figures in seen.items():
            command = [sys.executable, __file__, f"--arm={arm}", f"--steps={given.steps}"]
            figures.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    row = {"date": today(), "torch": torch.__version__, "load": round(os.getloadavg()[0], 1), "threads": 1}
    for name in ("seconds", "mib"):
        row[name] = {arm: round(statistics.median(f[name] for f in rows), 3) for arm, rows in seen.items()}
    row["ratio to ce"] = round(row["seconds"]["ghm-c"] / row["seconds"]["ce"], 3)
    append_row("many_classes", row)


if __name__ == "__main__":
    main()
