"""Draw docs/performance.md from the rows that losses.py measured."""

from __future__ import annotations

import csv
from pathlib import Path

from rows import RESULTS, newest_row

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

HEAD = """# Speed and memory of the losses

`make bench` measures and draws the tables of this page from `benchmarks/results/losses.csv`; no figure in them is
typed by hand. Forward and backward, float32, 80 classes, one logit in 1000 of a positive. Each arm runs in processes
of its own, the arms alternate, a figure is the median over rounds of a process's median. Peers get their one-hot
targets ready-made.

`ghm-c` is what `impl="auto"` takes on a CPU: two passes over blocks of 65536 logits, one that counts, one that writes
loss and gradient together. Labels stay labels, ignored anchors of `[N, K]` logits are never read, and only the
gradient has the logits' size. `ghm-c reference` is the readable composition, `ghm-c compile` that composition by
`torch.compile`.

**What the ratios depend on.** `F.binary_cross_entropy_with_logits` spends most of its time in MKL's float32 `log1p`.
On the AMD processor measured here it takes about 9 ns a number until MKL's `atanh` was called once in the process (on
64 numbers or more), and 0.45 ns from then on: `torch.atanh(torch.zeros(64))` makes plain cross entropy several times
as fast, for the rest of the process. A process that uses the fused loss gets that too, as it computes log(1 + e^−|x|)
by `atanh`. The row `bce, fast log1p` is plain cross entropy after such a call, and is the peer where `log1p` is fast
anyway.

**GPU.** Speed on a GPU is unmeasured. The path of other devices is the same code on blocks of 4 million logits. Tests
hold assignment and every loss, forward and backward, to operations that read no value and whose results' sizes depend
on none: no `.item()`, no `nonzero`, no index by a mask. So nothing waits for the device, and nothing of this kind keeps
the losses out of a CUDA graph, which is as far as it can be told without a GPU. A whole training step of the detector
runs on PyTorch's `meta` device, where no value can be read. Assignment and losses compile to one graph
(`fullgraph=True`).
"""
KERNELS = """## What torch.compile makes for a GPU (torch {torch}, nothing ran)

`benchmarks/kernels.py` lets inductor write the code for GPUs that are not there. Kernels launched, in brackets those
that read something of every anchor; ready-made operations are what it could not fuse.

| loss | architecture | forward | backward | ready-made |
|---|---|---|---|---|"""


def draw() -> None:
    """Write the page."""
    PAGE.write_text("\n".join([HEAD, *losses(), *kernels()]).rstrip() + "\n", encoding="utf-8")


def losses() -> list[str]:
    """For each figure, the newest row of each arm."""
    with (RESULTS / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = []
    for threads in sorted({row["threads"] for row in rows}):
        newest: dict[tuple[str, ...], dict[str, str]] = {}
        for row in rows:
            if row["threads"] == threads:
                newest[row["figure"], row["elements"], row["arm"], row["peer"]] = row
        machine = ", ".join(sorted({f"{row['machine']}, torch {row['torch']}" for row in newest.values()}))
        parts.append(f"## {threads} thread{'s' if threads != '1' else ''} ({machine})\n")
        parts.append("| figure | logits | arm | value | ratio | load |\n|---|---|---|---|---|---|")
        for (figure, elements, arm, peer), row in newest.items():
            ratio = f"{row['ratio']} of {peer}" if peer else ""
            parts.append(
                f"| {figure} | {float(elements):.2g} | {arm} | {row['value']} {row['unit']} | {ratio} | {row['load']} |"
            )
        parts.append("")
    return parts


def kernels() -> list[str]:
    """The newest row of kernels.jsonl."""
    row = newest_row("kernels")
    parts = [KERNELS.format(**row)]
    for architecture in ("sm_80", "sm_90"):
        for loss, ways in row[architecture].items():
            seen = [f"{way['kernels']} ({way['large']})" for way in ways.values()]
            ready = sum(way["ready-made"] for way in ways.values())
            parts.append(f"| {loss} | {architecture} | {seen[0]} | {seen[1]} | {ready} |")
    return [*parts, ""]


if __name__ == "__main__":
    draw()
