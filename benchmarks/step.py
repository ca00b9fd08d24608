"""A training step of `nano` on a CPU: with PyTorch's depthwise convolutions, with ours, and with freed memory kept.

    python benchmarks/step.py --threads 1 --rounds 3

Each arm is a fresh process, the arms alternate, a figure is the median over rounds of a process's median step; the row
goes to results/step.jsonl.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

from ghmdet.engine.device import choose_device, keep_freed_memory
from ghmdet.engine.optim import make_optimizer
from ghmdet.models import PRESETS, RetinaNet
from ghmdet.models.depthwise import DepthwiseConv2d
from rows import append_row, today

ARMS = ("torch", "depthwise", "depthwise+memory")


def measure(arm: str, threads: int, size: int, batch: int, precision: str) -> dict[str, float]:
    """The median seconds of a step and the process's peak memory in MiB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if arm == "depthwise+memory":
        keep_freed_memory()
    model = RetinaNet(PRESETS["nano"], ["a", "b", "c"]).to(memory_format=torch.channels_last).train()
    if arm == "torch":
        for module in model.modules():
            if isinstance(module, DepthwiseConv2d):
                # Without weight gradients wanted it is F.conv2d; that switch is what is measured here.
                module.forward = _plain.__get__(module)  # type: ignore[method-assign]
    optimizer = make_optimizer(model, model.backbone, lr=1e-3, backbone_lr=0.1, weight_decay=0.02)
    images = [torch.rand(3, size * 3 // 4, size) for _ in range(batch)]
    boxes = torch.tensor([[20.0, 20.0, 120.0, 160.0], [100.0, 60.0, 180.0, 200.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([0, 2])} for _ in range(batch)]
    device = choose_device("cpu", precision)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        with device.autocast():
            losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(seconds[2:]), "peak_mib": peak, "precision": device.precision}


def _plain(self: DepthwiseConv2d, input: torch.Tensor) -> torch.Tensor:
    padding = self.padding
    if self.same:
        from timm.layers.padding import pad_same

        input, padding = pad_same(input, list(self.kernel_size), list(self.stride)), (0, 0)
    return nn.functional.conv2d(input, self.weight, None, self.stride, padding, groups=self.groups)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=384, help="longest side of the pictures")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    settings = (chosen.threads, chosen.size, chosen.batch, chosen.precision)
    if chosen.arm:
        print(json.dumps(measure(chosen.arm, *settings)))
        return
    seen: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(chosen.rounds):
        for arm in ARMS:
            command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm]
            seen[arm].append(
                json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            )
    medians = {arm: statistics.median(one["seconds"] for one in runs) for arm, runs in seen.items()}
    row = {
        "date": today(),
        "torch": torch.__version__,
        "threads": chosen.threads,
        "pictures": f"{chosen.batch} of {chosen.size}x{chosen.size * 3 // 4}, {seen['torch'][0]['precision']}",
        "seconds": {arm: round(value, 3) for arm, value in medians.items()},
        "ratio": {arm: round(value / medians["torch"], 3) for arm, value in medians.items()},
        "peak_mib": {arm: round(max(one["peak_mib"] for one in runs)) for arm, runs in seen.items()},
    }
    append_row("step", row)


if __name__ == "__main__":
    main()
