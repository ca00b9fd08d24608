"""Try losses and assignments at a small part of training's cost: neck and head alone learn, from kept features.

    python benchmarks/proxy.py DATA --arms ce,ohem,focal,ghm-c --vflip .5 --cache runs/proxy-bccd \\
        --out benchmarks/results/proxy_bccd.jsonl
    python benchmarks/proxy.py DATA --arms giou,smooth-l1,asl1,ghm-r ...    # box losses likewise
    python benchmarks/proxy.py DATA --assignments iou,best-6,best-9 ...     # which anchors answer for which box
    python benchmarks/results_page.py                                       # draws docs/results.md from the rows

The pretrained backbone sees a few augmented versions of every training picture once; its features are kept in the
folder `--cache`. Each run then trains the product's own neck, head and losses on them and is judged by its own
postprocessing and score. A seed gives every arm the same first weights and the same batches.

Each arm's weight is chosen with a quarter of the training pictures held out, from a grid around the loss's own weight
that is extended where the best lies at its edge; with that weight the arm is trained on all training pictures, once a
seed, and judged on the validation pictures. An assignment is judged on both at the default weight. Each run is a row in
`--out`; rows that are there are not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ghmdet.compare.plan import tuning_parts
from ghmdet.data import (
    AugmentConfig,
    DetectionData,
    DetectionDataset,
    EvalTransforms,
    TrainTransforms,
    read_data,
)
from ghmdet.data.dataset import Draw
from ghmdet.engine.detect import coco_results
from ghmdet.engine.device import choose_device, keep_freed_memory
from ghmdet.engine.optim import WeightAverage, make_optimizer, set_rate, warmup_cosine
from ghmdet.errors import GhmdetError, unknown_name
from ghmdet.evaluation.score import score
from ghmdet.models import BOX_LOSSES, CLS_LOSSES, LossConfig, ModelConfig, RetinaNet, load_weights, preset
from ghmdet.models.anchors import make_anchors
from ghmdet.models.targets import AnchorTargets
from proxy_features import Features
from rows import today

SCALE = (0.8, 1.25)
"""The zoom of all rows so far, which were made when it was training's default."""
PARTS = ("varied", "train", "val")
"""Of which features are kept: the training pictures varied, and as they are; the validation pictures."""
EXTENSIONS = 3
"""How often a grid is extended where its best weight lies at the edge."""


@dataclass(frozen=True)
class Recipe:
    """How a run trains: what all rows that are compared have alike."""

    model: str
    steps: int
    batch_size: int
    lr: float
    versions: int
    hflip: float
    vflip: float
    weight_decay: float = 0.02
    warmup: float = 0.1
    clip_norm: float = 10.0
    ema: float = 0.98
    size: int | None = None

    def values(self) -> dict[str, Any]:
        """Its values as a row holds them: without a size that was left to the preset."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def draws(count: int, versions: int) -> list[Draw]:
    """Each of `count` pictures in so many versions, version after version."""
    return [Draw(i, version * count + i) for version in range(versions) for i in range(count)]


class Proxy:
    """The kept features of a data set, and runs on them."""

    def __init__(
        self,
        data: Path,
        folder: Path,
        recipe: Recipe,
        *,
        judged_on: Path | None = None,
        parts: Sequence[str] = PARTS,
    ) -> None:
        """judged_on: another set, whose val part is taken. parts: those of which features are needed."""
        self.recipe, self.config = recipe, preset(recipe.model, size=recipe.size)
        self.train = read_data(data, "train")
        self.val = read_data(judged_on or data, "val", classes=self.train.classes)
        self.device = choose_device("cpu", "auto")
        self._check_folder(folder)
        augment = AugmentConfig(hflip=recipe.hflip, vflip=recipe.vflip, scale=SCALE)
        size = (self.config.min_size, self.config.max_size)
        detector = RetinaNet(self.config, self.train.classes)
        self.detector = detector
        print(load_weights(detector, "auto"))
        detector.to(memory_format=torch.channels_last).eval()
        self.drawn = {
            "varied": (TrainTransforms(*size, augment), recipe.versions),
            "train": (EvalTransforms(*size), 1),
            "val": (EvalTransforms(*size), 1),
        }
        self.features = {}
        for name in parts:
            transforms, versions = self.drawn[name]
            part = self.val if name == "val" else self.train
            count = len(part.records)
            features = Features(folder, name)
            features.build(DetectionDataset(part, transforms), draws(count, versions), detector, self.device)
            self.features[name] = features.load()
        self.all = list(range(len(self.train.records)))
        self._kept: dict[tuple[bytes, ModelConfig], AnchorTargets] = {}

    @cached_property
    def tuning(self) -> tuple[list[int], list[int]]:
        """The training pictures to tune on, and those held out for that."""
        fit, held_out = (
            np.flatnonzero(np.isin(self.train.records.image_ids, part.records.image_ids)).tolist()
            for part in tuning_parts(self.train)
        )
        if len(fit) < self.recipe.batch_size:
            raise GhmdetError(
                f"{self.train.root}: {len(fit)} pictures to tune on: give a smaller --batch-size"
            )
        return fit, held_out

    def _check_folder(self, folder: Path) -> None:
        recipe = asdict(self.recipe)
        content = [recipe[name] for name in ("model", "versions", "hflip", "vflip", "size")]
        content += [
            str(self.train.root),
            len(self.train.records),
            len(self.train.records.boxes),
            len(self.val.records),
        ]
        file = folder / "content.json"
        if file.exists() and json.loads(file.read_text()) != content:
            raise GhmdetError(f"--cache {folder} holds features of {file.read_text()}: give another folder")
        if not file.exists():  # others may read it at this moment
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(content))

    def run(self, config: ModelConfig, loss: LossConfig, seed: int, stage: str) -> dict[str, Any]:
        """Train and judge once: the figures of a row."""
        started, cpu = time.monotonic(), time.process_time()
        model = self.trained(config, loss, seed, self.tuning[0] if stage == "tune" else self.all)
        figures: dict[str, Any] = {"AP": None}
        if model is not None:
            part, name, rows = self.train, "train", self.tuning[1]
            if stage != "tune":
                part, name, rows = self.val, "val", list(range(len(self.val.records)))
            found = self.detections(model, part, self.features[name], rows)
            metrics = score(of_pictures(part, rows), found)
            per_class = {label: round(values["AP"] or 0, 4) for label, values in metrics.per_class.items()}
            names = ("AP", "AP50", "APs", "APm", "APl")
            values = {name: getattr(metrics, name) for name in names}
            figures = {name: None if value is None else round(value, 4) for name, value in values.items()}
            figures["per_class"] = per_class
        seconds = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
        return figures | {key: round(value, 1) for key, value in seconds.items()}

    def trained(
        self,
        config: ModelConfig,
        loss: LossConfig,
        seed: int,
        pictures: list[int],
        change: Callable[[RetinaNet], None] = lambda model: None,
    ) -> RetinaNet | None:
        """The averaged weights after the last step; None where the loss did not stay finite. change: of the model."""
        recipe, features = self.recipe, self.features["varied"]
        torch.manual_seed(seed)
        model = RetinaNet(config, self.train.classes, loss)
        change(model)
        model.backbone = nn.Identity()  # type: ignore[assignment] # its features are kept
        model.to(memory_format=torch.channels_last).train()
        optimizer = make_optimizer(
            model, model.backbone, lr=recipe.lr, backbone_lr=1.0, weight_decay=recipe.weight_decay
        )
        average = WeightAverage(model, recipe.ema)
        anchors, _ = make_anchors(config, *features.picture, torch.device("cpu"))
        for step, rows in enumerate(itertools.islice(self._batches(pictures, seed), recipe.steps)):
            set_rate(optimizer, warmup_cosine(step, recipe.steps, recipe.warmup))
            with self.device.autocast():
                logits, deltas = model.head(model.neck(features.batch(rows)))
            wanted = self._targets(rows, model)
            losses = model.loss(logits, deltas, wanted.labels, wanted.boxes, anchors)
            total = losses["classification"] + losses["bbox_regression"]
            if not total.isfinite():
                return None
            total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)
        return average.model

    def _targets(self, rows: np.ndarray, model: RetinaNet) -> AnchorTargets:
        """Those of a batch of training, kept: with one seed all losses see the same batches."""
        key = rows.tobytes(), model.config
        if key not in self._kept:
            if len(self._kept) >= self.recipe.steps:
                self._kept.clear()
            self._kept[key] = self.features["varied"].targets(rows, model)
        return self._kept[key]

    def _batches(self, pictures: list[int], seed: int) -> Iterator[np.ndarray]:
        """Whole batches without end, pass after pass: each picture in one kept version after the other."""
        random, versions, size = np.random.default_rng(seed), self.recipe.versions, self.recipe.batch_size
        first = random.integers(versions, size=len(self.all))
        for turn in itertools.count():
            order = random.permutation(pictures)
            rows = (first[order] + turn) % versions * len(self.all) + order
            yield from (rows[start : start + size] for start in range(0, len(rows) - size + 1, size))

    @torch.inference_mode()
    def detections(
        self, model: RetinaNet, part: DetectionData, features: Features, rows: list[int]
    ) -> list[dict[str, Any]]:
        """What the model finds in these pictures, as COCO results."""
        model.eval()
        results = []
        for mine in np.array_split(rows, -(-len(rows) // 16)):
            with self.device.autocast():
                logits, deltas = model.head(model.neck(features.batch(mine)))
            found = model.postprocess(logits, deltas, features.sizes_of(mine))
            for row, detections in zip(mine, found, strict=True):
                results += coco_results(detections, part.records[int(row)].image_id, part.category_ids)
        return results


def of_pictures(data: DetectionData, rows: list[int]) -> dict[str, Any]:
    """COCO annotations of some of the pictures."""
    coco, ids = data.to_coco(), set(data.records.image_ids[rows].tolist())
    return coco | {
        "images": [image for image in coco["images"] if image["id"] in ids],
        "annotations": [box for box in coco["annotations"] if box["image_id"] in ids],
    }


def kind_of(arm: str) -> str:
    """Whether a name is a class loss, a box loss or an assignment: "iou", the article's thresholds, or "best-9"."""
    if re.fullmatch(r"iou|best-[1-9]\d*", arm):
        return "assignment"
    if arm not in CLS_LOSSES and arm not in BOX_LOSSES:
        raise unknown_name("loss", arm, [*CLS_LOSSES, *BOX_LOSSES])
    return "cls" if arm in CLS_LOSSES else "box"


def machine() -> str:
    """What a run is made on, as a row tells it."""
    return f"one of {os.cpu_count()} CPU cores, {platform.machine()}, torch {torch.__version__}"


class Runs:
    """The rows of a results file; a run that has a row is not made again."""

    def __init__(self, proxy: Proxy, out: Path, other: LossConfig) -> None:
        self.proxy, self.out, self.other = proxy, out, other
        out.parent.mkdir(parents=True, exist_ok=True)
        self.rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    def AP(self, stage: str, arm: str, weight: float, seed: int) -> float | None:
        """The AP of a run, made now unless it has a row; None where it diverged."""
        kind = kind_of(arm)
        config, loss = self.proxy.config, self.other
        if kind == "assignment":
            config = replace(config, best_anchors=int(arm.removeprefix("best-")) if arm != "iou" else 0)
        else:
            loss = replace(loss, **{f"{kind}_loss": arm, f"{kind}_weight": weight})
        recipe = self.proxy.recipe.values()
        key = {"stage": stage, "kind": kind, "arm": arm, "weight": weight, "seed": seed}
        key |= {"loss": asdict(loss), "recipe": recipe, "data": self.proxy.train.root.name}
        row = next((row for row in self.rows if key.items() <= row.items()), None)
        if row is None:
            row = (
                key
                | self.proxy.run(config, loss, seed, stage)
                | {
                    "machine": machine(),
                    "date": today(),
                }
            )
            self.rows.append(row)
            with self.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            shown = {
                name: row.get(name)
                for name in ("AP", "AP50", "APs", "APm", "APl", "per_class", "cpu_seconds")
            }
            print(f"{stage} {arm} weight {weight:g} seed {seed}: {shown}", flush=True)
        ap: float | None = row["AP"]
        return ap

    def tune(self, arm: str, grid: list[float], seeds: int) -> float:
        """The weight with the best mean AP on the held-out pictures; the grid grows where that is at its edge."""
        if len(grid) == 1:
            return grid[0]
        weights = sorted(grid)
        for extended in range(EXTENSIONS + 1):
            # A run that diverged counts as an AP of 0.
            means = [
                float(np.mean([self.AP("tune", arm, weight, seed) or 0.0 for seed in range(seeds)]))
                for weight in weights
            ]
            best = int(np.argmax(means))
            if 0 < best < len(weights) - 1 or extended == EXTENSIONS:
                break
            beyond = weights[0] ** 2 / weights[1] if best == 0 else weights[-1] ** 2 / weights[-2]
            weights = sorted([*weights, round(beyond, 6)])
        table = ", ".join(f"{weight:g}: {mean:.3f}" for weight, mean in zip(weights, means, strict=True))
        print(f"{arm}: weight {weights[best]:g} ({table})", flush=True)
        return weights[best]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--arms", default="ce,ohem,focal,ghm-c", help="class losses or box losses")
    parser.add_argument("--assignments", help="iou, best-9 and so on, in place of --arms")
    parser.add_argument(
        "--factors",
        default=".0625,.25,1,4,16",
        help="the grid, in weights of the loss by default; one: no tuning",
    )
    parser.add_argument("--cls-loss", default="ghm-c", help="what box losses are tried with, at --cls-weight")
    parser.add_argument("--cls-weight", type=float)
    parser.add_argument(
        "--box-loss", default="giou", help="what class losses are tried with, at --box-weight"
    )
    parser.add_argument("--box-weight", type=float)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tune-seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200, help="of a run, tuning's too")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--versions", type=int, default=8, help="augmented versions kept of each picture")
    parser.add_argument("--hflip", type=float, default=0.5)
    parser.add_argument("--vflip", type=float, default=0.0)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--size", type=int, help="longest side of a picture, the model's own by default")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the features")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a run")
    chosen = parser.parse_args()
    arms = (chosen.assignments or chosen.arms).split(",")
    kinds = {arm: kind_of(arm) for arm in arms}
    keep_freed_memory()
    names = ("model", "size", "steps", "batch_size", "lr", "versions", "hflip", "vflip")
    recipe = Recipe(**{name: getattr(chosen, name) for name in names})
    other = LossConfig(chosen.cls_loss, chosen.box_loss, chosen.cls_weight, chosen.box_weight)
    runs = Runs(Proxy(chosen.data, chosen.cache, recipe), chosen.out, other)
    factors = [float(factor) for factor in chosen.factors.split(",")]
    for arm in arms:
        if kinds[arm] == "assignment":
            weight = CLS_LOSSES[other.cls_loss] if other.cls_weight is None else other.cls_weight
            held_out = [runs.AP("tune", arm, weight, seed) for seed in range(chosen.tune_seeds)]
            found = [runs.AP("final", arm, weight, seed) for seed in range(chosen.seeds)]
            print(f"{arm}: AP held out {held_out}, AP {found}", flush=True)
            continue
        own = (CLS_LOSSES | BOX_LOSSES)[arm]
        weight = runs.tune(arm, [round(own * factor, 6) for factor in factors], chosen.tune_seeds)
        found = [runs.AP("final", arm, weight, seed) for seed in range(chosen.seeds)]
        print(f"{arm}: weight {weight:g}, AP {found}", flush=True)


if __name__ == "__main__":
    main()
