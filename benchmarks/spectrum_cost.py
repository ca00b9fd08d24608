"""What watching the spectrum adds to a training step of `nano` on a CPU (384 x 288, batches of 16).

    python benchmarks/spectrum_cost.py --threads 1 --pairs 30

Steps with and without it alternate in one process, which of the two is first changing from pair to pair; a figure is
the median over the pairs of the ratio, of the clock's time and of the processor's. The row goes to
results/spectrum_cost.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ghmdet.engine.device import choose_device, keep_freed_memory
from ghmdet.engine.observation import SpectrumLog
from ghmdet.engine.optim import make_optimizer
from ghmdet.models import PRESETS, RetinaNet
from rows import append_row, today


def measure(classes: int, pairs: int, precision: str) -> dict[str, object]:
    torch.manual_seed(0)
    keep_freed_memory()
    names = [f"class {k}" for k in range(classes)]
    model = RetinaNet(PRESETS["nano"], names).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model, model.backbone, lr=1e-3, backbone_lr=0.1, weight_decay=0.02)
    images = [torch.rand(3, 288, 384) for _ in range(16)]
    boxes = torch.tensor([[20.0, 20.0, 120.0, 160.0], [100.0, 60.0, 180.0, 200.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([0, classes - 1])} for _ in images]
    device = choose_device("cpu", precision)
    observe = SpectrumLog(model, Path(tempfile.gettempdir()) / "unused.npz", main=True).observe

    def step(watched: bool) -> tuple[float, float]:
        model.observe = observe if watched else None
        clock, processor = time.perf_counter(), time.process_time()
        with device.autocast():
            losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - clock, time.process_time() - processor

    for watched in (False, True) * 2:
        step(watched)
    with_it, without = [], []
    for pair in range(pairs):
        for watched in (pair % 2 == 0, pair % 2 == 1):
            (with_it if watched else without).append(step(watched))
    seen: dict[str, object] = {"precision": device.precision}
    for name, i in (("clock", 0), ("processor", 1)):
        ratios = [a[i] / b[i] for a, b in zip(with_it, without, strict=True)]
        seen |= {
            f"{name}_step": round(statistics.median(one[i] for one in without), 4),
            f"{name}_ratio": round(statistics.median(ratios), 4),
            f"{name}_quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)[::2]],
        }
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--precision", default="auto")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    about = {"date": today(), "torch": torch.__version__} | vars(chosen)
    append_row("spectrum_cost", about | measure(chosen.classes, chosen.pairs, chosen.precision))


if __name__ == "__main__":
    main()
