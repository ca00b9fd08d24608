"""The losses forward and backward, against PyTorch's and torchvision's: time, growth and memory.

    python benchmarks/losses.py --threads 1 --rounds 5

Each arm runs in a process of its own, the arms alternate, a figure is the median over rounds of a process's median.
The logits are [N, 80] float32, one in 1000 is of a positive. A peer gets its one-hot targets ready-made. Memory is the
maximum resident set above what the inputs and a first small call took. The rows go to results/losses.csv, from
which the run then draws docs/performance.md, as performance_page.py does alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet import functional
from performance_page import draw

RESULTS = Path(__file__).parent / "results" / "losses.csv"
CLASSES = 80
COLUMNS = [
    "date",
    "machine",
    "torch",
    "load",
    "threads",
    "figure",
    "arm",
    "elements",
    "value",
    "unit",
    "ratio",
    "peer",
]
Loss = Callable[[Tensor, Tensor], Tensor]


def fast_log1p() -> None:
    """On AMD processors MKL's float32 log1p takes a slow way until its atanh was called once."""
    torch.atanh(torch.zeros(64))


def torchvision_focal(x: Tensor, y: Tensor) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss

    return sigmoid_focal_loss(x, y, reduction="sum")


# The arms that take class labels, and those that take one-hot float targets.
BY_LABELS: dict[str, Loss] = {
    "ghm-c": functional.ghm_c_loss,
    "ghm-c per class": lambda x, y: functional.ghm_c_loss(
        x, y, per_class=True, min_count="positives", normalize="none"
    ),
    "ghm-c reference": lambda x, y: functional.ghm_c_loss(x, y, impl="reference"),
    "focal": functional.sigmoid_focal_loss,
}
BY_ONE_HOT: dict[str, Loss] = {
    "bce": F.binary_cross_entropy_with_logits,
    "bce, fast log1p": F.binary_cross_entropy_with_logits,
    "torchvision focal": torchvision_focal,
}
DENSITY: dict[str, Callable[[Tensor], object]] = {
    "sort": lambda x: x.sort(),
    **{
        f"{method} density": partial(functional.gradient_density, method=method)
        for method in ("exact", "prefix", "unit-region")
    },
}
# GHM-R over the four offsets of positive anchors.
GHM_R: dict[str, Loss] = {
    f"ghm-r {method}": partial(functional.ghm_r_loss, method=method)
    for method in ("unit-region", "prefix", "exact")
}


def inputs(elements: int) -> tuple[Tensor, Tensor]:
    """Logits [N, 80] and labels; 8 % of the examples are positive, which is 1 in 1000 logits."""
    generator = torch.Generator().manual_seed(0)
    n = elements // CLASSES
    logits = torch.randn(n, CLASSES, generator=generator).mul_(1.5).sub_(4).requires_grad_()
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    return logits, torch.where(torch.rand(n, generator=generator) < 0.08, labels, CLASSES)


def step_of(arm: str, elements: int) -> Callable[[], None]:
    """One forward and backward of an arm, inputs ready."""
    if arm in DENSITY:
        norms = torch.rand(elements, generator=torch.Generator().manual_seed(0)) ** 4
        return lambda: DENSITY[arm](norms)
    logits, targets = inputs(elements)
    loss = (BY_LABELS | BY_ONE_HOT | GHM_R)[arm]
    if arm in GHM_R:
        logits = (0.05 * torch.randn(elements // 4, 4)).requires_grad_()
        targets = torch.zeros_like(logits)
    elif arm in BY_ONE_HOT:
        targets = F.one_hot(targets, CLASSES + 1)[:, :CLASSES].float()
    if "fast log1p" in arm:
        fast_log1p()

    def step() -> None:
        logits.grad = None
        loss(logits, targets).backward()

    return step


def measure(arm: str, elements: int, repeats: int) -> dict[str, float]:
    """The first call's seconds and the median of the others, in this process."""
    step = step_of(arm, elements)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "seconds": statistics.median(seconds[1:])}


def measure_memory(arm: str, elements: int) -> dict[str, float]:
    """The rise of the maximum resident set in one step, in units of the logits' size."""
    step_of(arm, 80 * CLASSES)()  # what a first call loads is not counted
    step = step_of(arm, elements)
    # A maximum that was reached before would hide the step's own.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmHWM")
    step()
    return {"share": (resident("VmHWM") - before) / (4 * elements)}


def resident(name: str) -> int:
    """A line of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def child(kind: str, arm: str, elements: int, threads: int, repeats: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", kind, arm, str(elements), str(threads), str(repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def medians(arms: list[str], elements: int, threads: int, rounds: int) -> dict[str, float]:
    """Seconds of each arm."""
    repeats = max(3, min(15, int(2.4e7 / elements)))
    seen: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm in arms:
            seen[arm].append(child("time", arm, elements, threads, repeats)["seconds"])
    return {arm: statistics.median(values) for arm, values in seen.items()}


class Table:
    """Rows of the CSV."""

    def __init__(self, threads: int) -> None:
        self.fixed = {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": platform.machine() + f", {os.cpu_count()} cores",
            "torch": torch.__version__,
            "threads": threads,
        }

    def add(
        self,
        figure: str,
        arm: str,
        elements: int,
        value: float,
        unit: str,
        ratio: float | str = "",
        peer: str = "",
    ) -> None:
        row = {
            **self.fixed,
            "load": f"{os.getloadavg()[0]:.1f}",
            "figure": figure,
            "arm": arm,
            "elements": elements,
            "value": f"{value:.4g}",
            "unit": unit,
            "ratio": ratio if isinstance(ratio, str) else f"{ratio:.3f}",
            "peer": peer,
        }
        print(", ".join(f"{row[c]}" for c in COLUMNS[5:]), flush=True)
        new = not RESULTS.exists()
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1.6e6, 1.6e7])
    parser.add_argument("--only", choices=FIGURES, help="measure these figures only")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        kind, arm, elements, threads, repeats = chosen.child
        torch.set_num_threads(int(threads))
        answer = (
            measure(arm, int(elements), int(repeats))
            if kind == "time"
            else measure_memory(arm, int(elements))
        )
        print(json.dumps(answer))
        return
    table = Table(chosen.threads)
    for name in [chosen.only] if chosen.only else FIGURES:
        FIGURES[name](table, chosen.threads, chosen.rounds, [int(size) for size in chosen.sizes])
    draw()


def losses(table: Table, threads: int, rounds: int, sizes: list[int]) -> None:
    arms = [*BY_ONE_HOT, *BY_LABELS]
    for elements in sizes:
        seconds = medians(arms, elements, threads, rounds)
        for arm in arms:
            peer = "torchvision focal" if arm == "focal" else "bce"
            nanoseconds = seconds[arm] / elements * 1e9
            table.add("time", arm, elements, nanoseconds, "ns/logit", seconds[arm] / seconds[peer], peer)
        ratio = seconds["ghm-c"] / seconds["torchvision focal"]
        nanoseconds = seconds["ghm-c"] / elements * 1e9
        table.add("time", "ghm-c", elements, nanoseconds, "ns/logit", ratio, "torchvision focal")
        for arm in ("bce", "torchvision focal", "ghm-c", "ghm-c per class", "focal"):
            share = statistics.median(
                child("memory", arm, elements, threads, 1)["share"] for _ in range(min(rounds, 3))
            )
            table.add("memory", arm, elements, share, "logits' size")


def growth(table: Table, threads: int, rounds: int, sizes: list[int]) -> None:
    each = {n: medians(["ghm-c"], n, threads, rounds)["ghm-c"] / n for n in (10**5, 10**6, 10**7)}
    for n, seconds in each.items():
        table.add("growth", "ghm-c", n, seconds * 1e9, "ns/logit", seconds / each[10**6], "1e6")


def density(table: Table, threads: int, rounds: int, sizes: list[int]) -> None:
    for arms, elements in ((DENSITY, 10**6), (GHM_R, 4 * 3000)):
        seconds = medians(list(arms), elements, threads, rounds)
        peer = next(iter(arms))
        for arm, value in seconds.items():
            table.add("density", arm, elements, value * 1e3, "ms", value / seconds[peer], peer)


FIGURES = {"losses": losses, "growth": growth, "density": density}


if __name__ == "__main__":
    main()
