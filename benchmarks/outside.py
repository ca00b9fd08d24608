"""torchvision's FCOS, trained from random weights with its own losses and with harmonized ones: a run is one command.

    python benchmarks/outside.py DATA/carla --held-out --class-weight 0.25   # to choose a weight
    python benchmarks/outside.py DATA/carla --loss own --seed 0
    python benchmarks/outside.py DATA/carla --loss ghm-c --seed 0
    python benchmarks/outside.py --table                                     # a table of the rows

A ResNet-18 and a pyramid, both arms from the same first weights on the same batches, as `ghmdet train` reads and varies
them; judged on the validation part at the end, by the moving average of the weights. `own` is torchvision's focal
loss, GIoU and centre-ness. In the others `harmonize` replaces the focal loss, and GIoU by GHM-R.

The class loss has a weight in every arm. It is to be chosen for each arm from a grid of the same width, `WEIGHTS`, by
the AP of seed 0 on a quarter of the training pictures that is held out; the table takes the best that has rows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from ghmdet.data import DetectionDataset, EvalTransforms, TrainTransforms, make_loader, read_data, share_out
from ghmdet.engine.detect import original_results
from ghmdet.engine.device import choose_device
from ghmdet.engine.optim import WeightAverage, make_optimizer, set_rate, warmup_cosine
from ghmdet.evaluation.score import score
from ghmdet.integrations import harmonize
from rows import RESULTS, today

LOSSES = {"own": None, "ghm-c": None, "ghm-c+ghm-r": "ghm-r"}
WEIGHTS = {"own": (0.25, 1.0, 4.0), "ghm-c": (0.0125, 0.05, 0.2), "ghm-c+ghm-r": (0.0125, 0.05, 0.2)}
"""The grid of each; in the middle what torchvision has, and what ghmdet's own detector has beside GIoU."""
LARGEST = 1333  # pixels of the long side
EMA = 0.98


def make_model(classes: int, size: int, loss: str, box_weight: float) -> FCOS:
    """FCOS on a ResNet-18 of random weights, whose norms learn; labels are 0..K-1, as in ghmdet's data."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model = FCOS(backbone, classes, min_size=size, max_size=LARGEST, score_thresh=0.01)
    # Boxes pass a ReLU: from its 0 they soon all have no size, no gradient, and a GIoU loss of 1 for ever.
    nn.init.constant_(model.head.regression_head.bbox_reg.bias, 2.0)
    if loss != "own":  # the class weight is given to the loss in the loop, alike for both
        harmonize(model, "ghm-c", LOSSES[loss], box_weight=box_weight, any_version=True)
    return model


def train_and_judge(args: argparse.Namespace) -> dict[str, Any]:
    """One run, as a row of results."""
    device = choose_device(args.device, args.precision)
    torch.backends.cudnn.benchmark = True
    train, val = read_data(args.data), read_data(args.data, "val")
    if args.held_out:
        train, val = share_out(train, 0.25)
    torch.manual_seed(args.seed)
    model = make_model(len(train.classes), args.size, args.loss, args.box_weight)
    model.to(device.type, memory_format=torch.channels_last).train()
    average = WeightAverage(model, EMA)  # type: ignore[arg-type]  # any module will do
    optimizer = make_optimizer(model, model.backbone, lr=args.lr, backbone_lr=1.0, weight_decay=0.02)
    pictures = DetectionDataset(train, TrainTransforms(args.size, LARGEST), cache=True)
    loading = {"batch_size": args.batch_size, "workers": args.workers}
    loader = make_loader(pictures, shuffle=True, seed=args.seed, drop_last=True, **loading)
    steps, step = round(args.epochs * len(loader)), 0
    start = time.perf_counter()
    for epoch in range(math.ceil(args.epochs)):
        loader.batch_sampler.set_epoch(epoch)
        sums: dict[str, Any] = defaultdict(float)
        for images, targets in loader:
            if step == steps:
                break
            set_rate(optimizer, warmup_cosine(step, steps, 0.1))
            images = [image.to(device.type, non_blocking=True) for image in images]
            moved = [
                {key: target[key].to(device.type, non_blocking=True) for key in ("boxes", "labels")}
                for target in targets
            ]
            with device.autocast():
                losses = model(images, moved)
            losses["classification"] = losses["classification"] * args.class_weight
            optimizer.zero_grad()
            sum(losses.values()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            average.update(model)
            for name, value in losses.items():
                sums[name] += value.detach()
            step += 1
        last = {name: round(float(value) / (step - epoch * len(loader)), 5) for name, value in sums.items()}
        print(f"epoch {epoch + 1}: {last}, {time.perf_counter() - start:.0f} s", flush=True)
    seconds = time.perf_counter() - start
    metrics = score(val.to_coco(), detect(average.model, val, args.size, device, loading)).to_dict()
    return {
        "loss": args.loss,
        "class_weight": args.class_weight,
        "seed": args.seed,
        "judged": "held out" if args.held_out else "val",
        **{name: metrics[name] for name in ("AP", "AP50")},
        "per_class": {name: values["AP"] for name, values in metrics["per_class"].items()},
        "last_loss": last,
        **{name: getattr(args, name) for name in ("epochs", "size", "batch_size", "lr", "box_weight")},
        "data": args.data.name,
        "precision": device.precision,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores",
        "torch": torch.__version__,
        "seconds": round(seconds),
        "date": today(),
    }


@torch.inference_mode()
def detect(
    model: nn.Module, data: Any, size: int, device: Any, loading: dict[str, int]
) -> list[dict[str, Any]]:
    """What it finds on the pictures of `data`, as COCO results."""
    model.eval()
    results = []
    for images, targets in make_loader(
        DetectionDataset(data, EvalTransforms(size, LARGEST)), shuffle=False, **loading
    ):
        with device.autocast():
            found = model([image.to(device.type, non_blocking=True) for image in images])
        for image, target, detections in zip(images, targets, found, strict=True):
            detections = {
                name: value.float() if name != "labels" else value for name, value in detections.items()
            }
            results += original_results(detections, image, target, data.category_ids)
    return results


def half_width(values: np.ndarray) -> float:
    """Half of the 95 % interval of a mean, by Student's t."""
    from scipy import stats  # here: a machine that only trains need not have it

    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


def table(rows: list[dict[str, Any]]) -> None:
    """Print the mean of each arm at its weight, and the differences from `own`, seed by seed; and the grid."""
    runs: dict[tuple[str, str], dict[float, dict[int, dict[str, Any]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in rows:  # a run that was made again counts once, the last time
        runs[row["judged"], row["loss"]][row["class_weight"]][row["seed"]] = row
    own: dict[int, dict[str, Any]] = {}
    classes = list(rows[0]["per_class"])
    print(
        "| loss | weight | seeds | AP | AP50 | AP over own | 95 % interval", *classes, sep=" | ", end=" |\n"
    )
    print("|---" * (7 + len(classes)) + "|")
    for loss in LOSSES:
        tried = {weight: found[0]["AP"] for weight, found in runs["held out", loss].items() if 0 in found}
        made = runs["val", loss]
        if not made:
            continue
        weight = max(made, key=lambda one: (tried.get(one, -1.0), len(made[one])))
        found = made[weight]
        own = own or found
        seeds = sorted(found.keys() & own.keys())
        gain = np.array([found[seed]["AP"] - own[seed]["AP"] for seed in seeds])
        cells = [loss, f"{weight:g}", str(len(found))]
        cells += [f"{np.mean([row[name] for row in found.values()]):.3f}" for name in ("AP", "AP50")]
        if loss == "own" or not seeds:
            cells += ["", ""]
        else:
            wide = half_width(gain) if len(seeds) > 1 else math.nan
            cells += [f"{gain.mean():+.3f}", f"{gain.mean() - wide:+.3f} to {gain.mean() + wide:+.3f}"]
        cells += [f"{np.mean([row['per_class'][name] for row in found.values()]):.3f}" for name in classes]
        print("| " + " | ".join(cells) + " |")
    print("\nAP on the held-out quarter, seed 0, by weight:")
    for loss in LOSSES:
        grid = sorted(runs["held out", loss].items())
        print(
            f"- {loss}: "
            + ", ".join(f"{weight:g}: {found[0]['AP']:.3f}" for weight, found in grid if 0 in found)
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="data set of pictures")
    parser.add_argument("--loss", choices=LOSSES, default="own")
    parser.add_argument("--class-weight", type=float, help="what multiplies the class loss")
    parser.add_argument(
        "--box-weight", type=float, default=2.0, help="what multiplies GHM-R, where it is used"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true", help="judge on a quarter of the training pictures")
    parser.add_argument("--epochs", type=float, default=60.0, help="0.5 is half an epoch")
    parser.add_argument("--size", type=int, default=380, help="short side in pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=min(6, os.cpu_count() or 1))
    parser.add_argument("--rows", type=Path, default=RESULTS / "outside.jsonl")
    parser.add_argument("--table", action="store_true", help="print the table of the rows, train nothing")
    args = parser.parse_args()
    if args.table:
        table([json.loads(line) for line in args.rows.read_text().splitlines()])
        return
    if args.data is None:
        parser.error("name a data set")
    if args.class_weight is None:
        args.class_weight = WEIGHTS[args.loss][1]
    row = train_and_judge(args)
    with args.rows.open("a") as file:  # one write: runs beside one another may append
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
