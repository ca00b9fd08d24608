"""Finding out which format a data set has, and reading one split of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ghmdet.data import coco, voc, yolo
from ghmdet.data.layout import SPLITS, split_names
from ghmdet.data.records import DetectionData
from ghmdet.data.values import shown
from ghmdet.errors import DataError

FORMATS: dict[str, Any] = {"COCO": coco, "VOC": voc, "YOLO": yolo}
"""Each a module: LOOKED_FOR says what its folders hold, find_splits finds their splits, read_split reads one."""


def detect_format(path: str | Path) -> tuple[str, dict[str, Any]]:
    """The format of a data set (a folder, a COCO json file or a YOLO data.yaml) and where its splits lie, by name.

    Raises DataError when nothing is there, no format fits, or more than one does.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder: check the path")
    by_suffix = {".json": "COCO", ".yaml": "YOLO", ".yml": "YOLO"}
    with _disk_errors(path):
        if path.is_file():
            name = by_suffix.get(path.suffix.lower())
            if name is None:
                raise DataError(f"{path}: no data set: give a folder, a COCO .json file or a YOLO data.yaml")
            return name, FORMATS[name].find_splits(path)
        found = {name: splits for name, format in FORMATS.items() if (splits := format.find_splits(path))}
    if not found:
        looked_for = "; ".join(f"{name}: {format.LOOKED_FOR}" for name, format in FORMATS.items())
        raise DataError(f"{path}: no data set recognised: looked for {looked_for}")
    if len(found) > 1:
        both = " and ".join(f"{name} ({', '.join(splits)})" for name, splits in found.items())
        raise DataError(f"{path}: ambiguous, holds {both}: give the COCO .json or YOLO data.yaml file itself")
    return next(iter(found.items()))


def find_split(path: Path, splits: dict[str, Any], split: str) -> tuple[str, Any]:
    """The name and place of a split among those that `detect_format` found; raises DataError when it is not there.

    A json file whose name tells no split is read for any.
    """
    if path.is_file() and not set(splits) & set(SPLITS):
        return next(iter(splits.items()))
    for name in split_names(split):
        if name in splits:
            return name, splits[name]
    raise DataError(
        f"{path}: no split '{split}': splits found: {', '.join(sorted(splits))}: choose one of them"
    )


def read_split(
    format: str, path: Path, split: str, place: Any, classes: Sequence[str] | None = None
) -> DetectionData:
    """One split as the reader of its format gives it, maybe without a box; raises as `read_data` does."""
    with _disk_errors(path):
        data: DetectionData = FORMATS[format].read_split(path, split, place, classes)
    return data


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a name that is too long for the disk, a folder that may not be read
        raise DataError(
            f"{path}: {error.strerror}: {shown(error.filename)}: correct the name or its permissions"
        ) from None


def no_usable_box(data: DetectionData) -> str | None:
    """What makes a split an empty data set, in words; None when it has a box that is no crowd region."""
    crowd = int(data.records.crowd.sum())
    if crowd < len(data.records.crowd):
        return None
    aside = f" ({crowd} crowd regions are not trained on)" if crowd else ""
    return f"split {data.split} has {len(data.records)} images and no usable box{aside}"


def read_data(
    path: str | Path, split: str = "train", *, classes: Sequence[str] | None = None
) -> DetectionData:
    """Read one split of a COCO, Pascal VOC or YOLO data set; the format is detected.

    path: a folder, a COCO .json file or a YOLO data.yaml. A json file is the split that its name says; another split is
    the file beside it that is named alike (instances_val.json for instances_train.json). A json file whose name says
    none of train, val, valid, validation and test is read for any. split: val, valid and validation are one name.
    classes: the order of the classes (a validation set takes the training set's); a box of another class is then a
    problem of kind "unknown class".

    Bad records are left out and kept in `.problems`. Raises DataError (naming the file, the record and the mend)
    when the path, format or split is not there, the file cannot be parsed, or no usable box remains.
    """
    path = Path(path)
    format, splits = detect_format(path)
    name, place = find_split(path, splits, split)
    data = read_split(format, path, name, place, classes)
    if empty := no_usable_box(data):
        first = f" (the first rejected: {data.problems[0]})" if data.problems else ""
        raise DataError(f"{data.root}: an empty data set: {empty}{first}: add boxes or correct them")
    return data
