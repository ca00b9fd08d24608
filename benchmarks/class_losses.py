"""The class losses forward and backward beside PyTorch's cross entropy, in one process: nanoseconds a logit.

    python benchmarks/class_losses.py --threads 1
    python benchmarks/class_losses.py --device cuda

The arms take turns in one process, so each meets the same machine and the same fast `log1p` (see docs/performance.md).
Logits are [N, 80] float32, 8 % of the rows show an object; peers get their one-hot targets ready-made. What it costs
to harmonize depends on how many logits lie beyond the first region, so there are three kinds: a detector at its
start, a trained one, and one where a third lies beyond. A figure is the median over rounds; on one thread by the
processor's time; on a GPU until it has done all, with compiled arms beside the others and the most memory that was
allocated, in units of the logits. The row goes to results/class_losses.jsonl, which performance_page.py draws.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from ghmdet import GHMC, functional
from rows import append_row, today

CLASSES = 80
ROUNDS = {160_000: 200, 1_600_000: 40, 16_000_000: 7}
GPU_ROUNDS = {160_000: 60, 1_600_000: 60, 16_000_000: 40, 160_000_000: 12}


def logits(kind: str, elements: int) -> Tensor:
    """[N, 80] logits of a detector at its "start", "trained", or "hard": a third beyond the first region."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(elements // CLASSES, CLASSES, generator=generator)
    if kind == "start":
        return z * 0.3 - 4.6
    if kind == "hard":
        return z * 1.5 - 4
    return torch.where(torch.rand(z.shape, generator=generator) < 0.01, z * 2 - 1, z * 2 - 8)


def make_arms(kind: str, elements: int, device: str) -> tuple[Tensor, dict[str, Callable[[], Tensor]]]:
    """The logits and each arm's loss of them."""
    x = logits(kind, elements)
    labels = torch.randint(0, CLASSES, (len(x),), generator=torch.Generator().manual_seed(1))
    labels[torch.rand(len(x), generator=torch.Generator().manual_seed(2)) >= 0.08] = CLASSES
    x, labels = x.to(device).requires_grad_(), labels.to(device)
    targets = F.one_hot(labels, CLASSES + 1)[:, :CLASSES].float()
    joint, guarded = GHMC().to(device), GHMC.guarded(CLASSES).to(device)
    arms: dict[str, Callable[[], Tensor]] = {
        "bce": lambda: F.binary_cross_entropy_with_logits(x, targets),
        "ghm-c joint": lambda: joint(x, labels),
        "ghm-c": lambda: guarded(x, labels),
        "focal": lambda: functional.sigmoid_focal_loss(x, labels),
        "torchvision focal": lambda: sigmoid_focal_loss(x, targets, reduction="mean"),
    }
    if device == "cuda":
        compiled = {
            "bce, compiled": torch.compile(F.binary_cross_entropy_with_logits),
            "ghm-c, compiled": torch.compile(GHMC.guarded(CLASSES).to(device)),
        }
        arms["bce, compiled"] = lambda: compiled["bce, compiled"](x, targets)
        arms["ghm-c, compiled"] = lambda: compiled["ghm-c, compiled"](x, labels)
    return x, arms


def measure(kind: str, elements: int, threads: int, device: str) -> dict[str, dict[str, float]]:
    """The median nanoseconds a logit of each arm; on a GPU its memory too, in units of the logits."""
    x, arms = make_arms(kind, elements, device)
    clock = time.thread_time if threads == 1 and device == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    seen: dict[str, list[float]] = {arm: [] for arm in arms}
    memory = {}
    for _ in range((GPU_ROUNDS if device == "cuda" else ROUNDS)[elements]):
        for arm, loss in arms.items():
            x.grad = None
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            wait()
            start = clock()
            loss().backward()
            wait()
            seen[arm].append(clock() - start)
            if device == "cuda":
                memory[arm] = round((torch.cuda.max_memory_allocated() - before) / (4 * elements), 2)
    times = {arm: round(statistics.median(way[1:]) / elements * 1e9, 4) for arm, way in seen.items()}
    return {"ns a logit": times, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.atanh(torch.zeros(64))
    row = {
        "date": today(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu",
        "threads": chosen.threads,
        "load": round(os.getloadavg()[0], 1),
    }
    figures = {
        f"{elements:.1e}, {kind}": measure(kind, elements, chosen.threads, chosen.device)
        for elements in (GPU_ROUNDS if chosen.device == "cuda" else ROUNDS)
        for kind in ("start", "trained", "hard")
    }
    for figure in ("ns a logit", "memory"):
        row[figure] = {case: each[figure] for case, each in figures.items() if each[figure]}
    append_row("class_losses", row)


if __name__ == "__main__":
    main()
