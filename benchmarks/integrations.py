"""A training step of other people's models: with their own class loss, harmonized, and harmonized and watched.

Prints a row of docs/integrations.md for each model: the class loss of the first step by both, the time of a step with
the model's own loss, and how many times that the others take. Processor time of one thread, the three kinds in turn,
medians: other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torchvision.models import detection

import ghmdet
from ghmdet.integrations import harmonize

CLASSES = 21
NOTHING = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
SIZE = {"min_size": 320, "max_size": 320}
MODELS = {
    "RetinaNet, ResNet-50": lambda: detection.retinanet_resnet50_fpn(**NOTHING, **SIZE),
    "FCOS, ResNet-50": lambda: detection.fcos_resnet50_fpn(**NOTHING, **SIZE),
    "SSDlite, MobileNet": lambda: detection.ssdlite320_mobilenet_v3_large(**NOTHING),
    "Faster R-CNN, MobileNet": lambda: detection.fasterrcnn_mobilenet_v3_large_fpn(**NOTHING, **SIZE),
}
KINDS = ("own", "harmonized", "watched")


def batch(pictures: int):
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 320, 320, generator=generator) for _ in range(pictures)]
    corners = torch.rand(pictures, 6, 2, generator=generator) * 200
    sides = torch.rand(pictures, 6, 2, generator=generator) * 90 + 20
    labels = torch.randint(1, CLASSES, (pictures, 6), generator=generator)
    boxes = torch.cat([corners, corners + sides], 2)
    return images, [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]


def made(name: str, kind: str):
    torch.manual_seed(0)
    model = MODELS[name]()
    if kind == "own":
        return model
    harmonize(model)
    if kind == "watched":
        loss = next(module for key, module in model.named_modules() if key.endswith("ghm_c"))
        softmax = isinstance(loss, ghmdet.SoftmaxGHMC)
        classes = 1 if "R-CNN" in name else CLASSES - softmax
        ghmdet.watch(classes, softmax=softmax, background=0 if softmax else None).follow(loss)
    return model


def step(model, images, targets) -> tuple[float, float]:
    """The class loss, and the processor time of forward and backward in seconds."""
    model.zero_grad()
    torch.manual_seed(0)
    start = time.process_time()
    losses = model(images, targets)
    sum(losses.values()).backward()
    seconds = time.process_time() - start
    name = "classification" if "classification" in losses else "loss_objectness"
    return losses[name].item(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images, targets = batch(arguments.pictures)
    print("| model | own loss | harmonized | step, s | harmonized | and watched |\n|---|---|---|---|---|---|")
    for name in MODELS:
        models = {kind: made(name, kind) for kind in KINDS}
        first = {kind: step(model, images, targets)[0] for kind, model in models.items()}
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(arguments.steps):
            for kind, model in models.items():
                times[kind].append(step(model, images, targets)[1])
        own, ours, watched = (statistics.median(times[kind]) for kind in KINDS)
        print(
            f"| {name} | {first['own']:.3f} | {first['harmonized']:.3f} | {own:.2f} | {ours / own:.3f} "
            f"| {watched / own:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
