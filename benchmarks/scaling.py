"""What many ranks cost a harmonized loss, and what it would cost not to let them agree. Needs no GPU and no network.

    python benchmarks/scaling.py --step 0.1

For 1 to 1024 ranks of two pictures each:

- the bytes that a rank gives to `all_reduce` in a step for the loss, counted by calling it, and for the gradient;
- on paper, the step: `--step` seconds of work, the gradient by a ring at `--bandwidth`, and the loss's small sums, each
  a tree's height of `--latency`; no communication is taken to hide behind the work;
- simulated, the share of the class loss's gradient that is wrong if each rank weighs by the density of its own
  pictures: the sum over logits of |own - whole| over that of |whole|, for all classes and for the rarer half. The
  classes are Zipf's, a picture has about eight objects, some are harder than others, and the moving averages have run
  for five steps.

Rows go to results/scaling.jsonl.
"""

from __future__ import annotations

import argparse
import math
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from ghmdet import GHMC, GHMR
from rows import append_row, today

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CLASSES, ANCHORS, PICTURES, STEPS = 20, 1000, 2, 5


def exchanged(loss: torch.nn.Module, *batch: Tensor) -> int:
    """The bytes that a rank of several gives to the collectives in one step of a loss."""
    given: list[int] = []

    def all_reduce(tensor: Tensor, *more: object) -> None:
        given.append(tensor.numel() * tensor.element_size())

    there = {"is_initialized": lambda: True, "get_world_size": lambda: 2, "all_reduce": all_reduce}
    with mock.patch.multiple(dist, **there):
        loss(*batch)
    return sum(given)


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits [count * ANCHORS, CLASSES] of so many pictures, and the labels of the anchors."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    logits = normal(count, ANCHORS, CLASSES) - 5 + normal(count, 1, 1)
    shares = 1 / torch.arange(1.0, CLASSES + 1)
    labels = torch.multinomial(shares, count * ANCHORS, replacement=True, generator=generator)
    labels = labels.view(count, ANCHORS)
    labels[torch.rand(count, ANCHORS, generator=generator) > 8 / ANCHORS] = CLASSES
    own = labels[..., None] == torch.arange(CLASSES)
    logits = torch.where(own, normal(count, ANCHORS, CLASSES) * 2 + normal(count, 1, 1), logits)
    return logits.flatten(0, 1), labels.flatten()


def gradient(loss: GHMC, logits: Tensor, labels: Tensor) -> Tensor:
    """Of the mean over the examples, [N, CLASSES]."""
    logits = logits.clone().requires_grad_()
    loss(logits, labels).backward()
    assert logits.grad is not None
    return logits.grad


def error(ranks: int) -> dict[str, float]:
    """The share of the gradient that is wrong where each rank weighs by its own density."""
    whole, own = GHMC.guarded(CLASSES), [GHMC.guarded(CLASSES) for _ in range(ranks)]
    for step in range(STEPS):
        logits, labels = pictures(ranks * PICTURES, seed=ranks * STEPS + step)
        right = gradient(whole, logits, labels)
        parts = zip(own, logits.chunk(ranks), labels.chunk(ranks), strict=True)
        wrong = torch.cat([gradient(*part) for part in parts]) / ranks
    apart, size = (wrong - right).abs().sum(0), right.abs().sum(0)
    rare = slice(CLASSES // 2, None)
    return {
        "all": round(float(apart.sum() / size.sum()), 4),
        "rarest half": round(float(apart[rare].sum() / size[rare].sum()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step", type=float, default=0.1, help="seconds of work of a rank's step")
    parser.add_argument("--parameters", type=float, default=38e6)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--bandwidth", type=float, default=25e9, help="bytes a second of a rank's link")
    parser.add_argument("--latency", type=float, default=20e-6, help="seconds of a message between two ranks")
    parser.add_argument("--most", type=int, default=1024)
    given = parser.parse_args()
    k = given.classes
    labels = torch.randint(0, k, (64,))
    sums = exchanged(GHMC.guarded(k), torch.zeros(64, k, requires_grad=True), labels)
    sums += exchanged(GHMR(), torch.zeros(64, 4, requires_grad=True), torch.ones(64, 4))
    for ranks in (each for each in RANKS if each <= given.most):
        hops = math.ceil(math.log2(ranks))
        ring = 2 * (ranks - 1) / ranks * 4 * given.parameters / given.bandwidth
        loss = 3 * 2 * hops * given.latency  # the positives and two tables, there and back
        whole = given.step + ring + 2 * hops * given.latency + loss
        row = {
            "date": today(),
            "ranks": ranks,
            "bytes": {
                "loss": sums + 4 if ranks > 1 else 0,
                "gradient": int(4 * given.parameters) if ranks > 1 else 0,
            },
            "seconds": {"work": given.step, "gradient": round(ring, 4), "loss": round(loss, 6)},
            "efficiency": round(given.step / whole, 3),
            "gradient wrong by own density": error(ranks),
        }
        append_row("scaling", row)


if __name__ == "__main__":
    main()
