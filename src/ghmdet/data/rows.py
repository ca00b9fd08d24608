"""The rows of YOLO's label files: which are boxes, polygons or poses, and what is wrong with the others."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from ghmdet.data.collector import Collector
from ghmdet.data.layout import UTF16
from ghmdet.data.values import shown, whole
from ghmdet.errors import DataError

ROWS = 1000  # how many decide what the rows are
POLYGONS = 0.15  # of the long rows: so many can be nothing else in a set of polygons, and hardly one in a set of poses
SLACK = 0.02  # of the picture: how far a box of a pose or a track may stick out
OUTSIDE = 2.0  # fractions beyond this are no rounding or sticking out: they must be pixels


def label_lines(label: str) -> list[str]:
    """The rows of a label file."""
    raw = Path(label).read_bytes()
    return raw.decode("utf-16" if raw[:2] in UTF16 else "utf-8-sig", errors="replace").splitlines()


class Rows:
    """What the rows of a split's label files are that have more than five numbers: none is guessed from its length.

    Key points where data.yaml declares `kpt_shape`; polygons where it declares `task: segment` or `task: obb`. Without
    either they are polygons if at least POLYGONS of them (of the first ROWS) can be nothing else: their first four
    numbers are no box inside the picture that holds what follows, as that of a pose or of a tracker's row would.
    """

    def __init__(self, content: Mapping[str, Any], names: Path, labels: Sequence[str]) -> None:
        self.classes: set[float] = set()
        self.points = None
        if "kpt_shape" in content:
            shape = content["kpt_shape"]
            sides = [whole(side) or 0 for side in shape] if isinstance(shape, list) else []
            if len(sides) != 2 or min(sides) < 1:
                raise DataError(f"{names}: kpt_shape is {shown(shape)}: write [number of key points, 2 or 3]")
            self.points = sides[0] * sides[1]
        self._declared = content.get("task") in ("segment", "obb")
        self._labels = labels

    @cached_property
    def are_polygons(self) -> bool:
        """Looked at when the first such row comes."""
        read = (row_numbers(line) for label in self._labels for line in label_lines(label))
        long = list(islice((row for row in read if row is not None and len(row) >= 7 and len(row) % 2), ROWS))
        # Polygons round the picture's middle can mostly be boxes with points, too; of poses hardly one cannot.
        nothing_else = sum(not _box_and_more(row[1:]) for row in long)
        return self._declared or nothing_else >= max(1, POLYGONS * len(long))

    def box(self, row: list[float]) -> tuple[float, ...] | None:
        """The corners x1 y1 x2 y2 of a row, in fractions; None where it is no box, polygon or declared pose."""
        rest = len(row) - 5
        if rest == 0 or (self.points is not None and rest == self.points):
            cx, cy, w, h = row[1:5]
            return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        if self.points is not None or rest < 2 or rest % 2 or not self.are_polygons:
            return None
        xs, ys = row[1::2], row[2::2]
        return min(xs), min(ys), max(xs), max(ys)


def _box_and_more(row: Sequence[float]) -> bool:
    """Whether numbers can be a box cx cy w h inside the picture, and key points in it or a tracker's score and id."""
    cx, cy, w, h, *more = row
    if min(w, h) <= 0 or max(abs(cx - 0.5) + w / 2, abs(cy - 0.5) + h / 2) > 0.5 + SLACK:
        return False

    def held(xs: Sequence[float], ys: Sequence[float]) -> bool:
        points = zip(xs, ys, strict=True)
        return all(
            (x, y) == (0, 0) or (abs(x - cx) <= 0.75 * w and abs(y - cy) <= 0.75 * h) for x, y in points
        )

    seen = len(more) % 3 == 0 and {0, 1, 2}.issuperset(more[2::3])
    return len(more) == 2 or (seen and held(more[0::3], more[1::3])) or held(more[0::2], more[1::2])


def row_numbers(line: str) -> list[float] | None:
    """The numbers of a row; None where a word is none, or where there are none."""
    try:
        return ([float(word) for word in line.split()] or None) if "_" not in line else None
    except ValueError:
        return None


def boxes_of(
    collect: Collector, lines: Sequence[str], names: Sequence[str], rows: Rows
) -> Iterator[tuple[Sequence[float], str, str, str] | None]:
    """Corners in fractions, class, record and value of each sound row; None for one of another kind."""
    for number, line in enumerate(lines, start=1):
        row, record = row_numbers(line), f"line {number}"
        rows.classes.update((row or ())[:1])
        corners = rows.box(row) if row else None
        if row is None or len(row) < 5 or (corners is None and len(row) % 2 == 0):
            if line.strip():
                mend = "write five numbers: class cx cy w h" + ", with decimal points" * ("," in line)
                collect.report("malformed box", record, shown(line.strip()), mend)
        elif corners is None:
            mend = "say in data.yaml what it is: kpt_shape (key points), task: segment or obb (polygons); or keep five"
            collect.report(f"row of {len(row)} numbers", record, shown(line.strip()), mend)
            yield None
        elif row[0] not in range(len(names)):
            of_names = f"classes are 0 to {len(names) - 1}: correct the row, or name its class"
            collect.report("unknown class", record, shown(line.strip()), of_names)
        elif max(row[1:5] if rows.points else row[1:]) > OUTSIDE:
            mend = "divide by the picture's width and height"
            collect.report("box not in fractions", record, shown(line.strip()), mend)
        else:
            yield corners, names[int(row[0])], record, shown(line.strip())
