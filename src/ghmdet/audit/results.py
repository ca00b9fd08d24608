"""Anyone's detections in the ids of the part of a data set that they are on, and how well they agree with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ghmdet.data import DetectionData, read_data
from ghmdet.data.annotations import load_json
from ghmdet.data.read import DataSet
from ghmdet.errors import DataError
from ghmdet.evaluation.score import score

SAMPLE = 1000  # pictures that a detector's AP50 is taken from


def sample(data: DetectionData) -> DetectionData:
    """Every so manieth picture, so many that AP50 is known well enough: the detections of all would fill the memory."""
    count = len(data.records)
    return replace(data, records=data.records.take(np.arange(0, count, -(-count // SAMPLE))))


def ap50(results: Sequence[Mapping[str, Any]], data: DetectionData) -> float:
    """AP50 of detections on a sample of the pictures; 0 where it has no boxes."""
    part = sample(data)
    inside = set(part.records.image_ids.tolist())
    return score(part.to_coco(), [one for one in results if one["image_id"] in inside]).AP50 or 0.0


def by_results(
    data: Path, file: Path, split: str | None, say: Callable[[str], None]
) -> tuple[DetectionData, list[dict[str, Any]]]:
    """The part that is judged, and the detections in its ids; those of pictures that other parts have are left out.

    By default the part with the most of their pictures, and of those with as many the one whose labels fit best.
    """
    content = load_json(file)
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise DataError(f"{file}: no COCO results: expected a list of detections")
    parts, wrong = list[DetectionData](), list[DataError]()
    every = sorted(DataSet(data).splits, key=lambda name: name != "train")
    for name in [split, *(each for each in every if each != split)] if split else every:
        try:
            parts.append(read_data(data, name))
        except DataError as error:
            if name == split:
                raise
            wrong.append(error)
    known = {part.records.name(place) for part in parts for place in range(len(part.records))}
    fitting = list[tuple[DetectionData, list[dict[str, Any]]]]()
    for part in parts[:1] if split else parts:
        try:
            fitting.append((part, _in_ids_of(part, [dict(one) for one in content], file, known)))
        except DataError as error:
            wrong.append(error)
    if not fitting:
        raise DataError("; ".join(map(str, wrong)))

    def fit(one: tuple[DetectionData, list[dict[str, Any]]]) -> tuple[int, float]:
        return len({each["image_id"] for each in one[1]}), ap50(one[1], one[0])

    part, detections = max(fitting, key=fit) if len(fitting) > 1 else fitting[0]
    if left := len(content) - len(detections):
        say(
            f"{file}: {left} of {len(content)} detections left out: other parts of the data set have their pictures"
        )
    return part, detections


def _in_ids_of(
    data: DetectionData, content: list[dict[str, Any]], file: Path, known: set[str]
) -> list[dict[str, Any]]:
    """Detections; where they name their pictures and classes, with the ids that `data` has for those.

    Ids alone say little: another tool, or the same data in another format, may number differently. Detections whose
    picture is among `known`, the names of all parts, and not in `data` are left out, unless that is all of them.
    """
    whole: dict[str, set[int]] = {}
    bare: dict[str, set[int]] = {}
    for place, number in enumerate(data.records.image_ids.tolist()):
        name = Path(data.records.name(place))
        whole.setdefault(name.as_posix(), set()).add(number)
        bare.setdefault(name.name, set()).add(number)
    if content and all(isinstance(one.get("file_name"), str) for one in content):
        others = known - whole.keys()
        ends = {Path(name).name for name in others} - bare.keys()
        elsewhere = others | {
            name for name in {one["file_name"] for one in content} - whole.keys() if Path(name).name in ends
        }
        content = [one for one in content if one["file_name"] not in elsewhere] or content
    classes = {name: {number} for name, number in zip(data.classes, data.category_ids, strict=True)}
    for key, says, ids_of in (("image_id", "file_name", whole), ("category_id", "category_name", classes)):
        if not content or not all(isinstance(one.get(says), str) for one in content):
            continue
        for one in content:
            found = ids_of.get(one[says]) or (
                bare.get(Path(one[says]).name, set()) if ids_of is whole else set()
            )
            if len(found) != 1:
                there = f"{'more than one' if found else 'no'} {'picture' if ids_of is whole else 'class'}"
                raise DataError(
                    f"{file}: '{says}' is '{one[says]}', and split {data.split} of {data.root} has {there} of that"
                    f" name: give detections on its pictures (ghmdet val CHECKPOINT {data.root} --split"
                    f" {data.split} writes them), another --split, or leave the names out to go by the ids"
                )
            one[key] = next(iter(found))
    ids = set(data.records.image_ids.tolist())
    for place, one in enumerate(content):
        if isinstance(number := one.get("image_id"), int) and number not in ids:
            raise DataError(
                f"{file}: results[{place}]: 'image_id' is {number}, and split {data.split} of {data.root} has no"
                f" picture of that id: give detections on its pictures (ghmdet val CHECKPOINT {data.root} --split"
                f" {data.split} writes them), or another --split"
            )
    return content
