"""Judging boxes one by one while a reader goes through its files, and packing those kept."""

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ghmdet.data.layout import apart, checked_classes, did_you_mean
from ghmdet.data.records import DetectionData, Problem, Records, Severity
from ghmdet.data.values import number, shown, side
from ghmdet.errors import DataError
from ghmdet.pictures import image_size, reason

Corners = Sequence[float]  # x1 y1 x2 y2 in pixels
MIN_SIDE = 0.01  # pixels: a thinner box is empty (float32 cannot tell its sides apart in a large picture)
ROUNDING = 0.05  # pixels: text formats round; sticking out by less is cut off without a word
MISREAD, PROBED = 10, 1000  # boxes: how many tell, and how many are looked at
CORNERS = "x1, y1, x2, y2: write"

UNCLEAR = "picture without a sound label"
MENDS = {
    UNCLEAR: "left out: mend its labels, or remove them if it shows nothing",
    "not a number": "write four finite numbers or remove it",
    "inverted box": "swap its corners or remove it",
    "empty box": "give it a width and a height or remove it",
    "box outside the image": "check its coordinates against the image's size or remove it",
    "box partly outside the image": "clipped to the image",
    "box within the first pixel": "multiply by the picture's width and height if these are fractions, or remove it",
    "box under one pixel": "kept, but training leaves out what has a side under one pixel at its size",
}


def judge_box(box: Corners, width: float, height: float) -> tuple[str | None, Corners | None]:
    """What is wrong with a box in a picture, a key of MENDS (None: nothing), and it clipped to that (None: reject it).

    width, height: of the picture in pixels; infinite where they are not known.

    >>> judge_box((10, 10, 30, 20), 100, 100)
    (None, (10, 10, 30, 20))
    >>> judge_box((90, 10, 130, 20), 100, 100)
    ('box partly outside the image', (90, 10, 100, 20))
    >>> judge_box((10, 10, 10, 20), 100, 100)
    ('empty box', None)
    """
    if not all(map(math.isfinite, box)):
        return "not a number", None
    x1, y1, x2, y2 = box
    thinner = min(x2 - x1, y2 - y1)
    if thinner < 0:
        return "inverted box", None
    if thinner > 0 <= min(x1, y1) and max(x2, y2) <= 1 < min(width, height) < math.inf:
        return "box within the first pixel", None
    if thinner < MIN_SIDE:
        return "empty box", None
    clipped = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) < MIN_SIDE:
        return "box outside the image", None
    sticks_out = max(abs(a - b) for a, b in zip(box, clipped, strict=True)) > ROUNDING
    if sticks_out:
        return "box partly outside the image", clipped
    return ("box under one pixel" if thinner < 1 - ROUNDING else None), clipped


def sound(corners: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Of which boxes [n, 4] in pictures of sizes [n, 2] `judge_box` says nothing, to be quick: not of all such.

    >>> sound(np.array([[10.0, 10, 30, 20], [90, 10, 130, 20], [1, 1, 1, 1]]), np.array([100.0, 100]))
    array([ True, False, False])
    """
    with np.errstate(invalid="ignore"):
        sides = corners[:, 2:] - corners[:, :2]
    within = (corners[:, :2] >= 0) & (corners[:, 2:] <= sizes)
    return np.asarray((within & (sides > 1) & (sides < math.inf)).all(axis=1))  # beyond the first pixel


def must_be_corners(written: NDArray[np.float64], corners: NDArray[np.float64]) -> bool:
    """Whether boxes that stick far out of their pictures were written as corners and not as sides.

    written: [n, 4], a point and the sides. corners: [n, 4] that they give. Both in fractions of the picture. Many of
    them lie far outside, and each is sound as two corners in the picture, as hardly ten boxes are by chance.
    """
    within = (abs(written - 0.5) < 0.52).all()
    if len(written) < MISREAD or not within or not (written[:, 2:] > written[:, :2]).all():
        return False
    return bool((abs(corners - 0.5) > 0.6).any(axis=1).mean() >= 0.25)


def may_be_top_left(corners: NDArray[np.float64]) -> bool:
    """Whether boxes of which x, y are read as the centre may have been written with the top left corner.

    corners: [n, 4] as read, in fractions of the picture. Many of them stick out at the left or top, none at the right
    or bottom, and with x, y as the corner all lie within.
    """
    start, end = corners[:, :2], corners[:, 2:]
    middle, sides = (start + end) / 2, end - start
    inside = (end < 1.01).all() and (middle + sides < 1.01).all()
    return bool(len(corners) >= MISREAD and inside and (start < -0.01).any(axis=1).mean() >= 0.1)


class Collector:
    """Packs the records of one split; each box is judged, and what is wrong is kept as a `Problem`.

    images: the folder that the pictures' names are relative to. classes: those to keep, in the order of the labels;
    None keeps every class found. problems: those found before. Set `file` to the annotation file being read: problems
    name it.
    """

    def __init__(self, images: Path, classes: Iterable[str] | None, problems: Iterable[Problem] = ()) -> None:
        self.file: Path | str = images
        self._faulty: dict[int, Path | str] = {}  # by an image's place, the file of its first rejected label
        self._sized, self._missized = (
            -1,
            set[int](),
        )  # places: of the last image of a known size, of those of another
        self.problems = list(problems)
        self._images, self._all = images, classes is None
        self._labels = {name: label for label, name in enumerate(classes or ())}
        self._names: list[str] = []
        self._ids, self._sizes, self._ends = array("q"), array("q"), array("q", [0])
        self._rejected = array("q")  # labels of each picture
        self._boxes, self._areas = array("d"), array("d")
        self._box_labels, self._crowd = array("i"), bytearray()

    def report(
        self, kind: str, record: str, value: str, mend: str, severity: Severity = "error", count: int = 1
    ) -> None:
        """Keep a problem of the file being read."""
        self.problems.append(Problem(severity, kind, str(self.file), record, value, mend, count))

    def reject(self, kind: str, record: str, value: str, mend: str) -> None:
        """Keep a problem of a label of the last image that cannot be used."""
        self.report(kind, record, value, mend)
        self.count_rejected(1)

    def count_rejected(self, labels: int) -> None:
        """Count labels of the last image that cannot be used; the file being read is theirs."""
        if labels:
            self._rejected[-1] += labels
            self._faulty.setdefault(len(self._rejected) - 1, self.file)

    def add_image(
        self, image_id: int, name: str, size: Sequence[object], record: str, rejected: int = 0
    ) -> bool:
        """Start an image, whose boxes come next; False and a problem where its size cannot be had.

        size: width and height as the file writes them. The picture's own are taken where it writes none or 0, and,
        with a warning, where they are no sides of a picture. rejected: how many of its labels the file being read was
        found to have that cannot be used.
        """
        sides = [side(value) for value in size]
        if None in sides:
            if any(value not in (None, "") and number(value) != 0 and side(value) is None for value in size):
                self.report("malformed image size", record, shown(size), "taken from the picture", "warning")
            try:
                sides, self._sized = list(image_size(self._images / name)), len(self._names)
            except DataError as error:
                self.report("image without a size", record, "", reason(error, self._images / name))
                return False
        self._names.append(name)
        self._ids.append(image_id)
        self._sizes.extend(value for value in sides if value is not None)
        self._ends.append(self._ends[-1])
        self._rejected.append(0)
        self.count_rejected(rejected)
        return True

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the last image in pixels."""
        return self._sizes[-2], self._sizes[-1]

    def add_box(
        self,
        box: Corners,
        name: str,
        told: tuple[str, str] | Callable[[], tuple[str, str]],
        *,
        crowd: bool = False,
        area: float = math.nan,
    ) -> None:
        """Judge a box x1 y1 x2 y2 of class `name` in the last image, and keep it if it is sound.

        told: the box's name and the box itself as problems show them, or what gives them. area: the annotation's own in
        square pixels, NaN where it has none.
        """
        if name not in self._labels and not (self._all and name):
            mend = "not among the classes asked for" if name else "write the name of its class"
            near = did_you_mean(name, tuple(self._labels))
            value = "{} (did you mean {}?)".format(*apart(name, near)) if near else f"'{name}'"
            self.report("unknown class", (told() if callable(told) else told)[0], value, mend)
            self.count_rejected(not name)
            return
        label = self._labels.setdefault(name, len(self._labels))
        kind, kept = judge_box(box, *self.size)
        if kind is not None and "outside" in kind and self.is_missized():
            return
        if kind is not None:
            record, value = told() if callable(told) else told
            self.report(kind, record, value, MENDS[kind], "error" if kept is None else "warning")
            self.count_rejected(kept is None)
        if kept is not None:
            self._boxes.extend(kept)
            self._box_labels.append(label)
            self._crowd.append(crowd)
            self._areas.append(area)
            self._ends[-1] += 1

    def is_missized(self) -> bool:
        """Whether the last image's file has another size than is written, which is said once an image."""
        place, name, (width, height) = len(self._names) - 1, self._names[-1], self.size
        with suppress(DataError):  # of a picture that is missing or damaged
            if self._sized != place and (found := image_size(self._images / name)) != (width, height):
                self._missized.add(place)
                said = f"(the file has {found[0]}x{found[1]} pixels, its annotation says {width}x{height})"
                self.report("size mismatch", f"image '{name}'", said, "left out: correct one of them")
        self._sized = place
        return place in self._missized

    def add_sound(
        self,
        boxes: NDArray[np.float64],
        labels: NDArray[np.int32],
        crowd: NDArray[np.bool_],
        area: NDArray[np.float64],
    ) -> None:
        """Keep boxes [n, 4] of the last image that are `sound` and of classes that were given."""
        self._boxes.frombytes(boxes.tobytes())
        self._box_labels.frombytes(labels.tobytes())
        self._crowd.extend(crowd.tobytes())
        self._areas.frombytes(area.tobytes())
        self._ends[-1] += len(boxes)

    def pack(
        self, root: Path, format: str, split: str, category_ids: Iterable[int] | None = None
    ) -> DetectionData:
        """Everything collected as one immutable data set; classes that were not given are in alphabetical order.

        A picture of which every label was rejected is no picture without objects: it is left out, as is one of another
        size than its file says.

        category_ids: the classes' numbers, 1, 2 ... by default. Raises DataError where there is no class.
        """
        boxes, area = np.asarray(self._boxes).reshape(-1, 4), np.asarray(self._areas)
        inside = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        found = tuple(self._labels)
        if not found and self.problems:
            raise DataError(f"{self.file}: no class (the first rejected: {self.problems[0]}): correct it")
        classes = checked_classes(sorted(found), self.file) if self._all else found
        places = {name: label for label, name in enumerate(classes)}
        new_label = np.array([places[name] for name in found], dtype=np.int32)
        records = Records(
            self._images,
            self._names,
            np.array(self._ids, dtype=np.int64),
            np.array(self._sizes, dtype=np.int32).reshape(-1, 2),
            np.array(self._ends, dtype=np.int64),
            boxes.astype(np.float32),
            new_label[np.asarray(self._box_labels)],
            np.array(self._crowd, dtype=np.bool_),
            np.where((area > 0) & (area < inside), area, inside).astype(np.float32),
        )
        wrong = np.isin(np.arange(len(records)), list(self._missized))
        unclear = ~wrong & (np.diff(records.offsets) == 0) & (np.array(self._rejected, dtype=np.int64) > 0)
        if unclear.any():
            first = int(unclear.argmax())
            self.file = self._faulty[first]
            self.report(UNCLEAR, "", records.name(first), MENDS[UNCLEAR], count=int(unclear.sum()))
        if (wrong | unclear).any():
            records = records.take(np.flatnonzero(~wrong & ~unclear))
        numbers = tuple(category_ids or range(1, len(classes) + 1))
        return DetectionData(root, format, split, classes, numbers, records, tuple(self.problems))
