"""Reader of COCO JSON: annotations/instances_{split}.json, {split}/_annotations.coco.json and their like."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghmdet.data.collector import MENDS, UNCLEAR, Collector, judge_box
from ghmdet.data.layout import SPLITS, checked_classes, class_name, read_text, split_called
from ghmdet.data.records import DetectionData, Problem, Severity
from ghmdet.data.stream import Boxes, stream
from ghmdet.data.tree import PROBES, Tree, below, looks_like_label
from ghmdet.data.values import flag, number, numbers, shown, side, whole
from ghmdet.errors import DataError

LOOKED_FOR = (
    "annotations/instances_{split}.json, annotations/{split}.json, {split}/_annotations.coco.json, "
    "{split}/annotations.json, {split}.json or result.json"
)
ONE_PART = r"(_annotations\.coco|annotations|instances_default|result|labels)\.json"  # names no split
SPLIT = f"({'|'.join(SPLITS)})"
FILES = (
    r"annotations/instances_[^/]*\.json",
    r"annotations/[^/]*\.json",
    r"[^/]+/_annotations\.coco\.json",
    rf"{SPLIT}/({ONE_PART}|[^/]*{SPLIT}[^/]*\.json)",
    rf"[^/]*{SPLIT}[^/]*\.json",
    ONE_PART,
)
"""Where a folder's annotation files lie: the first of these that any file fits."""
HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Half characters that stand for no byte of a file's name, which is \\udc80 to \\udcff (PEP 383)."""
NAME = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


def split_name(file: Path) -> str:
    """The split that a COCO file holds, from its name or, where that tells none, from its folder's.

    >>> [split_name(Path(name)) for name in ("instances_val2017.json", "valid/_annotations.coco.json")]
    ['val', 'valid']
    """
    folder = split_called(file.absolute().parent.name)
    if file.name == "_annotations.coco.json":
        return folder
    plain = re.sub(r"(19|20)\d\d$", "", re.sub("^instances_", "", file.stem, flags=re.IGNORECASE)).rstrip(
        "_-"
    )
    words = [word for word in re.split(r"[_\-. ]", plain.lower()) if word in SPLITS]
    if len(words) == 1:
        return words[0]
    return folder if folder in SPLITS and re.fullmatch(ONE_PART, file.name) else plain or file.stem


def find_splits(tree: Tree) -> dict[str, Path]:
    """The annotation file of each split in a COCO folder, or of a file and those beside it; none when it is no COCO.

    Raises DataError when two files are of one split, as COCO's own of 2014 and 2017 are.
    """
    root = tree.given
    if not tree.whole:
        own = split_name(root)
        beside = {split: _beside(root, split) for split in SPLITS if own in SPLITS and split != own}
        return {own: root} | {split: file for split, file in beside.items() if file.is_file()}
    root = Path(tree.root)
    folders = [tree.root, *tree.folders(tree.root).values()]
    names = [os.path.relpath(file, root) for folder in folders for file in tree.files(folder, ".json")]
    for pattern in FILES:
        files = [root / name for name in names if re.fullmatch(pattern, name, re.IGNORECASE)]
        if pattern not in (FILES[0], FILES[2]):  # a place for other json files too
            files = [file for file in files if looks_like_label(str(file))]
        if files := [file for file in files if not is_labelme(file)]:
            break
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(split_name(file), file)
        if other != file:
            raise DataError(
                f"{root}: two files of split '{split_name(file)}': {other.relative_to(root)} and "
                f"{file.relative_to(root)}: give the .json file itself or move one of them away"
            )
    return found


def is_labelme(file: Path | str) -> bool:
    """Whether a json file is LabelMe's, by its beginning."""
    with open(file, "rb") as content:
        head = content.read(4096)
        # Its keys may be sorted: the picture itself, as text, comes before the shapes.
        return b'"shapes"' in head or (b'"imageData"' in head and b'"shapes"' in content.read())


def _beside(file: Path, split: str) -> Path:
    """The file that is to another split what `file` is to its own."""
    own = split_name(file)
    if own in file.name:
        return file.with_name(file.name.replace(own, split, 1))
    return file.absolute().parent.parent / split / file.name


def _find_pictures(tree: Tree, split: str, file: Path, names: Sequence[str]) -> tuple[str, list[str | None]]:
    """The folder that holds most of the first listed pictures, and the place of each that is found."""
    folder = str(file.parent if file.parent.name else file.absolute().parent)
    within, part = split_called(os.path.basename(folder)), split_name(file)
    root = os.path.dirname(folder) if within.lower() == "annotations" or within in SPLITS else folder
    inside = dict.fromkeys((part, file.stem.removeprefix("instances_")))
    parents = (tree.at(root, "images"), root)
    years = [path for name, path in tree.folders(root).items() if re.fullmatch(f"{part}20\\d\\d", name)]
    candidates = [
        *([folder, tree.at(folder, "images")] if within == part else []),
        parents[0],
        *(tree.at(parent, name) for parent in parents for name in inside),
        *(years if part in SPLITS else []),
        tree.at(root, "data"),
        root,
        folder,
    ]
    homes = dict.fromkeys(candidates)
    for name in names[:PROBES]:
        tree.one_of([path for home in homes if tree.has(path := below(home, name))])
    home = max(homes, key=lambda home: sum(tree.has(below(home, name)) for name in names[:PROBES]))
    home = home if os.path.isdir(home) else root  # of which paths of pictures elsewhere can begin
    paths = (below(home, name) for name in names)
    exact = [path if tree.has(path) else None for path in paths]
    return home, tree.match(names, exact, split, tree.root if tree.whole else home)


def files(tree: Tree, split: str, file: Path) -> Iterator[str]:
    """The annotation file of a split, and the pictures that it lists and that are there."""
    yield str(file)
    try:
        names = [json.loads(name, strict=False) for name in NAME.findall(read_text(file))]
    except (DataError, ValueError):
        return
    yield from filter(None, _find_pictures(tree, split, file, names)[1])


def load_json(file: Path) -> Any:
    """The content of a JSON file; raises DataError naming it when it is missing, empty or no JSON."""
    text = read_text(file)
    try:
        content = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # maybe half a character, or a byte of a file's name
            content = json.loads(HALVES.sub("?", json.dumps(content, ensure_ascii=False)))
        return content
    except json.JSONDecodeError as error:
        flawed = f" at line {error.lineno}, column {error.colno} ({error.msg})"
    except RecursionError:
        flawed = " (nested too deep)"
    except ValueError:
        flawed = " (a number of thousands of digits)"
    raise DataError(f"{file}: invalid JSON{flawed}: write the file again")


@dataclass(frozen=True)
class CocoAnnotations:
    """COCO annotations as columns: the n boxes that could be read, ordered by image, and as `problems` what could not.

    file: its name in errors. images: the record of each id, in the file's order. categories: the name of each id, in
    the ids' order. Of each box, record: how errors name it; image: its image's place in `images`; category: an id;
    box: x, y, width, height in pixels as written; area: square pixels, NaN where none is given; crowd: whether it is a
    crowd region. Of each image, rejected: how many of its annotations could not be read. left_out: the ids of images
    that count for nothing: further records of a picture, and pictures of which no annotation makes sense.
    """

    file: str
    images: dict[int, Mapping[str, Any]]
    categories: dict[int, str]
    record: Sequence[str]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    box: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    rejected: NDArray[np.int64]
    left_out: set[int]
    problems: list[Problem]


def read_annotations(source: Path | str | Mapping[str, Any], *, boxes: bool = True) -> CocoAnnotations:
    """Read COCO annotations, a file or its content: what is accepted here is accepted by training and by scoring.

    Text that spells a number is that number. `area`, `iscrowd` and a category's `name` may be missing or null. A
    record that cannot be read is left out and becomes a problem, as does a picture with no other. Records of one
    `file_name` and size are one picture with the boxes of all, each once. Without `boxes` the list `annotations` is not
    read and may be missing.

    Raises DataError when it is no COCO annotations, lists no image or no category, or a category has no id of its own.
    """
    lists = ("images", "annotations", "categories") if boxes else ("images", "categories")
    content, file = _content(source, lists)
    problems: list[Problem] = []

    def report(kind: str, record: str, value: object, mend: str, severity: Severity = "error") -> None:
        problems.append(Problem(severity, kind, file, record, shown(value), mend))

    images, sizes, first, left_out = _images(content["images"], report)
    categories = _categories(content, file)
    places = {image_id: place for place, image_id in enumerate(images)}
    where, which = array("q"), array("q")  # place of the record and of the image
    labels, corners, areas, crowds = array("q"), array("d"), array("d"), bytearray()
    rejected, merged = Counter[int](), {other for image_id, other in first.items() if image_id != other}
    annotations: Sequence[Any] = content["annotations"] if boxes else ()
    ids = list(images)
    named = _Records(annotations, images, ids, where, which)
    for place, annotation in enumerate(annotations):
        if not isinstance(annotation, Mapping):
            report("malformed annotation", f"annotations[{place}]", annotation, "write an object")
            continue
        image_id = first.get(whole(annotation.get("image_id")))
        if image_id is None:
            mend = "name an image of the list 'images' or remove it"
            report("unknown image id", named.of(place), annotation.get("image_id"), mend)
            continue
        category, bbox, area = (annotation.get(key) for key in ("category_id", "bbox", "area"))
        box = numbers(bbox)
        if bbox is None or box == []:
            box = _around(annotation.get("segmentation"))
        crowd, square = flag(annotation.get("iscrowd")), number(area)
        rejected[image_id] += 1
        if whole(category) not in categories:
            report(
                "unknown class",
                named.of(place, image_id),
                category,
                "name a category of the list 'categories'",
            )
            continue
        if box is None or len(box) != 4:
            report(
                "malformed box", named.of(place, image_id), bbox, "write four numbers: x, y, width, height"
            )
            continue
        kind, kept = judge_box((box[0], box[1], box[0] + box[2], box[1] + box[3]), *sizes[image_id])
        if kind and kept is None:
            report(kind, named.of(place, image_id), bbox, MENDS[kind])
        elif crowd is None:
            report("malformed iscrowd", named.of(place, image_id), annotation["iscrowd"], "write 0 or 1")
        else:
            rejected[image_id] -= 1
            if area is not None and (square is None or square < 0 or math.isinf(square)):
                report("malformed area", named.of(place, image_id), area, "taken from the box", "warning")
                square = None
            where.append(place)
            which.append(places[image_id])
            labels.append(whole(category) or 0)
            corners.extend(box)
            areas.append(math.nan if square is None else square)
            crowds.append(crowd)
    image, label = np.asarray(which, dtype=np.int64), np.asarray(labels, dtype=np.int64)
    sides = np.asarray(corners, dtype=np.float64).reshape(-1, 4)
    order = np.argsort(image, kind="stable")
    if merged:
        alike = {
            (image[row], label[row], *sides[row].tolist()) if ids[image[row]] in merged else row: row
            for row in order.tolist()
        }
        order = np.array([row for row in alike.values() if ids[image[row]] not in left_out], dtype=np.int64)
    sound = np.bincount(image[order], minlength=len(images)) > 0
    unclear = [i for i in images if rejected[i] and not sound[places[i]] and i not in left_out]
    if unclear:
        name = str(images[unclear[0]].get("file_name", unclear[0]))
        problems.append(Problem("error", UNCLEAR, file, "", name, MENDS[UNCLEAR], len(unclear)))
    return CocoAnnotations(
        file,
        images,
        categories,
        _Records(annotations, images, ids, np.asarray(where, dtype=np.int64)[order], image[order]),
        image[order],
        label[order],
        sides[order],
        np.asarray(areas, dtype=np.float64)[order],
        np.array(crowds, dtype=np.bool_)[order],
        np.array([rejected[image_id] for image_id in images], dtype=np.int64),
        left_out.union(unclear),
        problems,
    )


@dataclass(frozen=True)
class _Records(Sequence[str]):
    """How errors name the record of each box, made when one is asked for."""

    annotations: Sequence[Any]
    images: dict[int, Mapping[str, Any]]
    ids: Sequence[int]
    where: Any
    """The place of each box's record."""
    which: Any
    """The place of each box's image."""

    def of(self, place: int, image_id: int | None = None) -> str:
        """The name of the annotation at a place, with that of its image where it has one."""
        annotation = self.annotations[place]
        known = "id" in annotation
        record = f"annotation id {shown(annotation['id'])}" if known else f"annotations[{place}]"
        if image_id is None:
            return record
        return f"{record} of '{self.images[image_id].get('file_name', image_id)}'"

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, row: Any) -> Any:
        return self.of(int(self.where[row]), self.ids[int(self.which[row])])


def _images(
    records: Sequence[Any], report: Callable[..., None]
) -> tuple[dict[int, Mapping[str, Any]], dict[int, list[float]], dict[int | None, int], set[int]]:
    """The record of each image by its id; its width and height, infinite where they are not known; the id that each id
    stands for, which is another one's where both records name one picture; and the ids that are left out."""
    images: dict[int, Mapping[str, Any]] = {}
    sizes: dict[int, list[float]] = {}
    first: dict[int | None, int] = {}
    named: dict[str | int, int] = {}
    left_out: set[int] = set()
    for place, image in enumerate(records):
        image_id = whole(image.get("id")) if isinstance(image, Mapping) else None
        if image_id is None:
            report("malformed image record", f"images[{place}]", image, "give it an id and a file_name")
            continue
        name, size = image.get("file_name"), [side(image.get(key)) or math.inf for key in ("width", "height")]
        record = f"images[{place}] '{name}'"
        if image_id in first:
            mend = "number each image once (its first record is kept)"
            report("duplicate image id", record, image_id, mend)
            continue
        path = os.path.normpath(_name(image)) if _name(image) else image_id
        other = first[image_id] = named.setdefault(path, image_id)
        if other == image_id:
            images[image_id], sizes[image_id] = image, size
            continue
        left_out.add(image_id)
        if size == sizes[other] or math.inf in (*size, *sizes[other]):
            mend = f"taken as image id {other}, with the boxes of both, each once"
            report("image listed twice", record, image_id, mend, "warning")
        else:
            left_out.add(other)
            mend = f"image id {other} has its name: both are left out: tell them apart by their names"
            report("image listed with two sizes", record, size, mend)
    return images, sizes, first, left_out


def _name(image: Mapping[str, Any]) -> str:
    """The `file_name` of an image's record; empty where it has none."""
    name = image.get("file_name")
    return name if isinstance(name, str) else ""


def _around(segmentation: object) -> list[float] | None:
    """x, y, width, height of the box around polygons [x1, y1, x2, y2, ...]; None where there are none."""
    parts = segmentation if isinstance(segmentation, (list, tuple)) else ()
    polygons = [points for part in parts if (points := numbers(part)) and len(points) % 2 == 0]
    if not polygons or len(polygons) < len(parts):
        return None
    xs, ys = ([value for points in polygons for value in points[start::2]] for start in (0, 1))
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _content(source: Path | str | Mapping[str, Any], lists: Sequence[str]) -> tuple[Mapping[str, Any], str]:
    """The content of COCO annotations, checked to have these lists, and their name in errors."""
    wanted = "an object with images, annotations, categories"
    content, file = source, "annotations given in memory"
    if isinstance(source, (str, Path)):
        file = str(source)
        try:
            content = stream(Path(source))
        except (OSError, RecursionError, ValueError):
            content = load_json(Path(source))
    if isinstance(content, list):
        raise DataError(f"{file}: a JSON list, as COCO results are: annotations are {wanted}")
    if not isinstance(content, Mapping):
        raise DataError(f"{file}: no COCO annotations: expected {wanted}")
    for key in lists:
        if not isinstance(content.get(key), (list, tuple, Boxes)):
            raise DataError(f"{file}: no list '{key}': COCO annotations have {', '.join(lists)}")
    if not content["images"]:
        raise DataError(f"{file}: an empty data set: the list 'images' names none: add images")
    if not content["categories"]:
        raise DataError(f"{file}: no classes: name at least one category")
    return content, file


def _categories(content: Mapping[str, Any], file: str) -> dict[int, str]:
    """The name of each category id; Roboflow's category 0, which only groups the others and has no box, is none."""
    names: dict[int, str] = {}
    above: dict[int, object] = {}
    for place, category in enumerate(content["categories"]):
        category_id = whole(category.get("id")) if isinstance(category, Mapping) else None
        where = f"{file}: categories[{place}]"
        if category_id is None:
            raise DataError(f"{where}: no whole number as its id: give it one, and a name")
        if category_id in names:
            raise DataError(f"{where}: id {category_id} is there twice: number each category once")
        name = category.get("name")
        names[category_id] = class_name(category_id if name is None else name, where)
        above[category_id] = category.get("supercategory")
    root = names.get(0)
    if root is not None and above.pop(0) == "none" and root in above.values():
        boxes = (box for box in content.get("annotations") or () if isinstance(box, Mapping))
        if not any(whole(box.get("category_id")) == 0 for box in boxes):
            del names[0]
    return dict(sorted(names.items()))


def _category_ids(classes: Sequence[str], categories: dict[int, str]) -> tuple[int, ...]:
    """The file's id of each class; a class that the file does not have takes the next free one."""
    known = {name: number for number, name in categories.items()}
    after = min(max(categories), 2**62)  # so that 64 bits hold the next ones too
    free = (number for number in itertools.count(after + 1) if number not in categories)
    return tuple(known[name] if name in known else next(free) for name in classes)


def _told(read: CocoAnnotations, row: int) -> tuple[str, str]:
    return read.record[row], shown(read.box[row].tolist())


def read_split(tree: Tree, split: str, file: Path, classes: Sequence[str] | None = None) -> DetectionData:
    """Read one COCO file; classes are ordered by category id, or as given by `classes`.

    Raises DataError when the file is no COCO annotation file; single bad records become problems.
    """
    read = read_annotations(file)
    classes = checked_classes(read.categories.values(), file) if classes is None else tuple(classes)
    named = {image_id: name for image_id, image in read.images.items() if (name := _name(image))}
    home, places = _find_pictures(tree, split, file, list(named.values()))
    tree.used.update([str(file), *filter(None, places)])
    collect = Collector(Path(home), classes, read.problems)
    collect.file = file
    for image_id in read.images.keys() - named.keys():
        mend = "give it an id and a file_name"
        collect.report("malformed image record", f"image id {image_id}", shown(read.images[image_id]), mend)
    ends = itertools.pairwise(np.searchsorted(read.image, np.arange(len(read.images) + 1)).tolist())
    rows = dict(zip(read.images, zip(ends, read.rejected.tolist(), strict=True), strict=True))
    for (image_id, name), place in zip(named.items(), places, strict=True):
        if image_id in read.left_out:
            continue
        if place is not None and place != below(home, name):
            name = os.path.relpath(place, home)
        image, ((start, end), rejected) = read.images[image_id], rows[image_id]
        size = image.get("width"), image.get("height")
        if collect.add_image(image_id, name, size, f"image '{name}'", rejected):
            columns = (read.box, read.category, read.crowd, read.area)
            for row, box, category, crowd, area in zip(
                range(start, end), *(column[start:end].tolist() for column in columns), strict=True
            ):
                x, y, w, h = box
                label, corners = read.categories[category], (x, y, x + w, y + h)
                collect.add_box(corners, label, partial(_told, read, row), crowd=crowd, area=area)
    where = tree.given if tree.whole else file  # the file given may be that of another split
    return collect.pack(where, "COCO", split, _category_ids(classes, read.categories))
