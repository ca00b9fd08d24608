"""The annotation files of a split in the formats that `ghmdet audit apply` writes, with rows that can be changed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from xml.parsers import expat
from xml.sax.saxutils import escape

import numpy as np

from ghmdet.data import rows, yolo
from ghmdet.data.annotations import box_of, crowd_of, load_json, read_annotations
from ghmdet.data.labelled import VOC
from ghmdet.data.layout import read_text
from ghmdet.data.read import DataSet
from ghmdet.data.records import Record
from ghmdet.data.tree import Tree, ending
from ghmdet.data.values import flag, numbers, whole
from ghmdet.errors import DataError
from ghmdet.pictures import EXTENSIONS

Corners = Sequence[float]
Seen = tuple[str, Corners]


class Sheet(Protocol):
    """The annotation files of a split, with rows that can be changed, one for each label.

    names: of the classes, where the format keeps a list of them.
    """

    names: Collection[str]

    def rows(self, picture: Record) -> list[Any]:
        """Those of a picture."""

    def look(self, row: Any, picture: Record) -> Seen | None:
        """The class and the corners in pixels of a row; None where it is no box."""

    def written(self) -> dict[int, str]:
        """How pictures are written, by image id, where the annotations name them."""
        return {}

    def refuses(self, label: str | None, box: Corners | None) -> str:
        """Why a class or a box cannot be written, or nothing."""
        there = label is None or label in self.names
        return "" if there else f"the data set has no class '{label}': add it there first"

    def put(self, row: Any, picture: Record, label: str | None, box: Corners | None) -> None:
        """Give a row a class, or a box."""

    def add(self, picture: Record, label: str, box: Corners) -> None:
        """Add a row."""

    def remove(self, row: Any, picture: Record) -> None:
        """Take a row out."""

    def files(self) -> dict[Path, str]:
        """The text of each file that was changed."""

    def lists(self) -> Iterator[Path]:
        """The files that name the classes or list the pictures of any split."""
        return iter(())


class _Coco(Sheet):
    """One JSON file; what else it holds stays as it is, but for the mask of an object whose box is moved.

    A row is the annotations of one box: several where a picture is listed twice and both of its records have the box.
    """

    def __init__(self, source: DataSet, split: str) -> None:
        self.file: Path = source.splits[split]
        self.content = load_json(self.file)
        read = read_annotations(self.content, boxes=False)
        self.categories, self.images = dict[int | None, str](read.categories.items()), read.images
        self.names = self.categories.values()
        self.merged = {other for number, other in read.first.items() if number != other}
        self.of: dict[int | None, list[Any]] = {}
        there = [one for one in self.content["annotations"] if isinstance(one, Mapping)]
        for one in there:
            self.of.setdefault(read.first.get(whole(one.get("image_id"))), []).append(one)
        self.free = 1 + max((whole(one.get("id")) or 0 for one in there), default=0)
        self.removed: set[int] = set()

    def rows(self, picture: Record) -> list[Any]:
        alike: dict[tuple[Any, ...], list[Any]] = {}
        for one in self.of.get(picture.image_id, []):
            box = box_of(one) if picture.image_id in self.merged else None
            alike.setdefault((whole(one.get("category_id")), *box) if box else (id(one),), []).append(one)
        return list(alike.values())

    def look(self, row: Any, picture: Record) -> Seen | None:
        box, name = box_of(row[-1]), self.categories.get(whole(row[-1].get("category_id")))
        return (
            (name, (box[0], box[1], box[0] + box[2], box[1] + box[3]))
            if name and box and len(box) == 4 and crowd_of(row[-1]) is False
            else None
        )

    def written(self) -> dict[int, str]:
        return {number: str(image.get("file_name")) for number, image in self.images.items()}

    def put(self, row: Any, picture: Record, label: str | None, box: Corners | None) -> None:
        for one in row:
            if label is not None:
                one["category_id"] = next(key for key, name in self.categories.items() if name == label)
            if box is not None:
                width, height = box[2] - box[0], box[3] - box[1]
                one |= {
                    "bbox": [*box[:2], round(width, 2), round(height, 2)],
                    "area": round(width * height, 2),
                }
                one.pop("segmentation", None)

    def add(self, picture: Record, label: str, box: Corners) -> None:
        row = {"id": self.free, "image_id": picture.image_id, "iscrowd": 0}
        self.free += 1
        self.content["annotations"].append(row)
        self.put([row], picture, label, box)

    def remove(self, row: Any, picture: Record) -> None:
        self.removed.update(map(id, row))

    def files(self) -> dict[Path, str]:
        left = [one for one in self.content["annotations"] if id(one) not in self.removed]
        return {self.file: json.dumps(self.content | {"annotations": left}, ensure_ascii=False) + "\n"}


@dataclass(eq=False)
class _Element:
    """An element of an xml file, and where it stands in the file's bytes: its start tag from `start` to `inside`, its
    end tag from `close` to `end`; an empty one has no end tag. name: with its prefix. text: all that is directly in it.
    """

    name: str
    start: int
    inside: int
    close: int
    end: int
    text: str = ""
    children: list[_Element] = field(default_factory=list)

    def all(self, tag: str) -> list[_Element]:
        """Those directly in it that have this tag, in any namespace, in lower or upper case."""
        return [one for one in self.children if one.name.rpartition(":")[2].lower() == tag]


class _Xml:
    """An xml file whose elements are replaced in its text, so that all else stays as it is."""

    TAG = re.compile(rb"""<(?:[^"'>]|"[^"]*"|'[^']*')*>""")
    ENCODING = re.compile(rb"""^(\s*<\?xml[^>]*?\sencoding\s*=\s*)(?:"[^"]*"|'[^']*')""")

    def __init__(self, file: Path) -> None:
        self.raw = read_text(file).encode()
        self.changes: list[tuple[int, int, str]] = []
        self.added = ""
        above, roots = list[_Element](), list[_Element]()
        parser = expat.ParserCreate("UTF-8")
        parser.buffer_text = True

        def begin(name: str, attributes: dict[str, str]) -> None:
            start = parser.CurrentByteIndex
            tag = self.TAG.match(self.raw, start)
            if tag is None:
                raise DataError(f"{file}: an entity stands for elements there: write them out")
            one = _Element(name, start, tag.end(), tag.end(), tag.end())
            (above[-1].children if above else roots).append(one)
            above.append(one)

        def finish(name: str) -> None:
            one = above.pop()
            if not self.empty(one):
                one.close = parser.CurrentByteIndex
                one.end = self.raw.index(b">", one.close) + 1

        def read(text: str) -> None:
            above[-1].text += text

        parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = (
            begin,
            finish,
            read,
        )
        parser.Parse(self.raw, True)
        (self.root,) = roots

    def empty(self, one: _Element) -> bool:
        """Whether an element is a single tag."""
        return self.raw[one.inside - 2 : one.inside] == b"/>"

    def write(self, one: _Element, text: str) -> None:
        """Give an element a text instead of what is in it."""
        self.changes.append((one.inside, one.close, text))

    def remove(self, one: _Element) -> None:
        """Take an element out, and the space before it."""
        self.changes.append((len(self.raw[: one.start].rstrip()), one.end, ""))

    def append(self, text: str) -> None:
        """Put text behind the last element below the root, and behind what was put there before."""
        self.added += text

    def text(self) -> str:
        """The text with all changes; it is written as UTF-8."""
        raw, root, changes = self.raw, self.root, list(self.changes)
        if self.added and self.empty(root):
            changes.append((root.inside - 2, root.inside, f">{self.added}\n</{root.name}>"))
        elif self.added:
            place = root.children[-1].end if root.children else root.inside
            changes.append((place, place, self.added))
        for start, end, text in sorted(changes, key=lambda change: change[:2], reverse=True):
            raw = raw[:start] + text.encode() + raw[end:]
        return self.ENCODING.sub(rb'\1"UTF-8"', raw).decode()


class _Voc(Sheet):
    """An xml file a picture; corners are whole pixels, as most readers of the format want them."""

    CORNERS = ("xmin", "ymin", "xmax", "ymax")

    def __init__(self, source: DataSet, split: str) -> None:
        self.places = list(source.splits.values())
        self.of = _files_of(VOC.pairs(source.tree, split, source.splits[split]))
        self.read: dict[Path, _Xml] = {}

    def _xml(self, picture: Record) -> _Xml:
        file = self.of[_own(picture.path)]
        if file not in self.read:
            self.read[file] = _Xml(file)
        return self.read[file]

    def rows(self, picture: Record) -> list[_Element]:
        return self._xml(picture).root.all("object")

    def look(self, row: _Element, picture: Record) -> Seen | None:
        names, boxes = row.all("name"), row.all("bndbox")
        corners = [each for box in boxes for name in self.CORNERS for each in box.all(name)[:1]]
        read = numbers([each.text.strip() for each in corners])
        if any(flag(each.text) is not False for each in row.all("difficult")[:1]):  # a crowd region
            return None
        return (names[0].text.strip(), read) if names and read and len(read) == 4 == 4 * len(boxes) else None

    def refuses(self, label: str | None, box: Corners | None) -> str:
        x1, y1, x2, y2 = map(round, box or (0, 0, 1, 1))
        return "" if x1 < x2 and y1 < y2 else "its box has no area in whole pixels, which VOC wants"

    def put(self, row: _Element, picture: Record, label: str | None, box: Corners | None) -> None:
        xml = self._xml(picture)
        if label is not None:
            xml.write(row.all("name")[0], escape(label))
        for name, value in zip(self.CORNERS, box or (), strict=False):
            xml.write(row.all("bndbox")[0].all(name)[0], str(round(value)))

    def add(self, picture: Record, label: str, box: Corners) -> None:
        xml = self._xml(picture)
        space = "".join(xml.root.name.rpartition(":")[:2])

        def lines(indent: str, values: dict[str, str]) -> str:
            return "".join(
                f"{indent}<{space}{name}>{value}</{space}{name}>" for name, value in values.items()
            )

        corners = {name: str(round(value)) for name, value in zip(self.CORNERS, box, strict=True)}
        told = {"name": escape(label), "pose": "Unspecified", "truncated": "0", "difficult": "0"}
        told["bndbox"] = lines("\n\t\t\t", corners) + "\n\t\t"
        xml.append(lines("\n\t", {"object": lines("\n\t\t", told) + "\n\t"}))

    def remove(self, row: _Element, picture: Record) -> None:
        self._xml(picture).remove(row)

    def files(self) -> dict[Path, str]:
        return {file: xml.text() for file, xml in self.read.items() if xml.changes or xml.added}

    def lists(self) -> Iterator[Path]:
        return (place.listing for place in self.places if place.listing)


class _Yolo(Sheet):
    """A text file a picture; a polygon or a pose whose box is moved becomes that box."""

    def __init__(self, source: DataSet, split: str) -> None:
        own: Tree = source.tree
        place = source.splits[split]
        self.tree, self.places = own, list(source.splits.values())
        self.names = yolo.class_names(own, place.names[0])
        found = yolo.pairs(own, split, place)
        self.of = _files_of(found)
        for picture, label in found:
            if label is None:  # where its label file would be
                folder, name = os.path.split(picture)
                home = own.homes(folder, yolo.IMAGES, yolo.LABELS)[0]
                self.of[_own(picture)] = Path(home, f"{Path(name).stem}.txt")
        self.kind = rows.Rows(
            yolo.load(own, place.names[0]), place.names[0], [label for _, label in found if label]
        )
        self.lines: dict[Path, list[list[str]]] = {}

    def rows(self, picture: Record) -> list[Any]:
        file = self.of[_own(picture.path)]
        if file not in self.lines:
            self.lines[file] = [[line] for line in rows.label_lines(str(file))] if file.exists() else []
        return self.lines[file]

    def look(self, row: Any, picture: Record) -> Seen | None:
        read = rows.row_numbers(row[0])
        if (
            read is None
            or len(read) < 5
            or not np.isfinite(read).all()
            or (box := self.kind.box(read)) is None
        ):
            return None
        if (
            read[0] not in range(len(self.names))
            or max(read[1:5] if self.kind.points else read[1:]) > rows.OUTSIDE
        ):
            return None
        sides = (picture.width, picture.height) * 2
        return self.names[int(read[0])], [value * side for value, side in zip(box, sides, strict=True)]

    def put(self, row: Any, picture: Record, label: str | None, box: Corners | None) -> None:
        words = row[0].split() or ["0"]
        if label is not None:
            words[0] = str(self.names.index(label))
        if box is not None:
            x1, y1, x2, y2 = (
                v / side for v, side in zip(box, (picture.width, picture.height) * 2, strict=True)
            )
            words[1:] = [f"{v:.6f}" for v in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)]
        row[0] = " ".join(words)

    def add(self, picture: Record, label: str, box: Corners) -> None:
        row = [""]
        self.rows(picture).append(row)
        self.put(row, picture, label, box)

    def remove(self, row: Any, picture: Record) -> None:
        rows = self.rows(picture)
        rows[:] = [one for one in rows if one is not row]

    def files(self) -> dict[Path, str]:
        changed = {file: rows for file, rows in self.lines.items() if rows or file.exists()}
        return {file: "".join(f"{row[0]}\n" for row in rows) for file, rows in changed.items()}

    def lists(self) -> Iterator[Path]:
        for place in self.places:
            yield from filter(Path.is_file, map(Path, place.images))
            for file in place.names:
                yield from (file, yolo.names_file(self.tree, file))


SHEETS: dict[str, Callable[[DataSet, str], Sheet]] = {"COCO": _Coco, "VOC": _Voc, "YOLO": _Yolo}


def _own(picture: str | Path) -> str:
    """By what a picture is known: its own path, as a link to another picture has labels of its own."""
    return os.path.normpath(Path(picture).absolute())


def _files_of(found: Sequence[tuple[str, str | None]]) -> dict[str, Path]:
    """The label file of each picture, by its own path; VOC names the label file first."""
    both = [(b, a) if ending(a) not in EXTENSIONS else (a, b) for a, b in found if b is not None]
    return {_own(str(picture)): Path(str(label)) for picture, label in both}
