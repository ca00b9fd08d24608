"""Judging boxes one by one while a reader goes through its files, and packing those kept."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ghmdet.data.records import DetectionData, Problem, Records, Severity

MIN_SIDE = 0.01  # pixels: a thinner box is empty (float32 cannot tell its sides apart in a large picture)
ROUNDING = 0.05  # pixels: text formats round; sticking out by less is cut off without a word

MENDS = {
    "not a number": "write four finite numbers or remove it",
    "inverted box": "swap its corners or remove it",
    "empty box": "give it a width and a height or remove it",
    "box outside the image": "check its coordinates against the image's size or remove it",
    "box partly outside the image": "clipped to the image",
}


def judge_box(
    corners: Sequence[float], width: int, height: int
) -> tuple[str | None, tuple[float, float, float, float] | None]:
    """What is wrong with a box x1 y1 x2 y2 (None: nothing), and the box clipped to the image (None: reject it).

    >>> judge_box((10, 10, 30, 20), 100, 100)
    (None, (10.0, 10.0, 30.0, 20.0))
    >>> judge_box((90, 10, 130, 20), 100, 100)
    ('box partly outside the image', (90.0, 10.0, 100.0, 20.0))
    >>> judge_box((10, 10, 10, 20), 100, 100)
    ('empty box', None)
    """
    x1, y1, x2, y2 = map(float, corners)
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return "not a number", None
    if x2 < x1 or y2 < y1:
        return "inverted box", None
    if x2 - x1 < MIN_SIDE or y2 - y1 < MIN_SIDE:
        return "empty box", None
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if clipped[2] - clipped[0] < MIN_SIDE or clipped[3] - clipped[1] < MIN_SIDE:
        return "box outside the image", None
    sticks_out = max(abs(a - b) for a, b in zip((x1, y1, x2, y2), clipped, strict=True)) > ROUNDING
    return ("box partly outside the image" if sticks_out else None), clipped


def plain(values: Sequence[object]) -> str:
    """Numbers as a person would write them, for error texts.

    >>> plain([10.0, 2.5, float("nan")])
    '[10, 2.5, nan]'
    """
    return "[" + ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values) + "]"


class Collector:
    """Packs the records of one split; each box is judged, and what is wrong is kept as a `Problem`."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._names: list[str] = []
        self._image_ids = array("q")
        self._sizes = array("i")
        self._ends = array("q", [0])
        self._boxes = array("f")
        self._labels = array("i")
        self._crowd = array("b")
        self._area = array("f")

    def report(
        self, kind: str, file: Path | str, record: str, value: str, mend: str, severity: Severity = "error"
    ) -> None:
        """Keep a problem."""
        self.problems.append(Problem(severity, kind, str(file), record, value, mend))

    def add_image(self, image_id: int, name: str, width: int, height: int) -> None:
        """Start the record of an image; the boxes added next are its own."""
        self._image_ids.append(image_id)
        self._names.append(name)
        self._sizes.extend((width, height))
        self._ends.append(self._ends[-1])

    def add_box(
        self,
        corners: Sequence[float],
        label: int,
        *,
        file: Path | str,
        record: str,
        value: str,
        crowd: bool = False,
        area: float | None = None,
    ) -> None:
        """Judge a box x1 y1 x2 y2 of the last image and keep it if it is sound.

        `value` is the box as the file writes it; `area` the annotation's own, if it has one.
        """
        kind, box = judge_box(corners, self._sizes[-2], self._sizes[-1])
        if kind is not None:
            self.report(kind, file, record, value, MENDS[kind], "error" if box is None else "warning")
        if box is None:
            return
        inside = (box[2] - box[0]) * (box[3] - box[1])
        self._boxes.extend(box)
        self._labels.append(label)
        self._crowd.append(crowd)
        self._area.append(inside if area is None or not 0 < area < inside else area)
        self._ends[-1] += 1

    def relabel(self, new: Sequence[int]) -> None:
        """Turn every label k into new[k]."""
        self._labels = array("i", (new[label] for label in self._labels))

    def pack(
        self,
        root: Path,
        images: Path,
        format: str,
        split: str,
        classes: Sequence[str],
        category_ids: Sequence[int],
    ) -> DetectionData:
        """Everything collected, as one immutable data set; the images' names are relative to the folder `images`."""
        records = Records(
            images,
            self._names,
            np.array(self._image_ids, dtype=np.int64),
            np.array(self._sizes, dtype=np.int32).reshape(-1, 2),
            np.array(self._ends, dtype=np.int64),
            np.array(self._boxes, dtype=np.float32).reshape(-1, 4),
            np.array(self._labels, dtype=np.int32),
            np.array(self._crowd, dtype=np.bool_),
            np.array(self._area, dtype=np.float32),
        )
        return DetectionData(
            root, format, split, tuple(classes), tuple(category_ids), records, tuple(self.problems)
        )
