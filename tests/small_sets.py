"""Small data sets written in each format, for the tests of the readers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "emu")


@dataclass
class Picture:
    """A picture's name, size, and boxes (label, x1, y1, x2, y2)."""

    name: str
    width: int = 60
    height: int = 40
    boxes: list[tuple[int, float, float, float, float]] = field(default_factory=list)


def three_pictures() -> list[Picture]:
    return [
        Picture("a.jpg", boxes=[(0, 5, 5, 25, 35), (2, 30, 10, 60, 40)]),
        Picture("b.jpg", 40, 60, boxes=[(1, 0, 0, 40, 60), (0, 8, 4, 16, 20)]),
        Picture("c.jpg"),
    ]


def draw(path: Path, width: int, height: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng([seed, *path.name.encode()]).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)


def coco_content(pictures: list[Picture]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": p.name, "width": p.width, "height": p.height}
            for i, p in enumerate(pictures, start=1)
        ],
        "annotations": [],
        "categories": [
            {"id": 10 * k, "name": name} for k, name in reversed(list(enumerate(CLASSES, start=1)))
        ],
    }
    for i, picture in enumerate(pictures, start=1):
        for label, x1, y1, x2, y2 in picture.boxes:
            number = len(content["annotations"]) + 1
            box = [x1, y1, x2 - x1, y2 - y1]
            content["annotations"].append(
                {"id": number, "image_id": i, "category_id": 10 * (label + 1), "bbox": box, "iscrowd": 0}
            )
    return content


def write_coco(root: Path, pictures: list[Picture], split: str = "train") -> Path:
    """A COCO folder; gives the annotation file."""
    for picture in pictures:
        draw(root / "images" / picture.name, picture.width, picture.height)
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(coco_content(pictures)))
    return file


def voc_xml(picture: Picture, size: bool = True) -> str:
    objects = "".join(
        f"<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in picture.boxes
    )
    written = f"<size><width>{picture.width}</width><height>{picture.height}</height></size>" if size else ""
    return f"<annotation><filename>{picture.name}</filename>{written}{objects}</annotation>"


def write_voc(root: Path, pictures: list[Picture], split: str = "train", size: bool = True) -> Path:
    """A VOC folder; gives the folder of the xml files."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        draw(root / "JPEGImages" / picture.name, picture.width, picture.height)
        (root / "Annotations" / picture.name).with_suffix(".xml").write_text(voc_xml(picture, size))
    stems = "".join(f"{Path(picture.name).stem}\n" for picture in pictures)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text(stems)
    return root / "Annotations"


def write_yolo(root: Path, pictures: list[Picture], split: str = "train") -> Path:
    """A YOLO folder with classes.txt; gives the folder of the label files."""
    labels = root / "labels" / split
    labels.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        draw(root / "images" / split / picture.name, picture.width, picture.height)
        w, h = picture.width, picture.height
        lines = [
            f"{label} {(x1 + x2) / 2 / w:.6f} {(y1 + y2) / 2 / h:.6f} {(x2 - x1) / w:.6f} {(y2 - y1) / h:.6f}\n"
            for label, x1, y1, x2, y2 in picture.boxes
        ]
        (labels / picture.name).with_suffix(".txt").write_text("".join(lines))
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return labels
