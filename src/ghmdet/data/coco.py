"""Reader of COCO JSON: annotations/instances_{split}.json, annotations/{split}.json, {split}/_annotations.coco.json."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghmdet.data.collector import MENDS, Collector, flaw
from ghmdet.data.layout import SPLITS, checked_classes, class_name, folder_of, read_text
from ghmdet.data.records import DetectionData, Problem, Severity
from ghmdet.data.values import flag, number, numbers, shown, whole
from ghmdet.errors import DataError

LOOKED_FOR = "annotations/instances_{split}.json, annotations/{split}.json or {split}/_annotations.coco.json"
ROBOFLOW = "_annotations.coco.json"


def split_name(file: Path) -> str:
    """The split that a COCO file holds, from its name.

    >>> split_name(Path("annotations/instances_val2017.json")), split_name(Path("valid/_annotations.coco.json"))
    ('val', 'valid')
    """
    if file.name == ROBOFLOW:
        return file.absolute().parent.name
    return re.sub(r"(19|20)\d\d$", "", file.stem.removeprefix("instances_")).rstrip("_-") or file.stem


def find_splits(root: Path) -> dict[str, Path]:
    """The annotation file of each split in a COCO folder, or of a file and those beside it; none when it is no COCO.

    Raises DataError when two files are of one split, as COCO's own of 2014 and 2017 are.
    """
    if root.is_file():
        own = split_name(root)
        beside = {split: _beside(root, split) for split in SPLITS if own in SPLITS and split != own}
        return {own: root} | {split: file for split, file in beside.items() if file.is_file()}
    files = sorted(root.glob("annotations/instances_*.json")) or sorted(root.glob("annotations/*.json"))
    files = files or sorted(root.glob(f"*/{ROBOFLOW}")) or sorted(root.glob(ROBOFLOW))
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(split_name(file), file)
        if other != file:
            raise DataError(
                f"{root}: two files of split '{split_name(file)}': {other.relative_to(root)} and "
                f"{file.relative_to(root)}: give the .json file itself or move one of them away"
            )
    return found


def _beside(file: Path, split: str) -> Path:
    """The file that is to another split what `file` is to its own."""
    if file.name == ROBOFLOW:
        return file.absolute().parent.parent / split / ROBOFLOW
    return file.with_name(file.name.replace(split_name(file), split, 1))


def image_folders(file: Path) -> list[Path]:
    """Where the pictures of an annotation file may lie, the likeliest first."""
    folder = file.absolute().parent
    if file.name == ROBOFLOW:
        return [folder]
    root = folder.parent if folder.name.lower() == "annotations" else folder
    split = split_name(file)
    names = dict.fromkeys((split, file.stem.removeprefix("instances_")))
    nested = [parent / name for parent in (root / "images", root) for name in names]
    return [root / "images", *nested, *sorted(root.glob(f"{split}20[0-9][0-9]")), root, folder]


def load_json(file: Path) -> Any:
    """The content of a JSON file; raises DataError naming it when it is missing, empty or no JSON."""
    text = read_text(file)
    try:
        content = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # maybe half a character, which nothing can print
            content = json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
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
    crowd region.
    """

    file: str
    images: dict[int, Mapping[str, Any]]
    categories: dict[int, str]
    record: list[str]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    box: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    problems: list[Problem]


def read_annotations(source: Path | str | Mapping[str, Any], *, boxes: bool = True) -> CocoAnnotations:
    """Read COCO annotations, a file or its content: what is accepted here is accepted by training and by scoring.

    Text that spells a number is that number. `area`, `iscrowd` and a category's `name` may be missing or null. A
    record that cannot be read is left out and becomes a problem. What only a data set needs, names and sizes of
    pictures and boxes inside them, is for `read_split` to look at. Without `boxes` the list `annotations` is not read
    and may be missing.

    Raises DataError when it is no COCO annotations, lists no image or no category, or a category has no id of its own.
    """
    lists = ("images", "annotations", "categories") if boxes else ("images", "categories")
    content, file = _content(source, lists)
    problems: list[Problem] = []

    def report(kind: str, record: str, value: object, mend: str, severity: Severity = "error") -> None:
        problems.append(Problem(severity, kind, file, record, shown(value), mend))

    images: dict[int, Mapping[str, Any]] = {}
    for place, image in enumerate(content["images"]):
        image_id = whole(image.get("id")) if isinstance(image, Mapping) else None
        if image_id is None:
            report("malformed image record", f"images[{place}]", image, "give it an id and a file_name")
        elif image_id in images:
            record = f"images[{place}] '{image.get('file_name')}'"
            report(
                "duplicate image id", record, image_id, "number each image once (its first record is kept)"
            )
        else:
            images[image_id] = image
    categories = _categories(content, file)
    places: dict[int | None, int] = {image_id: place for place, image_id in enumerate(images)}
    names = [f"'{image.get('file_name', image_id)}'" for image_id, image in images.items()]
    rows: list[tuple[Any, ...]] = []
    for place, annotation in enumerate(content["annotations"] if boxes else ()):
        record = f"annotations[{place}]"
        if not isinstance(annotation, Mapping):
            report("malformed annotation", record, annotation, "write an object")
            continue
        if "id" in annotation:
            record = f"annotation id {shown(annotation['id'])}"
        image_place = places.get(whole(annotation.get("image_id")))
        if image_place is None:
            mend = "name an image of the list 'images' or remove it"
            report("unknown image id", record, annotation.get("image_id"), mend)
            continue
        record += f" of {names[image_place]}"
        category, bbox, area = (annotation.get(key) for key in ("category_id", "bbox", "area"))
        box = numbers(bbox)
        if bbox is None or box == []:
            box = _around(annotation.get("segmentation"))
        crowd, square = flag(annotation.get("iscrowd")), number(area)
        if whole(category) not in categories:
            report("unknown class", record, category, "name a category of the list 'categories'")
        elif box is None or len(box) != 4:
            report("malformed box", record, bbox, "write four numbers: x, y, width, height")
        elif kind := flaw((box[0], box[1], box[0] + box[2], box[1] + box[3])):
            report(kind, record, bbox, MENDS[kind])
        elif crowd is None:
            report("malformed iscrowd", record, annotation["iscrowd"], "write 0 or 1")
        else:
            if area is not None and (square is None or square < 0 or math.isinf(square)):
                report("malformed area", record, area, "taken from the box", "warning")
                square = None
            square = math.nan if square is None else square
            rows.append((record, image_place, whole(category), box, square, crowd))
    rows.sort(key=lambda row: row[1])
    column = list(zip(*rows, strict=True)) or [()] * 6
    return CocoAnnotations(
        file,
        images,
        categories,
        list(column[0]),
        np.array(column[1], dtype=np.int64),
        np.array(column[2], dtype=np.int64),
        np.array(column[3], dtype=np.float64).reshape(-1, 4),
        np.array(column[4], dtype=np.float64),
        np.array(column[5], dtype=np.bool_),
        problems,
    )


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
        content, file = load_json(Path(source)), str(source)
    if isinstance(content, list):
        raise DataError(f"{file}: a JSON list, as COCO results are: annotations are {wanted}")
    if not isinstance(content, Mapping):
        raise DataError(f"{file}: no COCO annotations: expected {wanted}")
    for key in lists:
        if not isinstance(content.get(key), (list, tuple)):
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


def read_split(root: Path, split: str, file: Path, classes: Sequence[str] | None = None) -> DetectionData:
    """Read one COCO file; classes are ordered by category id, or as given by `classes`.

    Raises DataError when the file is no COCO annotation file; single bad records become problems.
    """
    read = read_annotations(file)
    classes = checked_classes(read.categories.values(), file) if classes is None else tuple(classes)
    names = [name for image in read.images.values() if isinstance(name := image.get("file_name"), str)]
    folder = folder_of(names, image_folders(file))
    collect = Collector(folder, classes, read.problems)
    collect.file = file
    ends = np.searchsorted(read.image, np.arange(len(read.images)), side="right").tolist()
    boxes = zip(read.record, read.category.tolist(), read.box.tolist(), read.area, read.crowd, strict=True)
    for (image_id, image), start, end in zip(read.images.items(), [0, *ends], ends, strict=False):
        own = list(itertools.islice(boxes, end - start))
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            mend = "give it an id and a file_name"
            collect.report("malformed image record", f"image id {image_id}", shown(image), mend)
        elif collect.add_image(image_id, name, (image.get("width"), image.get("height")), f"image '{name}'"):
            for record, category, (x, y, w, h), area, crowd in own:
                box, value = (x, y, x + w, y + h), shown([x, y, w, h])
                collect.add_box(box, read.categories[category], record, value, crowd=crowd, area=area)
    where = file if root.is_file() else root  # the file given may be that of another split
    return collect.pack(where, "COCO", split, _category_ids(classes, read.categories))
