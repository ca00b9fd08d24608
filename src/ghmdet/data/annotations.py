"""COCO annotations, a file or its content, as columns: what training, scoring and predicting accept alike."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghmdet.data.collector import CORNERS, MENDS, PROBED, UNCLEAR, judge_box, must_be_corners, sound
from ghmdet.data.layout import class_name, read_text
from ghmdet.data.records import Problem, Severity
from ghmdet.data.stream import Boxes, stream
from ghmdet.data.values import flag, number, numbers, shown, side, whole
from ghmdet.errors import DataError

CROWD = ("iscrowd", "ignore")
HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Half characters that stand for no byte of a file's name, which is \\udc80 to \\udcff (PEP 383)."""


def load_json(file: Path) -> Any:
    """The content of a JSON file; raises DataError naming it when it is missing, empty or no JSON."""
    text = read_text(file)
    try:
        content = json.loads(text, object_pairs_hook=_once)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # maybe half a character, or a byte of a file's name
            content = json.loads(HALVES.sub("?", json.dumps(content, ensure_ascii=False)))
        return content
    except json.JSONDecodeError as error:
        flawed = f" at line {error.lineno}, column {error.colno} ({error.msg})"
    except RecursionError:
        flawed = " (nested too deep)"
    except KeyError as error:
        flawed = f" ({shown(error.args[0])} is given twice in one object)"
    except ValueError:
        flawed = " (a number of thousands of digits)"
    raise DataError(f"{file}: invalid JSON{flawed}: write the file again")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises KeyError at a key that is there twice: the last would be taken without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise KeyError(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return found


@dataclass(frozen=True)
class CocoAnnotations:
    """COCO annotations as columns: the n boxes that could be read, ordered by image, and as `problems` what could not.

    file: its name in errors. images: the record of each id, in the file's order. categories: the name of each id, in
    the ids' order. Of each box, record: how errors name it; image: its image's place in `images`; category: an id;
    box: x, y, width, height in pixels as written; area: square pixels, NaN where none is given; crowd: whether it is a
    crowd region; plain: whether nothing at all is to be said of it (not all such are marked). Of each image, rejected:
    how many of its annotations could not be read. first: the id that each id of an image stands for, another one's
    where both records name one picture. left_out: the ids of images that count for nothing: further records of a
    picture, and those in `unclear`, pictures of which no annotation makes sense.
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
    plain: NDArray[np.bool_]
    rejected: NDArray[np.int64]
    first: Mapping[int | None, int]
    left_out: set[int]
    unclear: set[int]
    problems: list[Problem]


def read_annotations(source: Path | str | Mapping[str, Any], *, boxes: bool = True) -> CocoAnnotations:
    """Read COCO annotations, a file or its content: what is accepted here is accepted by training and by scoring.

    Text that spells a number is that number. `area`, `iscrowd`, `ignore` and a category's `name` may be missing or
    null. A record that cannot be read is left out and becomes a problem, as does a picture with no other. Records of
    one `file_name` and size are one picture with the boxes of all, each once. Without `boxes` the list `annotations`
    is not read and may be missing.

    Raises DataError when it is no COCO annotations, its boxes must be corners, it lists no image or no category, or a
    category has no id of its own.
    """
    lists = ("images", "annotations", "categories") if boxes else ("images", "categories")
    content, file = _content(source, lists)
    problems: list[Problem] = []

    def report(kind: str, record: str, value: object, mend: str, severity: Severity = "error") -> None:
        problems.append(Problem(severity, kind, file, record, shown(value), mend))

    images, sizes, first, left_out, merged = _images(content["images"], report)
    categories = _categories(content, file)
    given = content["annotations"] if boxes else ()
    annotations, ids = given if isinstance(given, Boxes) else Boxes(given), list(images)
    places = {image_id: place for place, image_id in enumerate(images)}
    rejected = Counter[int]()
    own, image_ids, category, box, area, crowd = annotations.columns()
    if twice := _twice(own, annotations.odd):
        mend = "each is read, but other programs keep one of an id: number each annotation once"
        problems.append(
            Problem("warning", "duplicate annotation id", file, "", shown(twice), mend, len(twice))
        )
    image = _found(image_ids, {key: places[first[key]] for key in first})
    pixels = np.array([*sizes.values(), [0.0, 0.0]])
    limits = pixels[image]
    kept = (
        sound(corners_of(box), limits) & ~((area < 0) | np.isinf(area)) & np.isin(category, list(categories))
    )
    plain = kept & np.isfinite(limits).all(axis=1)
    for place in np.flatnonzero(~kept).tolist():
        annotation = annotations[place]
        if not isinstance(annotation, Mapping):
            report("malformed annotation", f"annotations[{place}]", annotation, "write an object")
            continue
        image_id = first.get(whole(annotation.get("image_id")))
        if image_id is None:
            mend = "name an image of the list 'images' or remove it"
            report("unknown image id", _record(annotation, place, images), annotation.get("image_id"), mend)
            continue
        label, bbox, written = (annotation.get(key) for key in ("category_id", "bbox", "area"))
        corners = box_of(annotation)
        apart, square = crowd_of(annotation), number(written)
        record = _record(annotation, place, images, image_id)
        rejected[image_id] += 1
        if whole(label) not in categories:
            report("unknown class", record, label, "name a category of the list 'categories'")
            continue
        if corners is None or len(corners) != 4:
            report("malformed box", record, bbox, "write four numbers: x, y, width, height")
            continue
        x, y, w, h = corners
        kind, inside = judge_box((x, y, x + w, y + h), *sizes[image_id])
        if kind and inside is None:
            report(kind, record, bbox, MENDS[kind])
        elif apart is None:
            key = next(key for key in CROWD if flag(annotation.get(key)) is None)
            report(f"malformed {key}", record, annotation[key], "write 0 or 1")
        else:
            rejected[image_id] -= 1
            if written is not None and (square is None or square < 0 or math.isinf(square)):
                report("malformed area", record, written, "taken from the box", "warning")
                square = None
            kept[place], image[place], category[place] = True, places[image_id], whole(label)
            box[place], area[place] = corners, math.nan if square is None else square
            crowd[place] = apart
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(image[rows], kind="stable")]
    few = rows[:PROBED]
    unit = np.tile(pixels[image[few]], 2)
    if must_be_corners(box[few] / unit, corners_of(box[few]) / unit):
        raise DataError(
            f"{file}: boxes reach far out of their pictures: these are {CORNERS} x, y, width, height"
        )
    if left_out or merged:
        alike: dict[Any, int] = {}
        for row in rows.tolist():
            one, same = ids[image[row]], (image[row], category[row], *box[row].tolist())
            first_row = alike.setdefault(same if one in merged else row, row)
            if crowd[row] != crowd[first_row]:
                crowd[first_row] = True
                record, mend = (
                    _record(annotations[row], row, images, one),
                    "taken as a crowd region: make both agree",
                )
                report("box both a crowd region and an object", record, box[row].tolist(), mend, "warning")
        rows = np.array([row for row in alike.values() if ids[image[row]] not in left_out], dtype=np.int64)
    image = image[rows]
    labelled = np.bincount(image, minlength=len(images)) > 0
    unclear = [i for i in images if rejected[i] and not labelled[places[i]] and i not in left_out]
    if unclear:
        name = str(images[unclear[0]].get("file_name", unclear[0]))
        problems.append(Problem("error", UNCLEAR, file, "", name, MENDS[UNCLEAR], len(unclear)))
    return CocoAnnotations(
        file,
        images,
        categories,
        _Records(own[rows], annotations.odd, rows, images, ids, image),
        image,
        category[rows],
        box[rows],
        area[rows],
        crowd[rows],
        plain[rows],
        np.array([rejected[image_id] for image_id in images], dtype=np.int64),
        first,
        left_out.union(unclear),
        set(unclear),
        problems,
    )


def _twice(ids: NDArray[np.int64], odd: Mapping[int, Any]) -> list[int]:
    """The ids that more than one annotation has; the records in `odd` have theirs themselves."""
    others = [whole(record.get("id")) for record in odd.values() if isinstance(record, Mapping)]
    there = np.array([each for each in others if each is not None], dtype=np.int64)
    found, times = np.unique(np.append(np.delete(ids, list(odd)), there), return_counts=True)
    twice: list[int] = found[times > 1].tolist()
    return twice


def _found(keys: NDArray[np.int64], places: Mapping[int | None, int]) -> NDArray[np.int64]:
    """The place of each key; -1 where it has none."""
    known, values = (np.fromiter(part, np.int64, len(places)) for part in (places, places.values()))
    order = np.argsort(known)
    at = np.searchsorted(known, keys, sorter=order)
    return np.where(np.append(known[order], 0)[at] == keys, np.append(values[order], -1)[at], -1)


def corners_of(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """The corners x1 y1 x2 y2 of boxes x y width height [n, 4]."""
    with np.errstate(all="ignore"):  # of numbers that `judge_box` refuses
        return np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)


def _record(
    annotation: Mapping[str, Any], place: int, images: Mapping[int, Any], image_id: int | None = None
) -> str:
    """How errors name the annotation at a place, with the name of its image where it has one."""
    record = f"annotation id {shown(annotation['id'])}" if "id" in annotation else f"annotations[{place}]"
    return record if image_id is None else f"{record} of '{images[image_id].get('file_name', image_id)}'"


@dataclass(frozen=True)
class _Records(Sequence[str]):
    """How errors name the record of each box, made when one is asked for: of each box the record's id, or the record
    itself in `odd` by its place, and that of its image."""

    numbers: NDArray[np.int64]
    odd: Mapping[int, Any]
    where: NDArray[np.int64]
    images: Mapping[int, Any]
    ids: Sequence[int]
    which: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, row: Any) -> Any:
        place = int(self.where[row])
        annotation = self.odd.get(place, {"id": int(self.numbers[row])})
        return _record(annotation, place, self.images, self.ids[int(self.which[row])])


def _images(
    records: Sequence[Any], report: Callable[..., None]
) -> tuple[dict[int, Mapping[str, Any]], dict[int, list[float]], dict[int | None, int], set[int], set[int]]:
    """The record of each image by its id; its width and height, infinite where they are not known; the id that each id
    stands for, which is another one's where both records name one picture; the ids that are left out; and those that
    stand for more than one record."""
    images: dict[int, Mapping[str, Any]] = {}
    sizes: dict[int, list[float]] = {}
    first: dict[int | None, int] = {}
    named: dict[str | int, int] = {}
    paths: dict[int, str | int] = {}
    left_out, merged = set[int](), set[int]()
    for place, image in enumerate(records):
        image_id = whole(image.get("id")) if isinstance(image, Mapping) else None
        if image_id is None:
            report(
                "malformed image record",
                f"images[{place}]",
                image,
                "give it a whole number as its id, and a file_name",
            )
            continue
        name, size = image.get("file_name"), [side(image.get(key)) or math.inf for key in ("width", "height")]
        record = f"images[{place}] '{name}'"
        path = os.path.normpath(name_of(image)) if name_of(image) else image_id
        if paths.setdefault(image_id, path) != path:
            known = first[image_id]
            left_out |= {image_id, known, named.setdefault(path, known)}
            said = f"'{paths[image_id]}' has it, too: both are left out with all their boxes"
            report("duplicate image id", record, image_id, f"{said}: number each image once")
            continue
        other = first[image_id] = named.setdefault(path, image_id)
        if other == image_id and image_id not in images:
            images[image_id], sizes[image_id] = image, size
            continue
        merged.add(other)
        gone = other in left_out
        left_out |= {image_id} - {other}
        if gone:
            mend = f"image id {other} has its name, and is left out: so is this: number each image once"
            report("image listed twice", record, image_id, mend)
        elif size == sizes[other] or math.inf in (*size, *sizes[other]):
            mend = f"taken as image id {other}, with the boxes of both, each once"
            report("image listed twice", record, image_id, mend, "warning")
        else:
            left_out.add(other)
            mend = f"image id {other} has its name: both are left out: tell them apart by their names"
            report("image listed with two sizes", record, size, mend)
    return images, sizes, first, left_out, merged


def name_of(image: Mapping[str, Any]) -> str:
    """The `file_name` of an image's record, or LVIS's `coco_url`; empty where it has none."""
    name = image.get("file_name") or image.get("coco_url")
    return name if isinstance(name, str) else ""


def crowd_of(annotation: Mapping[str, Any]) -> bool | None:
    """Whether an annotation is a crowd region, neither object nor background; None where a flag cannot be read."""
    flags = [flag(annotation.get(key)) for key in CROWD]
    return None if None in flags else any(flags)


def box_of(annotation: Mapping[str, Any]) -> list[float] | None:
    """The numbers of an annotation's `bbox`, or where it has none those of the box around its polygons."""
    written = annotation.get("bbox")
    box = numbers(written)
    return _around(annotation.get("segmentation")) if written is None or box == [] else box


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
