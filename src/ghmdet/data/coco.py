"""Reader of COCO JSON: annotations/instances_{split}.json, annotations/{split}.json, {split}/_annotations.coco.json."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ghmdet.data.collector import Collector, plain
from ghmdet.data.images import image_size, reason
from ghmdet.data.layout import checked_classes, folder_of, read_text, split_names
from ghmdet.data.records import VALIDATION_NAMES, DetectionData
from ghmdet.errors import DataError

LOOKED_FOR = "annotations/instances_{split}.json, annotations/{split}.json or {split}/_annotations.coco.json"
ROBOFLOW = "_annotations.coco.json"
SPLITS = ("train", *VALIDATION_NAMES, "test")  # the names in a file's name that tell its split


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
        beside = {split: _beside(root, split) for split in SPLITS} if own in SPLITS else {}
        return {own: root} | {
            split: file for split, file in beside.items() if split != own and file.is_file()
        }
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


def file_of(file: Path, split: str) -> Path:
    """The annotation file of a split, given that of another: instances_val.json beside instances_train.json.

    A file of that split, or whose name tells none, is itself meant. Raises DataError when no such file is there.
    """
    own = split_name(file)
    if own not in SPLITS or own in split_names(split):
        return file
    beside = [_beside(file, name) for name in split_names(split)]
    found = next((other for other in beside if other.is_file()), None)
    if found is None:
        raise DataError(
            f"{file}: holds split '{own}', not '{split}': looked for {', '.join(map(str, beside))}: "
            "write one of them, or give the folder of the data set"
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
    split, dated = split_name(file), file.stem.removeprefix("instances_")
    names = dict.fromkeys((split, dated))
    years = sorted(root.glob(f"{split}20[0-9][0-9]"))
    return [
        root / "images",
        *(root / "images" / name for name in names),
        *(root / name for name in names),
        *years,
        root,
        folder,
    ]


def _load(file: Path) -> dict[str, Any]:
    text = read_text(file)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}: invalid JSON at line {error.lineno}, column {error.colno} ({error.msg}): write the file again"
        ) from None
    except RecursionError:
        raise DataError(f"{file}: invalid JSON (nested too deep): write the file again") from None
    if isinstance(content, list):
        raise DataError(
            f"{file}: a JSON list, as COCO results are: annotations are an object with images, annotations, categories"
        )
    if not isinstance(content, dict):
        raise DataError(
            f"{file}: no COCO annotations: expected an object with images, annotations, categories"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{file}: no list '{key}': COCO annotations have images, annotations, categories")
    if not content["images"]:
        raise DataError(f"{file}: an empty data set: the list 'images' names none: add images")
    return content


def _whole(value: object) -> int | None:
    """The value if it is a whole number (an int, or a float without a fraction), else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return None
    return int(value) if abs(value) < 2**63 and value == int(value) else None


def _categories(content: dict[str, Any], file: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for place, category in enumerate(content["categories"]):
        number = _whole(category.get("id")) if isinstance(category, dict) else None
        if number is None or "name" not in category:
            raise DataError(f"{file}: categories[{place}]: no whole-number id and name: give it both")
        if number in names:
            raise DataError(
                f"{file}: categories[{place}]: id {number} is there twice: number each category once"
            )
        names[number] = str(category["name"]).strip()
    ordered = dict(sorted(names.items()))
    checked_classes(ordered.values(), file)
    return ordered


def _category_ids(classes: Sequence[str], categories: dict[int, str]) -> tuple[int, ...]:
    """The file's id of each class; a class that the file does not have takes the next free one."""
    known = {name: number for number, name in categories.items()}
    free = max(categories, default=0)
    numbers = []
    for name in classes:
        if name not in known:
            free += 1
        numbers.append(known.get(name, free))
    return tuple(numbers)


def read_split(root: Path, split: str, file: Path, classes: Sequence[str] | None = None) -> DetectionData:
    """Read one COCO file; classes are ordered by category id, or as given by `classes`.

    Raises DataError when the file is no COCO annotation file; single bad records become problems.
    """
    content = _load(file)
    categories = _categories(content, file)
    classes = tuple(classes) if classes is not None else tuple(categories.values())
    label_of = {number: classes.index(name) for number, name in categories.items() if name in classes}
    collect = Collector()

    annotations: dict[int | str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for place, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict):
            collect.report(
                "malformed annotation",
                file,
                f"annotations[{place}]",
                repr(annotation)[:40],
                "write an object",
            )
            continue
        owner = annotation.get("image_id")
        number = _whole(owner)
        annotations[repr(owner) if number is None else number].append((place, annotation))

    names = [image.get("file_name") for image in content["images"] if isinstance(image, dict)]
    folder = folder_of([name for name in names if isinstance(name, str)], image_folders(file))
    seen: set[int] = set()
    for place, image in enumerate(content["images"]):
        record = f"images[{place}]"
        image_id = _whole(image.get("id")) if isinstance(image, dict) else None
        name = image.get("file_name") if isinstance(image, dict) else None
        if image_id is None or not isinstance(name, str) or not name:
            collect.report(
                "malformed image record", file, record, repr(image)[:60], "give it an id and a file_name"
            )
            continue
        if image_id in seen:
            mend = "number each image once (its first record is kept)"
            collect.report("duplicate image id", file, f"{record} '{name}'", str(image_id), mend)
            continue
        seen.add(image_id)
        own = annotations.pop(image_id, [])
        width, height = _whole(image.get("width")), _whole(image.get("height"))
        if not width or not height or width < 0 or height < 0:
            try:
                width, height = image_size(folder / name)
            except DataError as error:
                collect.report(
                    "image without a size", file, f"{record} '{name}'", "", reason(error, folder / name)
                )
                continue
        collect.add_image(image_id, name, width, height)
        for row, annotation in own:
            _add_box(collect, annotation, row, name, label_of, categories, file)

    for left in annotations.values():  # their image was rejected above, or is nowhere in the file
        for place, annotation in left:
            value = repr(annotation.get("image_id"))
            mend = "name an image of the list 'images' or remove it"
            collect.report("unknown image id", file, _record(annotation, place), value, mend)
    where = file if root.is_file() else root  # the file given may be that of another split
    return collect.pack(where, folder, "COCO", split, classes, _category_ids(classes, categories))


def _record(annotation: dict[str, Any], place: int) -> str:
    return f"annotation id {annotation['id']}" if "id" in annotation else f"annotations[{place}]"


def _add_box(
    collect: Collector,
    annotation: dict[str, Any],
    place: int,
    image_name: str,
    label_of: dict[int, int],
    categories: dict[int, str],
    file: Path,
) -> None:
    record = f"{_record(annotation, place)} of '{image_name}'"
    category = annotation.get("category_id")
    number = _whole(category)
    if number not in label_of:
        name = categories.get(number) if number is not None else None
        value = f"{category!r} ('{name}')" if name is not None else repr(category)
        mend = (
            "not among the classes asked for"
            if name is not None
            else "name a category of the list 'categories'"
        )
        collect.report("unknown class", file, record, value, mend)
        return
    bbox = annotation.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(v) in (int, float) for v in bbox):
        collect.report(
            "malformed box", file, record, repr(bbox)[:60], "write four numbers: x, y, width, height"
        )
        return
    x, y, w, h = bbox
    area = annotation.get("area")
    collect.add_box(
        (x, y, x + w, y + h),
        label_of[number],
        file=file,
        record=record,
        value=plain(bbox),
        crowd=bool(annotation.get("iscrowd", 0)),
        area=area if isinstance(area, (int, float)) else None,
    )
