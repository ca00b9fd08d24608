"""A training and a validation part of a data set that has only one, as annotations of its own pictures."""

from __future__ import annotations

import json
from pathlib import Path

from ghmdet.data.images import require_images
from ghmdet.data.make.folder import new_set, write_annotations
from ghmdet.data.read import DataSet, read_data
from ghmdet.data.share import share_out
from ghmdet.errors import DataError, Range

MARKER = "split.json"


def split(data: Path | str, out: Path | str, *, val_share: float = 0.2, split: str = "train") -> str:
    """Write COCO annotations of two parts of a split, `train` and `val` (see `share_out`), and tell of them.

    The pictures stay where they are: the annotations name them by their absolute paths.

    data: a set that `read_data` reads. out: a new or empty folder, or one that this made before. val_share: of the
    pictures, from .01 to .9. split: which to divide.

    Raises GhmdetError for a share out of range; DataError for a set that cannot be read, too few pictures, a picture
    that is missing or damaged, or an `out` that holds something else.
    """
    Range(0.01, 0.9).check("val_share", val_share)
    data, out = Path(data), Path(out)
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
        (folder / MARKER).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    counts = "; ".join(
        f"{name}: {len(each.records)} pictures, "
        + ", ".join(f"{label} {count}" for label, count in each.boxes_per_class().items())
        for name, each in (("train", train), ("val", val))
    )
    lines = [part.describe(), f"{out}: {counts}", train.problems[-1].value]
    if others := [name for name in source.splits if name != part.split]:
        lines.append(f"not in it: split {', '.join(others)} of {data}")
    return "\n".join(lines)
