"""Where a training step on the CPU goes that is not the network, and what the loader adds.

    python benchmarks/step_share.py --threads 1 --rounds 5

Parts: each part of the trainer's step on 320 x 320 pictures, `nano` at batch 16 and `r50` at batch 2, in seconds of
the processor; "outside" is the share of all but the network (backbone, neck, head). Loader: `nano` on synthetic
pictures of 640 x 480 from disk, as `ghmdet train` reads them (no worker processes, pictures kept when decoded); the
throughput of the first epoch and of a later one, as a share of that of the same steps on batches already in memory.
The row goes to results/step_share.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ghmdet.data.make import SynthConfig, synthesize
from ghmdet.engine.context import begin_run
from ghmdet.engine.device import choose_device, keep_freed_memory
from ghmdet.engine.optim import WeightAverage, make_optimizer
from ghmdet.engine.settings import TrainConfig
from ghmdet.engine.training_data import TrainingData
from ghmdet.models import PRESETS, RetinaNet
from rows import append_row, today

NETWORK = ("network", "network backward")


class Step:
    """The trainer's step, timed part by part."""

    def __init__(self, name: str, classes: int, precision: str) -> None:
        torch.manual_seed(0)
        config = dataclasses.replace(PRESETS[name], min_size=320, max_size=320)
        self.model = RetinaNet(config, [str(c) for c in range(classes)]).train()
        self.model.to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(
            self.model, self.model.backbone, lr=1e-4, backbone_lr=0.1, weight_decay=0.02
        )
        self.average = WeightAverage(self.model, 0.99)
        self.device = choose_device("cpu", precision)
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        start = time.process_time()
        yield
        self.seconds[name].append(time.process_time() - start)

    def __call__(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
        """The trainer's step, with the graph cut at the head's outputs."""
        model = self.model
        with self.device.autocast():
            with self.part("batch"):
                batch = model.preprocess(images)
            with self.part("network"):
                outputs = model.forward_raw(batch.images)
            cut = [output.detach().requires_grad_() for output in outputs]
            with self.part("assignment"):
                wanted = model.assign(targets, batch)
                anchors, _ = model._anchors(batch.images)
            with self.part("losses"):
                losses = model.loss(*cut, wanted.labels, wanted.boxes, anchors)
        with self.part("losses' backward"):
            torch.stack(list(losses.values())).sum().backward()
        with self.part("network backward"):
            torch.autograd.backward(outputs, [one.grad for one in cut])
        with self.part("clip"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        with self.part("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        with self.part("average"):
            self.average.update(model)


def shares(name: str, batch: int, classes: int, precision: str, rounds: int) -> dict[str, object]:
    """Milliseconds of each part and the share outside the network."""
    step = Step(name, classes, precision)
    boxes = torch.tensor([[20, 20, 120, 160], [100, 60, 180, 200], [5, 5, 45, 50], [200, 200, 260, 300]])
    targets = [{"boxes": boxes.float(), "labels": torch.tensor([0, 2, 1, 0])} for _ in range(batch)]
    images = [torch.rand(3, 320, 320) for _ in range(batch)]
    for _ in range(rounds + 1):
        step(images, targets)
    medians = {part: statistics.median(seconds[1:]) for part, seconds in step.seconds.items()}
    outside = 1 - sum(medians[part] for part in NETWORK) / sum(medians.values())
    milliseconds = {part: round(1e3 * value, 1) for part, value in medians.items()}
    return {"precision": step.device.precision, "milliseconds": milliseconds, "outside": round(outside, 4)}


def loader_shares(pictures: int) -> dict[str, float]:
    """Throughput with the loader as a share of that without, in the first epoch and in the third."""
    step = Step("nano", 3, "auto")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "synthetic"
        synthesize(root, SynthConfig(images=pictures * 4 // 3, size=(640, 480)))
        config = TrainConfig(size=320, batch_size=16, workers=0, device="cpu")
        data = TrainingData(begin_run(root, Path(folder) / "run", config, say=lambda line: None))
        step(*next(iter(data.loader)))  # what a first call loads is not counted
        found = {}
        for epoch in range(3):
            data.loader.batch_sampler.set_epoch(epoch)
            loaded, batches = timed(lambda: list(data.loader))
            plain = sum(timed(lambda batch=batch: step(*batch))[0] for batch in batches)
            found[epoch] = plain / (plain + loaded)
    return {"first epoch": round(found[0], 3), "later epochs": round(found[2], 3)}


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """The processor's seconds, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=64)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    row = {
        "date": today(),
        "torch": torch.__version__,
        "threads": chosen.threads,
        "nano, batch 16": shares("nano", 16, 3, "auto", chosen.rounds),
        "r50, batch 2": shares("r50", 2, 80, "fp32", chosen.rounds),
        "throughput with the loader": loader_shares(chosen.pictures),
    }
    append_row("step_share", row)


if __name__ == "__main__":
    main()
