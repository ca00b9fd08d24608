"""Draw docs/performance.md from the rows in results/."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from rows import RESULTS, all_rows

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

HEAD = """# Speed and memory

`make bench` measures and draws the tables of this page from the rows in `benchmarks/results`; no figure in them is
typed by hand, but for the training step on two threads, whose row was entered from what its measurement printed.
Figures in the text are read off the tables.

{fair}
## Losses, each in processes of its own

Forward and backward, float32, 80 classes, one logit in 1000 of a positive. Each arm runs in processes of its own, the
arms alternate, a figure is the median over rounds of a process's median. Peers get their one-hot targets ready-made.
Load is the machine's while the row was measured: above its number of cores, times are too long and ratios less sure.

`ghm-c` is what `impl="auto"` takes on a CPU: two passes over blocks of logits, one that counts, one that writes loss
and gradient together. Labels stay labels, and only the gradient has the logits' size. `ghm-c reference` is the
readable composition. The rows of `ghm-c` here are those of an earlier form of the loss.

**What the ratios depend on.** `F.binary_cross_entropy_with_logits` spends most of its time in MKL's float32 `log1p`.
On the AMD processor measured here it takes about 9 ns a number until MKL's `atanh` was called once in the process (on
64 numbers or more), and 0.45 ns from then on: `torch.atanh(torch.zeros(64))` makes plain cross entropy several times
as fast, for the rest of the process. A process that trains with GHM-C gets that too, as the fused form sums the
losses of easy background by `atanh`. The row `bce, fast log1p` is plain cross entropy after such a call, and is the
peer where `log1p` is fast anyway.

**Growth.** A call has a fixed cost of 0.4 ms, half of the time at 1e5 logits. Above 32 MB, glibc's malloc takes a
gradient's memory fresh from the system each time, which is the rise at 1e7: from 1e6 to 1e7 logits the cost grows 23 %
an element, above the aim of 15 %. With memory kept, as `ghmdet train` does, it does not grow (4.5 against 5.0 ns).

"""
GPU = """## On a GPU ({device}, torch {torch})

All that was run on a GPU was run on this one, with a PyTorch older than the package asks for; several GPUs were not.
`tests/test_gpu.py`, a part of `make test` that is left out where there is no GPU, holds every loss there to its
reference on the CPU (values, gradients and averages, float64 to float16), and runs train, resume, val, report, audit
and predict: 414 passed. A training step waits for nothing, which CUDA's synchronisation check confirms: no operation
reads a value or makes a result whose size depends on one. So the losses can be captured in a CUDA graph, and they
compile to one graph.

A training step and a detection of `r50`, {size} x {size} pixels, batch {batch}, against torchvision's
(`benchmarks/train_step.py --device cuda`):

| what | arm | s | ratio |
|---|---|---|---|
{steps}

The class losses alone (`benchmarks/class_losses.py --device cuda`). A cell holds nanoseconds a logit, in brackets the
ratio to `bce` (not compiled), and the memory in units of the logits. Up to 1.6 million logits a call costs what its
launches cost: 2.4 to 2.9 ms for `ghm-c`, of which `torch.compile` leaves 1.1 to 1.3 ms, and .4 ms for `bce`. A block
of the logits is worked on at a time, 4 million of them: below that the memory is that of all intermediate results,
above it that of the gradient. So harmonizing is dear beside cross entropy, and little in a whole step: `ghm-c` takes
4 % longer than `focal` in the step above.

"""
FAIR = """## Class losses beside cross entropy

Forward and backward in one process, the arms taking turns, 80 classes, float32, one-hot targets given to the peers,
`log1p` fast (below): nanoseconds a logit, in brackets the ratio to `F.binary_cross_entropy_with_logits`
(`benchmarks/class_losses.py`). Harmonizing is cheap where nearly all logits are easy background of one region, as
they are in a detector: "start" is one before its first step, "trained" one that has learnt. In "hard", a third of the
logits lies beyond the first region. At 160 000 logits the fixed cost of a call is what shows.
"""
STEPS = """## Training step and detection (CPU)

`r50` against torchvision's `retinanet_resnet50_fpn` with the same weights and frozen batch norm, 320 x 320 pixels,
AdamW on both sides (`benchmarks/train_step.py`). The arms are processes that take turns, a step each. Ratio to
torchvision in the same precision, of the processor's time.

Profiled on one thread, 83 % of torchvision's step are convolutions and 87 % of ours; 26 % of theirs are 1 x 1 ones that
do not go to oneDNN, none of ours. On two threads PyTorch gives all to oneDNN, so the difference is smaller: `ghm-c`
misses the aim of 0.85 there. Frozen batch norm is 3 % of our step on one thread, and 10 % of one profiled on two
threads of a busy machine; it could be folded into the weights before it, which is not done.

These are medians of two to four steps, on a machine whose long runs were paused but where others worked. Runs at other
times gave 0.67 to 0.69 for `ghm-c` in float32 on one thread, but 0.52 to 0.78 in bf16. A run on two threads at load 5
gave anything from 0.34 to 1.15 and is not in the table. Detection on two threads was not measured on a quiet machine.

| threads | what | batch | arm | s by the clock | s of the processor | ratio | load |
|---|---|---|---|---|---|---|---|"""
SHARES = """
What a step is made of, in milliseconds of one thread (`benchmarks/step_share.py`); "outside" is the share of what is
not backbone, neck or head.

| model | {parts} | outside |
|---|{rules}---|"""
LOADER = """
With the loader (pictures of 640 x 480 from disk, no worker processes) `nano` has {first:.1%} of the throughput that it
has on batches in memory in the first epoch, and {later:.1%} in later ones (by the processor's time: nothing overlaps).

`nano` at batch 16, seconds a step and peak memory (`benchmarks/step.py`):

| threads | PyTorch's depthwise convolutions | ours | and freed memory kept |
|---|---|---|---|"""
KERNELS = """## What torch.compile makes for a GPU (torch {torch}, nothing ran)

`benchmarks/kernels.py` lets inductor write the code for GPUs that are not there. Kernels launched, in brackets those
that read something of every anchor; ready-made operations are what it could not fuse.

| loss | architecture | forward | backward | ready-made |
|---|---|---|---|---|"""

SCALING = """## Many processes

On paper and simulated (`benchmarks/scaling.py`): no such machine was there. The network is `r50` of 38 million
weights. Its gradient goes round a ring at 25 GB/s, the loss's sums up and down a tree at 20 us a message, and nothing
hides behind the work. "At work" is the share of the time that is not communication, where the step of a process takes
the {gpu:.3f} s measured above on one H100 (`ghm-c`, float32, 16 pictures) or the {cpu:.2f} s of two pictures on a
thread of a CPU. The last columns are why the processes agree on one density at all: the share of the class loss's
gradient that would be wrong if each weighed its examples by its own two pictures (simulated scenes, drawn anew for
each row; 20 classes, some rare).

| processes | loss sends | gradient sends | gradient | loss | at work: {gpu:.3f} s | {cpu:.2f} s | wrong | rarer half |
|---|---|---|---|---|---|---|---|---|"""


def draw() -> None:
    """Write the page."""
    PAGE.write_text(
        "\n".join([HEAD.format(fair=fair()), *losses(), *steps(), *gpu(), *kernels(), *scaling()]).rstrip()
        + "\n",
        encoding="utf-8",
    )


def fair() -> str:
    """The newest row of each number of threads."""
    newest = {row["threads"]: row for row in all_rows("class_losses") if _on_cpu(row)}
    parts = [FAIR]
    for threads, row in sorted(newest.items()):
        parts.append(
            f"{threads} thread(s), torch {row['torch']}, load {row['load']} at the start, {row['date']}:\n"
        )
        parts += _losses_of(row)
    return "\n".join(parts)


def _on_cpu(row: dict[str, Any]) -> bool:
    """Rows did not name the device before one was measured on a GPU."""
    return row.get("device", "cpu") == "cpu"


def _losses_of(row: dict[str, Any]) -> list[str]:
    arms = list(next(iter(row["ns a logit"].values())))
    parts = ["| logits | " + " | ".join(arms) + " |\n|---|" + "---|" * len(arms)]
    for name, figures in row["ns a logit"].items():
        cells = [f"{value} ({value / figures['bce']:.2f})" for value in figures.values()]
        if name in row.get("memory", {}):
            cells = [
                f"{cell}, {most}" for cell, most in zip(cells, row["memory"][name].values(), strict=True)
            ]
        parts.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*parts, ""]


def gpu() -> list[str]:
    """The newest rows of a GPU."""
    steps = {row["kind"]: row for row in all_rows("train_step") if not _on_cpu(row)}
    lines = [
        f"| {kind} | {arm} | {seconds} | {row['ratio'][arm]:.2f} |"
        for kind, row in steps.items()
        for arm, seconds in row["seconds"].items()
    ]
    (*_, losses) = (row for row in all_rows("class_losses") if not _on_cpu(row))
    return [GPU.format_map(steps["training"] | {"steps": "\n".join(lines)}), *_losses_of(losses)]


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
        parts.append(f"### {threads} thread{'s' if threads != '1' else ''} ({machine})\n")
        parts.append("| figure | logits | arm | value | ratio | load |\n|---|---|---|---|---|---|")
        for (figure, elements, arm, peer), row in newest.items():
            ratio = f"{row['ratio']} of {peer}" if peer else ""
            parts.append(
                f"| {figure} | {float(elements):.2g} | {arm} | {row['value']} {row['unit']} | {ratio} | {row['load']} |"
            )
        parts.append("")
    return parts


def steps() -> list[str]:
    """The newest row of each number of threads, kind and batch; the newest shares."""
    parts = [STEPS]
    newest = {
        (row["threads"], row["kind"], row["batch"]): row for row in all_rows("train_step") if _on_cpu(row)
    }
    for (threads, kind, batch), row in sorted(
        newest.items(), key=lambda one: (one[0][0], one[0][1] != "training")
    ):
        for arm, seconds in row["seconds"].items():
            parts.append(
                f"| {threads} | {kind} | {batch} | {arm} | {seconds} | {row['processor_seconds'][arm]}"
                f" | {row['processor_ratio'][arm]:.2f} | {row['load']} |"
            )
    row = all_rows("step_share")[-1]
    models = {name: value for name, value in row.items() if ", batch" in name}
    names = list(next(iter(models.values()))["milliseconds"])
    parts.append(SHARES.format(parts=" | ".join(names), rules="---|" * len(names)))
    for name, shares in models.items():
        cells = " | ".join(str(value) for value in shares["milliseconds"].values())
        parts.append(f"| {name}, {shares['precision']} | {cells} | {shares['outside']:.1%} |")
    loader = row["throughput with the loader"]
    parts.append(LOADER.format(first=loader["first epoch"], later=loader["later epochs"]))
    for threads, row in {row["threads"]: row for row in all_rows("step")}.items():
        cells = " | ".join(
            f"{row['seconds'][arm]} s, {row['peak_mib'][arm]} MiB"
            for arm in ("torch", "depthwise", "depthwise+memory")
        )
        parts.append(f"| {threads} | {cells} |")
    return [*parts, ""]


def kernels() -> list[str]:
    """The newest row of kernels.jsonl."""
    row = all_rows("kernels")[-1]
    parts = [KERNELS.format(**row)]
    for architecture in ("sm_80", "sm_90"):
        for loss, ways in row[architecture].items():
            seen = [f"{way['kernels']} ({way['large']})" for way in ways.values()]
            ready = sum(way["ready-made"] for way in ways.values())
            parts.append(f"| {loss} | {architecture} | {seen[0]} | {seen[1]} | {ready} |")
    return [*parts, ""]


def scaling() -> list[str]:
    """The newest row of each number of processes."""
    cpu = sum(all_rows("step_share")[-1]["r50, batch 2"]["milliseconds"].values()) / 1000
    (*_, step) = (row for row in all_rows("train_step") if not _on_cpu(row) and row["kind"] == "training")
    gpu = step["seconds"]["ghm-c"]
    parts = [SCALING.format(gpu=gpu, cpu=cpu)]
    for ranks, row in sorted({row["ranks"]: row for row in all_rows("scaling")}.items()):
        sent, seconds, wrong = (row[name] for name in ("bytes", "seconds", "gradient wrong by own density"))
        talk = seconds["gradient"] + seconds["loss"]
        parts.append(
            f"| {ranks} | {sent['loss'] / 1000:.1f} kB | {sent['gradient'] / 1e6:.0f} MB"
            f" | {1000 * seconds['gradient']:.1f} ms | {1000 * seconds['loss']:.2f} ms"
            f" | {gpu / (gpu + talk):.1%} | {cpu / (cpu + talk):.1%}"
            f" | {wrong['all']:.0%} | {wrong['rarest half']:.0%} |"
        )
    return [*parts, ""]


if __name__ == "__main__":
    draw()
