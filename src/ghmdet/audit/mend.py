"""`ghmdet audit apply`: a copy of a data set with the accepted decisions, in its own format."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

import numpy as np

from ghmdet.data import Record
from ghmdet.data.coco import load_json
from ghmdet.data.collector import judge_box
from ghmdet.data.labelled import VOC
from ghmdet.data.layout import read_text
from ghmdet.data.make.folder import new_set
from ghmdet.data.read import DataSet
from ghmdet.data.tree import Tree, ending
from ghmdet.data.values import number, numbers, whole
from ghmdet.data.yolo import IMAGES, LABELS, Rows, class_names, label_lines, pairs, row_numbers
from ghmdet.engine.run_folder import read_json
from ghmdet.errors import DataError, GhmdetError
from ghmdet.evaluation.matching import overlaps
from ghmdet.files import write_atomic
from ghmdet.pictures import EXTENSIONS

MARKER = "mended.json"
"""What was changed in a copy, and which decisions were refused."""
SAME = 0.1  # pixels: how far the corners of one box may differ, being rounded
THERE = 0.5  # the IoU of a label with an object that is labelled already

Corners = Sequence[float]
Seen = tuple[str, Corners]


class Sheet(Protocol):
    """The annotation files of a split, with rows that can be changed, one for each label."""

    def rows(self, picture: Record) -> list[Any]:
        """Those of a picture."""

    def look(self, row: Any, picture: Record) -> Seen | None:
        """The class and the corners in pixels of a row; None where it is no box."""

    def written(self) -> dict[int, str]:
        """How pictures are written, by image id, where the annotations name them."""

    def refuses(self, label: str | None, box: Corners | None) -> str:
        """Why a class or a box cannot be written, or nothing."""

    def put(self, row: Any, picture: Record, label: str | None, box: Corners | None) -> None:
        """Give a row a class, or a box."""

    def add(self, picture: Record) -> Any:
        """A new row."""

    def remove(self, row: Any, picture: Record) -> None:
        """Take a row out."""

    def files(self) -> dict[Path, str]:
        """The text of each file that was changed."""


class _Coco:
    """One JSON file; what else it holds stays as it is, but for the mask of an object whose box is moved."""

    def __init__(self, source: DataSet, split: str) -> None:
        self.file: Path = source.splits[split]
        self.content = load_json(self.file)
        self.categories = {whole(one["id"]): str(one["name"]) for one in self.content["categories"]}
        self.of: dict[int | None, list[Any]] = {}
        for one in self.content["annotations"]:
            self.of.setdefault(whole(one.get("image_id")), []).append(one)
        self.free = 1 + max((whole(one.get("id")) or 0 for one in self.content["annotations"]), default=0)
        self.removed: set[int] = set()

    def rows(self, picture: Record) -> list[Any]:
        return [one for one in self.of.get(picture.image_id, []) if id(one) not in self.removed]

    def look(self, row: Any, picture: Record) -> Seen | None:
        box, name = numbers(row.get("bbox")), self.categories.get(whole(row.get("category_id")))
        return (
            (name, (box[0], box[1], box[0] + box[2], box[1] + box[3]))
            if name and box and len(box) == 4 and not number(row.get("iscrowd"))
            else None
        )

    def written(self) -> dict[int, str]:
        return {
            number: str(image.get("file_name"))
            for image in self.content["images"]
            if (number := whole(image.get("id"))) is not None
        }

    def refuses(self, label: str | None, box: Corners | None) -> str:
        return _unknown(label, self.categories.values())

    def put(self, row: Any, picture: Record, label: str | None, box: Corners | None) -> None:
        if label is not None:
            row["category_id"] = next(key for key, name in self.categories.items() if name == label)
        if box is not None:
            width, height = box[2] - box[0], box[3] - box[1]
            row |= {"bbox": [*box[:2], round(width, 2), round(height, 2)], "area": round(width * height, 2)}
            row.pop("segmentation", None)

    def add(self, picture: Record) -> Any:
        row = {"id": self.free, "image_id": picture.image_id, "iscrowd": 0}
        self.free += 1
        self.content["annotations"].append(row)
        return row

    def remove(self, row: Any, picture: Record) -> None:
        self.removed.add(id(row))

    def files(self) -> dict[Path, str]:
        left = [one for one in self.content["annotations"] if id(one) not in self.removed]
        return {self.file: json.dumps(self.content | {"annotations": left}, ensure_ascii=False) + "\n"}


class _Voc:
    """An xml file a picture; corners are whole pixels, as most readers of the format want them."""

    def __init__(self, source: DataSet, split: str) -> None:
        self.of = _files_of(VOC.pairs(source.tree, split, source.splits[split]))
        self.roots: dict[Path, Any] = {}
        self.spaces: dict[Path, list[tuple[str, str]]] = {}

    def rows(self, picture: Record) -> list[Any]:
        file = self.of[os.path.realpath(picture.path)]
        if file not in self.roots:
            text = read_text(file)
            builder = ElementTree.TreeBuilder(insert_comments=True)
            self.roots[file] = ElementTree.fromstring(text, ElementTree.XMLParser(target=builder))
            spaces = ElementTree.iterparse(io.StringIO(text), ["start-ns"])
            self.spaces[file] = [(prefix or "", uri) for _, (prefix, uri) in spaces]
        return [node for node in self.roots[file] if _tag(node) == "object"]

    def look(self, row: Any, picture: Record) -> Seen | None:
        box, name = _child(row, "bndbox"), _child(row, "name")
        corners = [] if box is None else [_child(box, each) for each in ("xmin", "ymin", "xmax", "ymax")]
        read = numbers([None if node is None else (node.text or "").strip() for node in corners])
        return ((name.text or "").strip(), read) if name is not None and read and len(read) == 4 else None

    def written(self) -> dict[int, str]:
        return {}

    def refuses(self, label: str | None, box: Corners | None) -> str:
        x1, y1, x2, y2 = map(round, box or (0, 0, 1, 1))
        return "" if x1 < x2 and y1 < y2 else "its box has no area in whole pixels, which VOC wants"

    def put(self, row: Any, picture: Record, label: str | None, box: Corners | None) -> None:
        if label is not None:
            _child(row, "name").text = label
        for name, value in zip(("xmin", "ymin", "xmax", "ymax"), box or (), strict=False):
            _child(_child(row, "bndbox"), name).text = str(round(value))

    def add(self, picture: Record) -> Any:
        self.rows(picture)
        root = self.roots[self.of[os.path.realpath(picture.path)]]
        for last in root[-1:]:
            last.tail = "\n\t"
        space = "".join(root.tag.rpartition("}")[:2])
        row = ElementTree.SubElement(root, space + "object")
        for name, text in (("name", ""), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            ElementTree.SubElement(row, space + name).text = text
        box = ElementTree.SubElement(row, space + "bndbox")
        for name in ("xmin", "ymin", "xmax", "ymax"):
            ElementTree.SubElement(box, space + name)
        ElementTree.indent(row, "\t", level=1)
        row.tail = "\n"
        return row

    def remove(self, row: Any, picture: Record) -> None:
        self.roots[self.of[os.path.realpath(picture.path)]].remove(row)

    def files(self) -> dict[Path, str]:
        texts = {}
        for file, root in self.roots.items():
            for prefix, uri in self.spaces[file]:
                with suppress(ValueError):  # ns0, which ElementTree keeps for itself
                    ElementTree.register_namespace(prefix, uri)
            texts[file] = ElementTree.tostring(root, encoding="unicode") + "\n"
        return texts


class _Yolo:
    """A text file a picture; a polygon or a pose whose box is moved becomes that box."""

    def __init__(self, source: DataSet, split: str) -> None:
        own: Tree = source.tree
        place = source.splits[split]
        self.names = class_names(place.names[0])
        found = pairs(own, split, place)
        self.of = _files_of(found)
        for picture, label in found:
            if label is None:  # where its label file would be
                folder, name = os.path.split(picture)
                home = own.homes(folder, IMAGES, LABELS)[0]
                self.of[os.path.realpath(picture)] = Path(home, f"{Path(name).stem}.txt")
        self.kind = Rows(place.names[0], [label for _, label in found if label])
        self.lines: dict[Path, list[list[str]]] = {}

    def rows(self, picture: Record) -> list[Any]:
        file = self.of[os.path.realpath(picture.path)]
        if file not in self.lines:
            self.lines[file] = [[line] for line in label_lines(str(file))] if file.exists() else []
        return self.lines[file]

    def look(self, row: Any, picture: Record) -> Seen | None:
        read = row_numbers(row[0])
        if (
            read is None
            or len(read) < 5
            or not np.isfinite(read).all()
            or (box := self.kind.box(read)) is None
        ):
            return None
        if read[0] not in range(len(self.names)):
            return None
        sides = (picture.width, picture.height) * 2
        return self.names[int(read[0])], [value * side for value, side in zip(box, sides, strict=True)]

    def written(self) -> dict[int, str]:
        return {}

    def refuses(self, label: str | None, box: Corners | None) -> str:
        return _unknown(label, self.names)

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

    def add(self, picture: Record) -> Any:
        self.rows(picture).append([""])
        return self.rows(picture)[-1]

    def remove(self, row: Any, picture: Record) -> None:
        rows = self.rows(picture)
        rows[:] = [one for one in rows if one is not row]

    def files(self) -> dict[Path, str]:
        return {file: "".join(f"{row[0]}\n" for row in rows) for file, rows in self.lines.items()}


SHEETS: dict[str, Callable[[DataSet, str], Sheet]] = {"COCO": _Coco, "VOC": _Voc, "YOLO": _Yolo}


def _files_of(found: Sequence[tuple[str, str | None]]) -> dict[str, Path]:
    """The label file of each picture, by its real path; VOC names the label file first."""
    both = [(b, a) if ending(a) not in EXTENSIONS else (a, b) for a, b in found if b is not None]
    return {os.path.realpath(str(picture)): Path(str(label)) for picture, label in both}


def _unknown(label: str | None, names: Collection[str]) -> str:
    return (
        "" if label is None or label in names else f"the data set has no class '{label}': add it there first"
    )


def _tag(node: Any) -> str:
    return str(node.tag).rpartition("}")[2].lower()


def _child(node: Any, name: str) -> Any:
    return next((child for child in node if _tag(child) == name), None)


def mend(audit: Path, out: Path, decisions: Path, say: Callable[[str], None] = print) -> int:
    """Write a copy of the audited data set into `out` with the accepted decisions; 1 where one was refused, else 0.

    The copy holds mended.json, a row for each change. Files that are no labels are linked, or copied where the disk
    cannot link. Raises GhmdetError for an audit or decisions that are not there or do not belong together, a data set
    of a format that is not written, or an `out` that holds something else; the copy is then not made.
    """
    told, given = (read_json(file) for file in (audit / "audit.json", decisions))
    if told is None:
        raise GhmdetError(f"{audit}: no audit.json: give the folder of an audit that has ended")
    if given is None:
        raise GhmdetError(
            f"{decisions}: no such file: export it from {audit / 'review.html'}, or give --decisions"
        )
    if not isinstance(given, dict) or given.get("audit") != told["audit"]:
        raise GhmdetError(
            f"{decisions}: decisions of another audit: export them from {audit / 'review.html'}"
        )
    data, split = Path(told["data"]), told["split"]
    accepted = _accepted(given, told["items"], decisions)
    source = DataSet(data)
    if source.format not in SHEETS:
        raise DataError(
            f"{data}: {source.format} is not written: convert it to COCO, VOC or YOLO, and audit that"
        )
    home = Path(source.tree.root).absolute()
    home = home.parent if not source.tree.whole and home.name.lower() == "annotations" else home
    if out.resolve().is_relative_to(home.resolve()) or home.resolve().is_relative_to(out.resolve()):
        raise DataError(f"{out}: lies inside the data set, or around it: give a folder outside {home}")
    name = source.find(split)
    part = source.read(name, told["classes"])
    sheet = SHEETS[source.format](source, name)
    pictures = {part.records.name(i): i for i in range(len(part.records))}
    written = sheet.written()
    for record in part.records:
        there = Path(os.path.normpath(record.path.absolute()))  # links keep their names
        if there.is_relative_to(home) or Path(written.get(record.image_id, "")).is_absolute():
            continue
        if there.exists():  # a relative path means another place in the copy
            raise DataError(f"{there}: lies outside the data set {home}: name it by an absolute path there")
    done, refused = list[dict[str, Any]](), list[dict[str, Any]]()
    counts: Counter[str] = Counter(part.boxes_per_class())
    for item in accepted:
        place = pictures.get(item["picture"])
        why = "its picture is gone" if place is None else _change(sheet, part.records[place], item)
        (refused if why else done).append(item | ({"why": why} if why else {}))
        if not why:
            counts.update({item["new_class"]: 1} if item["new_class"] else {})
            counts.subtract({item["class"]: 1} if item["class"] else {})
    texts = {file.absolute(): text for file, text in sheet.files().items()}
    if elsewhere := next((file for file in texts if not file.is_relative_to(home)), None):
        raise DataError(f"{elsewhere}: lies outside the data set {home}: audit the folder that holds both")
    with new_set(out, MARKER, "audit apply") as folder:
        shutil.copytree(home, folder, dirs_exist_ok=True, copy_function=_link)
        for file, text in texts.items():
            write_atomic(folder / file.relative_to(home), text)
        log = {"made by": "ghmdet audit apply", "data": str(data), "audit": told["audit"]}
        write_atomic(folder / MARKER, json.dumps(log | {"done": done, "refused": refused}, indent=1) + "\n")
        copy = folder if source.tree.whole else folder / os.path.relpath(data.absolute(), home)
        mended = DataSet(copy)
        reads = mended.read(mended.find(split), told["classes"]).boxes_per_class()
        for used in map(Path, mended.tree.used):
            if ending(str(used)) not in EXTENSIONS and not used.absolute().is_relative_to(folder.absolute()):
                raise DataError(f"{data}: its copy would still read {used}: name it by a relative path there")
        if {k: v for k, v in reads.items() if v} != {k: v for k, v in counts.items() if v}:
            raise DataError(
                f"{data}: the copy reads as {reads}, not as {dict(counts)}: is its label format mixed?"
            )
    for item in refused:
        say(f"refused: number {item['id']} ({item['kind']} in {item['picture']}): {item['why']}")
    say(f"{out}: {len(done)} decisions applied, {len(refused)} refused, listed in {out / MARKER}")
    return int(bool(refused))


def _accepted(given: dict[str, Any], items: Sequence[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """The items that were accepted; raises GhmdetError where a decision is none."""
    of = {item["id"]: item for item in items}
    chosen, decided = [], set[int]()
    if not isinstance(given.get("decisions"), list):
        raise GhmdetError(f"{file}: holds no list of decisions: export the file again")
    for one in given["decisions"]:
        if (
            not isinstance(one, dict)
            or type(one.get("id")) is not int
            or one["id"] not in of
            or one.get("decision") not in ("accept", "reject")
        ):
            raise GhmdetError(f"{file}: no decision: {json.dumps(one)}: export the file again")
        if one["id"] in decided:
            raise GhmdetError(f"{file}: number {one['id']} is decided twice: leave one of the two")
        decided.add(one["id"])
        if one["decision"] == "accept":
            chosen.append(of[one["id"]])
    return chosen


def _change(sheet: Sheet, picture: Record, item: dict[str, Any]) -> str:
    """Apply an item to the rows of its picture; why it cannot be, or nothing."""
    seen = [(row, look) for row in sheet.rows(picture) if (look := sheet.look(row, picture))]
    label, box = item["new_class"], _corners(item["new_box"])
    if why := sheet.refuses(label, box if item["kind"] in ("missing", "shifted") else None):
        return why
    if item["kind"] == "missing":
        same = np.array([corners for _, (name, corners) in seen if name == label], dtype=np.float64)
        if overlaps(same.reshape(-1, 4), np.array([box], dtype=np.float64)).max(initial=0) >= THERE:
            return "an object of its class is labelled there now"
        sheet.put(sheet.add(picture), picture, label, box)
        return ""
    for row, (name, corners) in seen:
        kept = judge_box(corners, picture.width, picture.height)[1]
        old = _corners(item["box"])
        if name == item["class"] and kept and old and max(np.abs(np.subtract(kept, old))) <= SAME:
            if label is None:
                sheet.remove(row, picture)
            else:
                sheet.put(
                    row, picture, label if label != name else None, box if item["kind"] == "shifted" else None
                )
            return ""
    return f"no {item['class']} at {item['box']} any more"


def _corners(box: Sequence[float] | None) -> tuple[float, float, float, float] | None:
    return None if box is None else (box[0], box[1], round(box[0] + box[2], 2), round(box[1] + box[3], 2))


def _link(source: str, target: str) -> None:
    """A picture is linked where the disk allows it; anything else is copied, so that the copy can be edited."""
    if ending(source) in EXTENSIONS:
        with suppress(OSError):
            os.link(os.path.realpath(source), target)
            return
    shutil.copy2(source, target)
