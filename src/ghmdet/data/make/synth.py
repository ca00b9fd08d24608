"""A synthetic detection data set whose imbalances are dials: COCO layout, the same bytes for the same dials."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ghmdet.data.make.config import CLASSES, SynthConfig
from ghmdet.data.make.folder import new_set, write_annotations
from ghmdet.data.make.scene import Thing, draw_scene

MARKER = "synth.json"
TRAIN, VAL, LABELS = range(3)  # independent random streams: one dial does not stir what another decides


class SplitSummary(NamedTuple):
    """What a split holds: pictures, objects of each class as drawn, and those of unusual look."""

    images: int
    objects: dict[str, int]
    hard: int


@dataclass(frozen=True)
class Summary:
    """What was written where; str() is the sentence to print."""

    root: Path
    config: SynthConfig
    splits: dict[str, SplitSummary]
    wrong_labels: int

    def __str__(self) -> str:
        size = "x".join(map(str, self.config.size))
        lines = [f"{self.root}: {self.config.images} pictures of {size} pixels"]
        for name, split in self.splits.items():
            counts = ", ".join(f"{label} {count}" for label, count in split.objects.items())
            lines.append(f"  {name}: {split.images} images; {counts} ({split.hard} of unusual look)")
        if self.wrong_labels:
            lines.append(f"  train: {self.wrong_labels} labels made wrong, listed in wrong_labels.json")
        return "\n".join(lines)


def synthesize(out: Path | str, config: SynthConfig | None = None) -> Summary:
    """Draw a data set into the folder `out`: images/, annotations/instances_{train,val}.json in COCO's format.

    The same config gives the same bytes with the same versions of numpy and Pillow. A data set that this function made
    earlier is replaced once the new one is whole. Objects carry the extra key `hard` (0 or 1).

    Raises DataError where `out` is a file, or a folder that holds something else.
    """
    root, config = Path(out), config or SynthConfig()
    names, (width, height) = CLASSES[: config.classes], config.size
    val = min(max(1, round(config.images * config.val_share)), config.images - 1) if config.val_share else 0
    splits: dict[str, SplitSummary] = {}
    wrong: list[dict[str, Any]] = []
    with new_set(root, MARKER, "data synth") as folder:
        (folder / "images").mkdir()
        for stream, split, count in ((TRAIN, "train", config.images - val), (VAL, "val", val)):
            images, things = [], []
            for i in range(count):
                picture, found = draw_scene(config, np.random.default_rng((config.seed, stream, i)))
                image_id = i + 1 + (config.images - val) * stream  # unique over both splits, as COCO's own
                file = f"{split}_{i:05d}.jpg"
                picture.save(folder / "images" / file, quality=90)
                images.append({"id": image_id, "file_name": file, "width": width, "height": height})
                things += [(image_id, thing) for thing in found]
            if not count:
                continue
            content = {
                "info": {"description": "synthetic scenes by ghmdet data synth", "config": asdict(config)},
                "images": images,
                "annotations": [
                    _annotation(number, image_id, names.index(thing.name) + 1, thing)
                    for number, (image_id, thing) in enumerate(things, start=1)
                ],
                "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
            }
            if split == "train":
                wrong = _spoil(content, config)
            write_annotations(folder, split, content)
            objects = {name: sum(thing.name == name for _, thing in things) for name in names}
            splits[split] = SplitSummary(count, objects, sum(thing.hard for _, thing in things))
        made = {"made by": "ghmdet data synth", "config": asdict(config)}
        for name, written in ((MARKER, made), ("wrong_labels.json", wrong)):
            (folder / name).write_text(json.dumps(written, indent=1) + "\n")
    return Summary(root, config, splits, len(wrong))


def _annotation(number: int, image_id: int, category_id: int, thing: Thing) -> dict[str, Any]:
    x0, y0, x1, y1 = thing.box
    bbox = [round(v, 1) for v in (x0, y0, x1 - x0, y1 - y0)]
    label = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox}
    return label | {"area": _area(bbox), "iscrowd": 0, "hard": int(thing.hard)}


def _area(bbox: list[float]) -> float:
    return round(bbox[2] * bbox[3], 2)


def _spoil(content: dict[str, Any], config: SynthConfig) -> list[dict[str, Any]]:
    """Make the share of wrong labels in `content`, in place; what was true and what is given instead."""
    rng = np.random.default_rng((config.seed, LABELS))
    labels: list[dict[str, Any]] = content["annotations"]
    file_names = {image["id"]: image["file_name"] for image in content["images"]}
    kinds = ("class", "missing", "shifted") if config.classes > 1 else ("missing", "shifted")
    wrong = []
    for i in sorted(rng.permutation(len(labels))[: round(config.wrong_label_share * len(labels))].tolist()):
        label, kind = labels[i], kinds[int(rng.integers(len(kinds)))]
        true = {"category_id": label["category_id"], "bbox": label["bbox"]}
        given = None
        if kind == "class":
            others = [k for k in range(1, config.classes + 1) if k != label["category_id"]]
            given = true | {"category_id": int(rng.choice(others))}
        elif kind == "shifted":
            given = true | {"bbox": _shifted(label["bbox"], config.size, rng)}
        told = {"kind": kind, "annotation_id": label["id"], "image_id": label["image_id"]}
        told |= {"file_name": file_names[label["image_id"]], "true": true, "given": given}
        wrong.append(told)
        if given is not None:
            label |= given | {"area": _area(given["bbox"])}
    missing = {told["annotation_id"] for told in wrong if told["given"] is None}
    content["annotations"] = [label for label in labels if label["id"] not in missing]
    return wrong


def _shifted(bbox: list[float], size: tuple[int, int], rng: np.random.Generator) -> list[float]:
    """The box moved by 40 to 60 % of its sides towards the picture's roomier end, and cut there."""
    starts, sides = [], []
    for start, side, limit in zip(bbox[:2], bbox[2:], size, strict=True):
        by = rng.uniform(0.4, 0.6) * side * (1 if start + side / 2 < limit / 2 else -1)
        low, high = max(start + by, 0.0), min(start + side + by, limit)
        starts.append(round(low, 1))
        sides.append(round(high - low, 1))
    return [*starts, *sides]
