"""The class losses forward and backward beside PyTorch's cross entropy, in one process: nanoseconds a logit.

    python benchmarks/class_losses.py --threads 1

The arms take turns in one process, so each meets the same machine and the same fast `log1p` (see docs/performance.md).
Logits are [N, 80] float32, 8 % of the rows show an object; peers get their one-hot targets ready-made. What it costs
to harmonize depends on how many logits lie beyond the first region, so there are three kinds: a detector at its
start, a trained one, and one where a third lies beyond. A figure is the median over rounds; on one thread by the
processor's time. The row goes to results/class_losses.jsonl, which performance_page.py draws.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from ghmdet import GHMC, functional
from rows import append_row, today

CLASSES = 80
ROUNDS = {160_000: 200, 1_600_000: 40, 16_000_000: 7}


def logits(kind: str, elements: int) -> Tensor:
    """[N, 80] logits of a detector at its "start", "trained", or "hard": a third beyond the first region."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(elements // CLASSES, CLASSES, generator=generator)
    if kind == "start":
        return z * 0.3 - 4.6
    if kind == "hard":
        return z * 1.5 - 4
    return torch.where(torch.rand(z.shape, generator=generator) < 0.01, z * 2 - 1, z * 2 - 8)


def measure(kind: str, elements: int, threads: int) -> dict[str, float]:
    """The median nanoseconds a logit of each arm."""
    x = logits(kind, elements).requires_grad_()
    labels = torch.randint(0, CLASSES, (len(x),), generator=torch.Generator().manual_seed(1))
    labels[torch.rand(len(x), generator=torch.Generator().manual_seed(2)) >= 0.08] = CLASSES
    targets = F.one_hot(labels, CLASSES + 1)[:, :CLASSES].float()
    joint, guarded = GHMC(), GHMC.guarded(CLASSES)
    arms = {
        "bce": lambda: F.binary_cross_entropy_with_logits(x, targets),
        "ghm-c joint": lambda: joint(x, labels),
        "ghm-c": lambda: guarded(x, labels),
        "focal": lambda: functional.sigmoid_focal_loss(x, labels),
        "torchvision focal": lambda: sigmoid_focal_loss(x, targets, reduction="mean"),
    }
    clock = time.thread_time if threads == 1 else time.perf_counter
    seen: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(ROUNDS[elements]):
        for arm, loss in arms.items():
            x.grad = None
            start = clock()
            loss().backward()
            seen[arm].append(clock() - start)
    return {arm: round(statistics.median(times[1:]) / elements * 1e9, 2) for arm, times in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    torch.atanh(torch.zeros(64))
    row = {
        "date": today(),
        "torch": torch.__version__,
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
    }
    row["ns a logit"] = {
        f"{elements:.1e}, {kind}": measure(kind, elements, threads)
        for elements in ROUNDS
        for kind in ("start", "trained", "hard")
    }
    append_row("class_losses", row)


if __name__ == "__main__":
    main()
