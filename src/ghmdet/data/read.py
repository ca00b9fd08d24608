"""Finding out which format a data set has, and reading one split of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghmdet.data import coco, voc, yolo
from ghmdet.data.layout import pick_split
from ghmdet.data.records import DetectionData
from ghmdet.errors import DataError


@dataclass(frozen=True)
class Format:
    """A format: what its folders hold, how its splits are found, and how one is read."""

    looked_for: str
    find_splits: Callable[[Path], Mapping[str, Any]]
    read_split: Callable[[Path, str, Any, Sequence[str] | None], DetectionData]


FORMATS = {
    "COCO": Format(coco.LOOKED_FOR, coco.find_splits, coco.read_split),
    "VOC": Format(voc.LOOKED_FOR, voc.find_splits, voc.read_split),
    "YOLO": Format(yolo.LOOKED_FOR, yolo.find_splits, yolo.read_split),
}


def detect_format(path: str | Path) -> tuple[str, dict[str, Any]]:
    """The format of a data set (a folder, a COCO json file or a YOLO data.yaml) and its splits by name.

    Raises DataError when nothing is there, no format fits, or more than one does.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder: check the path")
    if path.is_file():
        if path.suffix.lower() == ".json":
            return "COCO", dict(coco.find_splits(path))
        if path.suffix.lower() in (".yaml", ".yml"):
            return "YOLO", dict(yolo.find_splits(path))
        raise DataError(f"{path}: no data set: give a folder, a COCO .json file or a YOLO data.yaml")
    found = {name: dict(splits) for name, format in FORMATS.items() if (splits := format.find_splits(path))}
    if not found:
        looked_for = "; ".join(f"{name}: {format.looked_for}" for name, format in FORMATS.items())
        raise DataError(f"{path}: no data set recognised: looked for {looked_for}")
    if len(found) > 1:
        both = " and ".join(f"{name} ({', '.join(splits)})" for name, splits in found.items())
        raise DataError(f"{path}: ambiguous, holds {both}: give the COCO .json or YOLO data.yaml file itself")
    return next(iter(found.items()))


def find_split(path: Path, splits: Mapping[str, Any], split: str) -> tuple[str, Any]:
    """The name and source of a split among those that `detect_format` found; raises DataError when it is not there."""
    if path.is_file() and path.suffix.lower() == ".json":
        file = coco.file_of(path, split)
        return coco.split_name(file), file
    name = pick_split(splits, split, path)
    return name, splits[name]


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
    name, splits = detect_format(path)
    found, source = find_split(path, splits, split)
    data = FORMATS[name].read_split(path, found, source, classes)
    if empty := no_usable_box(data):
        first = f" (the first rejected: {data.problems[0]})" if data.problems else ""
        raise DataError(f"{data.root}: an empty data set: {empty}{first}: add boxes or correct them")
    return data
