"""What every reader gives: records of pictures and boxes, and the problems found on the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from ghmdet.words import many

Severity = Literal["error", "warning", "note"]
VALIDATION_NAMES = ("val", "valid", "validation")
NAMED_PROBLEMS = 3  # how many problems of one kind a description spells out


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a data set: what kind, where (file and record), the value found, and the mend.

    count: how many of the kind it stands for, where they are named in one.

    >>> print(Problem("error", "empty box", "a.xml", "object 2", "[5, 5, 5, 9]", "give it a width"))
    error: a.xml: object 2: empty box [5, 5, 5, 9]: give it a width
    """

    severity: Severity
    kind: str
    file: str
    record: str
    value: str
    mend: str
    count: int = 1

    @property
    def found(self) -> str:
        """The record and the value, of what they say."""
        return f"{self.record} {self.value}".strip()

    def __str__(self) -> str:
        where = f"{self.file}: {self.record}" if self.record else self.file
        what = f"{self.count} × {self.kind}" if self.count > 1 else self.kind
        what += f" {self.value}" if self.value else ""
        return f"{self.severity}: {where}: {what}: {self.mend}"


def named_first(said: Iterable[str]) -> str:
    """The first texts of many, and how many more there are.

    >>> named_first("abcde")
    'a; b; c; and 2 more'
    """
    first, more = "; ".join(islice(said := iter(said), NAMED_PROBLEMS)), sum(1 for _ in said)
    return f"{first}; and {more} more" if more else first


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

    root: the folder that the N `names` of the pictures are relative to. sizes: [N, 2] width and height. offsets:
    [N + 1], so that the boxes of picture i are offsets[i]:offsets[i + 1]. The rest as in `Record`, of all boxes.
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
        self._names = b"".join(encoded)
        self._name_ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.root, self.image_ids, self.sizes, self.offsets = root, image_ids, sizes, offsets
        self.boxes, self.labels, self.crowd, self.area = boxes, labels, crowd, area

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
        index = range(len(self))[index]  # of the end where negative; an IndexError beyond
        part = slice(self.offsets[index], self.offsets[index + 1])
        width, height = self.sizes[index].tolist()
        return Record(
            int(self.image_ids[index]),
            self.root / self.name(index),
            width,
            height,
            self.boxes[part],
            self.labels[part].astype(np.int64),
            self.crowd[part],
            self.area[part],
        )

    def take(self, indices: NDArray[np.int64]) -> Records:
        """The records of these pictures, in this order."""
        spans = [np.arange(self.offsets[index], self.offsets[index + 1]) for index in indices]
        rows = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        return Records(
            self.root,
            [self.name(index) for index in indices.tolist()],
            self.image_ids[indices],
            self.sizes[indices],
            np.cumsum([0, *map(len, spans)], dtype=np.int64),
            *(column[rows] for column in (self.boxes, self.labels, self.crowd, self.area)),
        )


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
    folders: tuple[Path, ...] = ()
    """Those in which every picture counts, for this part or another of the data set, whether it has labels or not."""

    def boxes_per_class(self) -> dict[str, int]:
        """The number of boxes of each class, crowd regions not counted."""
        counts = np.bincount(self.records.labels[~self.records.crowd], minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def summary(self) -> str:
        """Format, folder, split and counts of images, boxes and classes, in one line to say aloud."""
        per_class = self.boxes_per_class()
        crowd, empty = int(self.records.crowd.sum()), int((np.diff(self.records.offsets) == 0).sum())
        called = " (asked for as val)" if self.split in VALIDATION_NAMES[1:] else ""
        counts = ", ".join(f"{name} {count}" for name, count in per_class.items())
        return (
            f"{self.format} data in {self.root}, split {self.split}{called}: {many(len(self.records), 'image')} "
            f"({empty} without boxes), {many(sum(per_class.values()), 'box/boxes')} of "
            f"{many(len(per_class), 'class/classes')}: {counts}"
            + (f"; {many(crowd, 'crowd region')}, ignored." if crowd else ".")
        )

    def describe(self) -> str:
        """The summary, and a line for each kind of problem, with its count and the first ones."""
        lines = [self.summary()]
        verb = {"error": "Rejected", "warning": "Warning", "note": "Noted"}
        kinds: dict[tuple[Severity, str], list[Problem]] = {}
        for problem in self.problems:
            kinds.setdefault((problem.severity, problem.kind), []).append(problem)
        for (severity, kind), same in kinds.items():
            where = (": ".join(filter(None, (p.file, p.found))) for p in same)
            lines.append(f"{verb[severity]}: {sum(p.count for p in same)} × {kind} ({named_first(where)}).")
        return "\n".join(lines)

    def to_coco(self, *, absolute: bool = False) -> dict[str, Any]:
        """The ground truth as a COCO dictionary (boxes x y width height; crowd regions with iscrowd 1).

        absolute: whether the pictures are named by their absolute paths, so that the annotations may lie anywhere.
        """
        records = self.records
        names = [records.name(i) for i in range(len(records))]
        if absolute:
            names = [str(records.root.absolute() / name) for name in names]
        corners = records.boxes.astype(np.float64)
        columns = {
            "image_id": np.repeat(records.image_ids, np.diff(records.offsets)),
            "category_id": np.array(self.category_ids)[records.labels],
            "bbox": np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
            "area": records.area,
            "iscrowd": records.crowd.astype(int),
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        sizes = zip(records.image_ids.tolist(), records.sizes.tolist(), strict=True)
        return {
            "images": [
                {"id": image_id, "file_name": name, "width": width, "height": height}
                for name, (image_id, (width, height)) in zip(names, sizes, strict=True)
            ],
            "annotations": [
                {"id": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(rows, start=1)
            ],
            "categories": [
                {"id": i, "name": name} for i, name in zip(self.category_ids, self.classes, strict=True)
            ],
        }
