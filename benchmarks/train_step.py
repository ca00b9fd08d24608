"""A training step and a detection of `r50`, against torchvision's RetinaNet of the same shapes and weights.

    python benchmarks/train_step.py --threads 1 --rounds 5
    python benchmarks/train_step.py --device cuda --size 640 --batches 16 --rounds 20

Each arm is a process that stays; the arms take turns, a step each, and a figure is the median of its steps after the
first. Float32 unless said, square pictures with four boxes, 91 classes, AdamW on both sides. The row goes to
results/train_step.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from ghmdet.engine.device import choose_device, keep_freed_memory
from ghmdet.engine.optim import make_optimizer
from ghmdet.models import DetectionLoss, LossConfig, RetinaNet
from rows import append_row, today

TRAINING = ("torchvision", "focal", "ghm-c", "torchvision, bf16", "ghm-c, bf16")
DETECTION = ("torchvision", "ghmdet")


def torchvision_model(size: int) -> TorchvisionRetinaNet:
    """`retinanet_resnet50_fpn` as its pretrained form is built, all layers trained, with random weights."""
    torch.manual_seed(0)
    body = resnet50(norm_layer=FrozenBatchNorm2d)
    for module in body.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.5)  # or the activations grow from block to block
    extra = LastLevelP6P7(256, 256)
    backbone = _resnet_fpn_extractor(body, 5, returned_layers=[2, 3, 4], extra_blocks=extra)
    return TorchvisionRetinaNet(backbone, 91, min_size=size, max_size=size)


def pictures(batch: int, size: int, device: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A batch and its boxes."""
    boxes = torch.tensor([[20, 20, 120, 160], [100, 60, 180, 200], [5, 5, 45, 50], [200, 200, 260, 300]])
    labels = torch.tensor([1, 17, 44, 90])
    one = {"boxes": boxes.float().to(device), "labels": labels.to(device)}
    return [torch.rand(3, size, size, device=device) for _ in range(batch)], [one] * batch


def training(arm: str, batch: int, size: int, device: str) -> Callable[[], object]:
    """One step: forward, backward, optimizer."""
    name, _, precision = arm.partition(", ")
    theirs = torchvision_model(size).to(device)
    model: nn.Module = theirs
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-5)
    if name != "torchvision":
        keep_freed_memory()  # as `ghmdet train` does
        ours = model = RetinaNet.from_torchvision(theirs).to(device, memory_format=torch.channels_last)
        ours.loss = DetectionLoss(LossConfig(name, "smooth-l1"), 91).to(device)
        optimizer = make_optimizer(ours, ours.backbone, lr=1e-5, backbone_lr=1.0, weight_decay=0.01)
    chosen = choose_device(device, precision or "fp32")
    images, targets = pictures(batch, size, device)
    model.train()

    def step() -> None:
        with chosen.autocast():
            losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.no_grad()
def detection(arm: str, batch: int, size: int, device: str) -> Callable[[], object]:
    """One batch, of which some thousand candidates go into NMS."""
    theirs = torchvision_model(size).to(device).eval()
    images, _ = pictures(batch, size, device)
    layer = theirs.head.classification_head.cls_logits
    raw = theirs.head(list(theirs.backbone(theirs.transform(images)[0].tensors).values()))["cls_logits"]
    layer.weight /= raw.std()
    layer.bias.fill_(-6)
    model: nn.Module = theirs
    if arm == "ghmdet":
        model = RetinaNet.from_torchvision(theirs).to(device, memory_format=torch.channels_last)
    return torch.inference_mode()(lambda: model(images))


def serve(kind: str, arm: str, batch: int, threads: int, size: int, device: str) -> None:
    """Do a step for each line that comes in, and say how long it took."""
    torch.set_num_threads(threads)
    step = (training if kind == "training" else detection)(arm, batch, size, device)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - processor]), flush=True)


def measure(
    kind: str, arms: tuple[str, ...], batch: int, rounds: int, *settings: object
) -> dict[str, list[float]]:
    """Seconds of the clock and of the processor for each arm."""
    processes, seen = {}, {arm: [] for arm in arms}
    for arm in arms:
        command = [sys.executable, __file__, "--serve", kind, arm, str(batch), *map(str, settings)]
        processes[arm] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
    for _ in range(rounds + 1):
        for arm, process in processes.items():
            assert process.stdin and process.stdout
            process.stdin.write("\n")
            seen[arm].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.communicate()
    return {
        arm: [statistics.median(way) for way in zip(*steps[1:], strict=True)] for arm, steps in seen.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--serve", nargs=6, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        kind, arm, batch, threads, size, device = chosen.serve
        serve(kind, arm, int(batch), int(threads), int(size), device)
        return
    for kind, arms in (("training", TRAINING), ("detection", DETECTION)):
        for batch in chosen.batches:
            seconds = measure(kind, arms, batch, chosen.rounds, chosen.threads, chosen.size, chosen.device)
            clock, processor = ({arm: way[i] for arm, way in seconds.items()} for i in (0, 1))
            row = {
                "date": today(),
                "torch": torch.__version__,
                "load": round(os.getloadavg()[0], 1),
                "device": torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu",
                "size": chosen.size,
                "threads": chosen.threads,
                "kind": kind,
                "batch": batch,
                "seconds": {arm: round(value, 3) for arm, value in clock.items()},
                "processor_seconds": {arm: round(value, 3) for arm, value in processor.items()},
                "ratio": {arm: round(clock[arm] / clock[peer(arm)], 3) for arm in arms},
                "processor_ratio": {arm: round(processor[arm] / processor[peer(arm)], 3) for arm in arms},
            }
            append_row("train_step", row)


def peer(arm: str) -> str:
    """Torchvision's arm of the same precision."""
    _, comma, precision = arm.partition(", ")
    return f"torchvision{comma}{precision}"


if __name__ == "__main__":
    main()
