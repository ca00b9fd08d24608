"""What every reader gives: records of pictures and boxes, and the problems found on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

Severity = Literal["error", "warning", "info"]
VALIDATION_NAMES = ("val", "valid", "validation")
NAMED_PROBLEMS = 3  # how many problems of one kind a description spells out


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a data set: what kind, where (file and record), the value found, and the mend.

    >>> print(Problem("error", "empty box", "a.xml", "object 2", "[5, 5, 5, 9]", "give it a width"))
    error: a.xml: object 2: empty box [5, 5, 5, 9]: give it a width
    """

    severity: Severity
    kind: str
    file: str
    record: str
    value: str
    mend: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.record}" if self.record else self.file
        what = f"{self.kind} {self.value}" if self.value else self.kind
        return f"{self.severity}: {where}: {what}: {self.mend}"


@dataclass(frozen=True, slots=True)
class Record:
    """One picture and its boxes.

    boxes float32 [n, 4] x1 y1 x2 y2 in pixels of the upright picture; labels int64 [n] in 0..K-1; crowd bool [n]
    (regions that evaluation ignores and training does not use); area float32 [n] in square pixels, the
    annotation's own (a mask's area in COCO) where it has one, for the size ranges of COCO AP.
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float32]


class Records(Sequence[Record]):
    """An immutable sequence of `Record`s, kept as a few flat arrays: millions of pictures without an object each.

    A record is made when it is asked for, as views into the arrays. Worker processes share the arrays.
    """

    def __init__(
        self,
        root: Path,
        names: Iterable[str],
        image_ids: NDArray[np.int64],
        sizes: NDArray[np.int32],
        offsets: NDArray[np.int64],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int32],
        crowd: NDArray[np.bool_],
        area: NDArray[np.float32],
    ) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.root = root
        self._names = b"".join(encoded)
        self._name_ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.image_ids = image_ids
        self.sizes = sizes  # [N, 2] width, height
        self.offsets = offsets  # [N + 1]: the boxes of picture i are offsets[i]:offsets[i + 1]
        self.boxes = boxes
        self.labels = labels
        self.crowd = crowd
        self.area = area

    def __len__(self) -> int:
        return len(self.image_ids)

    def name(self, index: int) -> str:
        """The path of picture `index` relative to the root, as the annotations give it."""
        start, end = self._name_ends[index], self._name_ends[index + 1]
        return self._names[start:end].decode("utf-8", "surrogateescape")

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        part = slice(self.offsets[index], self.offsets[index + 1])
        width, height = self.sizes[index].tolist()
        return Record(
            image_id=int(self.image_ids[index]),
            path=self.root / self.name(index),
            width=width,
            height=height,
            boxes=self.boxes[part],
            labels=self.labels[part].astype(np.int64),
            crowd=self.crowd[part],
            area=self.area[part],
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class DetectionData:
    """One split of a data set: its classes (label k is `classes[k]`), its records, and what was found wrong.

    `category_ids[k]` is the number that COCO annotations and results use for class k.
    """

    root: Path
    format: str
    split: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: Records
    problems: tuple[Problem, ...]

    def boxes_per_class(self) -> dict[str, int]:
        """The number of boxes of each class, crowd regions not counted."""
        counts = np.bincount(self.records.labels[~self.records.crowd], minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def describe(self) -> str:
        """Format, split, counts of images and boxes, and what was rejected, in words to say aloud."""
        per_class = self.boxes_per_class()
        crowd = int(self.records.crowd.sum())
        called = " (asked for as val)" if self.split in VALIDATION_NAMES[1:] else ""
        empty = int((np.diff(self.records.offsets) == 0).sum())
        lines = [
            f"{self.format} data in {self.root}, split {self.split}{called}: {len(self.records)} images "
            f"({empty} without boxes), {sum(per_class.values())} boxes of {len(per_class)} classes: "
            + ", ".join(f"{name} {count}" for name, count in per_class.items())
            + (f"; {crowd} crowd regions, ignored" if crowd else "")
            + "."
        ]
        verb = {"error": "Rejected", "warning": "Mended", "info": "Noted"}
        for (severity, kind), count in Counter((p.severity, p.kind) for p in self.problems).items():
            same = [p for p in self.problems if (p.severity, p.kind) == (severity, kind)][:NAMED_PROBLEMS]
            named = "; ".join(f"{p.file}: {p.record} {p.value}".rstrip() for p in same)
            more = f"; and {count - len(same)} more" if count > len(same) else ""
            lines.append(f"{verb[severity]}: {count} × {kind} ({named}{more}).")
        return "\n".join(lines)

    def to_coco(self) -> dict[str, Any]:
        """The ground truth as a COCO dictionary (boxes x y width height; crowd regions with iscrowd 1)."""
        records = self.records
        owner = np.repeat(records.image_ids, np.diff(records.offsets)).tolist()
        corners = records.boxes.astype(np.float64)
        xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
        columns = zip(
            owner,
            records.labels.tolist(),
            xywh,
            records.area.tolist(),
            records.crowd.tolist(),
            strict=True,
        )
        return {
            "images": [
                {"id": int(image_id), "file_name": records.name(i), "width": int(w), "height": int(h)}
                for i, (image_id, (w, h)) in enumerate(zip(records.image_ids, records.sizes, strict=True))
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": self.category_ids[label],
                    "bbox": bbox,
                    "area": area,
                    "iscrowd": int(crowd),
                }
                for number, (image_id, label, bbox, area, crowd) in enumerate(columns, start=1)
            ],
            "categories": [
                {"id": number, "name": name}
                for number, name in zip(self.category_ids, self.classes, strict=True)
            ],
        }
