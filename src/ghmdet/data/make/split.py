"""A training and a validation part of a data set that has only one, as annotations of its own pictures."""

import json
from collections.abc import Callable
from pathlib import Path

from ghmdet.data.images import require_images
from ghmdet.data.make.folder import new_set, write_annotations
from ghmdet.data.read import DataSet, read_data
from ghmdet.data.share import share_out
from ghmdet.errors import DataError, Range
from ghmdet.files import write_atomic
from ghmdet.words import many

MARKER = "split.json"


def split(
    data: Path,
    out: Path,
    /,
    *,
    val_share: float = 0.2,
    split: str = "train",
    say: Callable[[str], None] = print,
) -> None:
    """Make a training and a validation part of a data set that has only one.

    Pictures that look alike come into the same part. They stay where they are; OUT gets COCO annotations that name them
    by their absolute paths.

    Args:
        data: Folder of the data set, or its COCO .json or YOLO data.yaml.
        out: Folder of the new one, new or empty; one that `split` made before is replaced.
        val_share: Share of the pictures, and of each class's boxes, that is for validation, from .01 to .9.
        split: Part to divide.
        say: Takes each line meant for the user.

    Raises:
        GhmdetError: a share out of range.
        DataError: a set that cannot be read, too few pictures, a picture that is missing or damaged, or an `out` that
            holds something else.
    """
    Range(0.01, 0.9).check("val_share", val_share)
    source = DataSet(data)
    if data.resolve().is_relative_to(out.resolve()):
        raise DataError(f"{out}: holds the data set to be split: give another folder")
    part = read_data(data, split)
    home = Path(source.tree.root).resolve()
    for place in (home.parent if home.name.lower() == "annotations" else home, part.records.root.resolve()):
        if out.resolve().is_relative_to(place):
            raise DataError(
                f"{out}: lies inside the data set, and would be read with it: give a folder outside {place}"
            )
    require_images(part)
    train, val = share_out(part, val_share)
    told = {"made by": "ghmdet data split", "data": str(data), "split": part.split, "val_share": val_share}
    with new_set(out, MARKER, "data split") as folder:
        for name, each in (("train", train), ("val", val)):
            write_annotations(folder, name, each.to_coco(absolute=True))
        write_atomic(folder / MARKER, json.dumps(told, indent=1) + "\n")
    counts = "; ".join(
        f"{name}: {many(len(each.records), 'picture')}, "
        + ", ".join(f"{label} {count}" for label, count in each.boxes_per_class().items())
        for name, each in (("train", train), ("val", val))
    )
    for line in (part.describe(), f"{out}: {counts}", train.problems[-1].value):
        say(line)
    if others := [name for name in source.splits if name != part.split]:
        say(f"not in it: split {', '.join(others)} of {data}")
