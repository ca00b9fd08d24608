"""A synthetic detection data set whose imbalances are dials: COCO layout, the same bytes for the same dials."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ghmdet.data.make.scene import Dials, Thing, draw_scene
from ghmdet.data.make.vehicles import VEHICLES
from ghmdet.errors import DataError, GhmdetError
from ghmdet.files import write_atomic

CLASSES = tuple(VEHICLES)
MARKER = "synth.json"
_KINDS = ("class", "missing", "shifted")
_TRAIN, _VAL, _LABELS = range(3)  # independent random streams: one dial does not stir what another decides


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """The dials of a synthetic data set.

    Raises:
        GhmdetError: a dial out of its range, named with the range.
    """

    images: int = 240
    """Pictures in all, both splits."""
    seed: int = 0
    """Picture i of a split depends on it, on i and on the dials of the scene, not on the count of pictures."""
    size: tuple[int, int] = (320, 240)
    """Width and height of a picture in pixels."""
    classes: int = 3
    """The first so many of car, bus, bicycle, truck, tractor, helicopter."""
    class_imbalance: float = 3.0
    """How many times rarer each class is than the one before it; 1 is balanced."""
    foreground: float = 4.0
    """Mean count of objects in a picture (Poisson: some pictures have none)."""
    object_size: float = 0.18
    """Mean length of a car, as a share of the picture's shorter side."""
    clutter: float = 12.0
    """Mean count of things in a picture that are no objects."""
    hard_share: float = 0.1
    """Share of objects of unusual look: golden, striped or camouflaged, and oddly proportioned."""
    occluded_share: float = 0.2
    """Share of objects with a tree over one corner."""
    wrong_label_share: float = 0.0
    """Share of the train split's objects that are labelled wrongly, recorded in wrong_labels.json."""
    val_share: float = 0.25
    """Share of the pictures that go to the val split; 0 makes none."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("images", 2, 1_000_000),
            ("seed", 0, 2**63 - 1),
            ("classes", 1, len(CLASSES)),
            ("class_imbalance", 1, 100),
            ("foreground", 0, 200),
            ("object_size", 0.02, 0.45),
            ("clutter", 0, 1000),
            ("hard_share", 0, 1),
            ("occluded_share", 0, 1),
            ("wrong_label_share", 0, 1),
            ("val_share", 0, 0.9),
        ):
            value = getattr(self, name)
            whole = isinstance(getattr(SynthConfig, name), int)
            right = isinstance(value, int if whole else (int, float)) and low <= value <= high  # NaN is not
            if not right:
                kind = "whole number" if whole else "number"
                raise GhmdetError(f"{name} is {value!r}: give a {kind} from {low} to {high}")
        if len(self.size) != 2 or not all(isinstance(side, int) and 64 <= side <= 4096 for side in self.size):
            raise GhmdetError(f"size is {self.size!r}: give width and height in pixels, 64 to 4096 each")

    def dials(self) -> Dials:
        """What one scene is drawn from."""
        weights = {name: self.class_imbalance**-k for k, name in enumerate(CLASSES[: self.classes])}
        total = math.fsum(weights.values())
        return Dials(
            *self.size,
            frequencies={name: weight / total for name, weight in weights.items()},
            foreground=self.foreground,
            object_size=self.object_size,
            clutter=self.clutter,
            hard_share=self.hard_share,
            occluded_share=self.occluded_share,
        )


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds: pictures, objects of each class as drawn, and those of unusual look."""

    images: int
    objects: dict[str, int]
    hard: int


@dataclass(frozen=True)
class Summary:
    """What was written where; str() is the sentence to print."""

    root: Path
    splits: dict[str, SplitSummary]
    wrong_labels: int = 0
    config: SynthConfig = field(default_factory=SynthConfig)

    def __str__(self) -> str:
        lines = [
            f"{self.root}: {self.config.images} pictures of {'x'.join(map(str, self.config.size))} pixels"
        ]
        for name, split in self.splits.items():
            counts = ", ".join(f"{label} {count}" for label, count in split.objects.items())
            lines.append(f"  {name}: {split.images} images; {counts} ({split.hard} of unusual look)")
        if self.wrong_labels:
            lines.append(f"  train: {self.wrong_labels} labels made wrong, listed in wrong_labels.json")
        return "\n".join(lines)


def synthesize(out: Path | str, config: SynthConfig | None = None) -> Summary:
    """Draws a data set into the folder `out`: images/, annotations/instances_{train,val}.json in COCO's format.

    The same config gives the same bytes with the same versions of numpy and Pillow. A data set this function made
    earlier is replaced; the annotations are removed first and written last, so that an interrupted run cannot be
    taken for a whole one. Objects carry the extra key `hard` (0 or 1).

    Raises DataError where `out` is a file, or a folder that holds something else.
    """
    config, root = config or SynthConfig(), Path(out)
    _claim(root, config)
    val_count = (
        min(max(1, round(config.images * config.val_share)), config.images - 1) if config.val_share else 0
    )
    counts = {"train": config.images - val_count, "val": val_count}
    splits, files = {}, {}
    for stream, (name, count) in zip((_TRAIN, _VAL), counts.items(), strict=True):
        if count:
            first_id = 1 if name == "train" else counts["train"] + 1  # unique over both splits, as COCO's own
            files[name], splits[name] = _draw_split(root, name, count, config, stream, first_id)
    wrong = _spoil(files["train"], config)
    _write_json(root / "wrong_labels.json", wrong)
    for name in reversed(files):  # train last: without it nothing can be trained
        write_atomic(_annotations(root, name), json.dumps(files[name], separators=(",", ":")) + "\n")
    return Summary(root, splits, len(wrong), config)


def _annotations(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def _write_json(path: Path, content: Any) -> None:
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def _claim(root: Path, config: SynthConfig) -> None:
    """Empties what an earlier run left in `root` and marks it as ours; refuses what is not."""
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: is a file: give a folder to draw the data set into")
    if root.is_dir() and any(root.iterdir()) and not (root / MARKER).is_file():
        raise DataError(
            f"{root}: holds files that 'data synth' did not write (no {MARKER}): give a new or an empty folder"
        )
    for split in ("train", "val"):
        _annotations(root, split).unlink(missing_ok=True)
    (root / "wrong_labels.json").unlink(missing_ok=True)
    for pattern in ("train_[0-9]*.jpg", "val_[0-9]*.jpg"):
        for picture in (root / "images").glob(pattern):
            picture.unlink()
    _write_json(root / MARKER, {"made by": "ghmdet data synth", "config": asdict(config)})
    (root / "images").mkdir(exist_ok=True)


def _draw_split(
    root: Path, split: str, count: int, config: SynthConfig, stream: int, first_id: int
) -> tuple[dict[str, Any], SplitSummary]:
    dials, names = config.dials(), CLASSES[: config.classes]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    drawn: list[Thing] = []
    for i in range(count):
        picture, things = draw_scene(dials, np.random.default_rng((config.seed, stream, i)))
        image_id = first_id + i
        file_name = f"{split}_{i:05d}.jpg"
        (root / "images" / file_name).write_bytes(_jpeg(picture))
        images.append(
            {"id": image_id, "file_name": file_name, "width": config.size[0], "height": config.size[1]}
        )
        for thing in things:
            category = names.index(thing.name) + 1
            annotations.append(_annotation(len(annotations) + 1, image_id, category, thing))
        drawn += things
    content = {
        "info": {"description": "synthetic scenes by ghmdet data synth", "config": asdict(config)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
    }
    objects = {name: sum(thing.name == name for thing in drawn) for name in names}
    return content, SplitSummary(count, objects, sum(thing.hard for thing in drawn))


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _annotation(number: int, image_id: int, category: int, thing: Thing) -> dict[str, Any]:
    x0, y0, x1, y1 = thing.box
    box = [round(v, 1) for v in (x0, y0, x1 - x0, y1 - y0)]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": box,
        "area": round(box[2] * box[3], 2),
        "iscrowd": 0,
        "hard": int(thing.hard),
    }


def _spoil(content: dict[str, Any], config: SynthConfig) -> list[dict[str, Any]]:
    """Makes the share of wrong labels in `content`, in place; returns what was true and what is given instead."""
    rng = np.random.default_rng((config.seed, _LABELS))
    annotations: list[dict[str, Any]] = content["annotations"]
    file_names = {image["id"]: image["file_name"] for image in content["images"]}
    count = round(config.wrong_label_share * len(annotations))
    kinds = [kind for kind in _KINDS if kind != "class" or config.classes > 1]
    wrong, missing = [], set()
    for i in sorted(rng.permutation(len(annotations))[:count].tolist()):
        label = annotations[i]
        kind = kinds[int(rng.integers(len(kinds)))]
        true = {"category_id": label["category_id"], "bbox": label["bbox"]}
        given: dict[str, Any] | None = dict(true)
        if kind == "class":
            others = [k for k in range(1, config.classes + 1) if k != label["category_id"]]
            given = {**true, "category_id": int(rng.choice(others))}
        elif kind == "shifted":
            given = {**true, "bbox": _shifted(label["bbox"], config.size, rng)}
        else:
            given = None
            missing.add(label["id"])
        if given:
            label |= {**given, "area": round(given["bbox"][2] * given["bbox"][3], 2)}
        wrong.append(
            {
                "kind": kind,
                "annotation_id": label["id"],
                "image_id": label["image_id"],
                "file_name": file_names[label["image_id"]],
                "true": true,
                "given": given,
            }
        )
    content["annotations"] = [label for label in annotations if label["id"] not in missing]
    return wrong


def _shifted(box: list[float], size: tuple[int, int], rng: np.random.Generator) -> list[float]:
    """The box moved by 40 to 60 % of its sides towards the picture's roomier end, and cut there."""
    starts, sides = [], []
    for start, side, limit in zip(box[:2], box[2:], size, strict=True):
        by = rng.uniform(0.4, 0.6) * side * (1 if start + side / 2 < limit / 2 else -1)
        low, high = max(start + by, 0.0), min(start + side + by, limit)
        starts.append(round(low, 1))
        sides.append(round(high - low, 1))
    return [*starts, *sides]
