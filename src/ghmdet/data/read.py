"""Finding out which format a data set has, and reading one split of it."""

import dataclasses
import gc
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ghmdet.data import coco, yolo
from ghmdet.data.labelled import LABELME, VOC
from ghmdet.data.layout import (
    REPLACED,
    REPLACING,
    SPLITS,
    apart,
    namesakes,
    part_of,
    split_called,
    split_names,
)
from ghmdet.data.others import other_format
from ghmdet.data.records import VALIDATION_NAMES, DetectionData, Problem
from ghmdet.data.tree import Tree, ending, looks_like_label, readable
from ghmdet.data.values import shown
from ghmdet.errors import DataError
from ghmdet.words import many

FORMATS: dict[str, Any] = {"COCO": coco, "VOC": VOC, "YOLO": yolo, "LabelMe": LABELME}
"""Each says what its folders hold (LOOKED_FOR), finds where splits lie (find_splits), names the pictures and labels of
a split without reading its boxes (files), and reads it (read_split)."""
LAYOUTS = {
    ".txt": ("YOLO", "data.yaml or classes.txt with the names of the classes, or labels beside the pictures"),
    ".xml": ("VOC", "a folder Annotations, or {split}, directly below: give the folder that holds them"),
    ".json": ("COCO", "a name that says the split (train.json): rename it, or give the .json file itself"),
}
"""The nearest layout by the ending of the label files that are there, and what it lacks."""
NESTED = 100  # folders that are looked into for a whole data set
FILES = {".json": "COCO", ".yaml": "YOLO", ".yml": "YOLO", ".data": "YOLO"}


class DataSet:
    """A data set: a folder, a COCO json file, or the file that names a YOLO set's classes and splits.

    format: its name. splits: where each split lies; a folder's only split is called train where its own name says
    none, as CVAT's "default". called: that name. Raises DataError when nothing is there, no format fits, or more than
    one does.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not os.path.exists(self.path):
            raise DataError(f"{path}: no such file or folder: check the path")
        self.tree, self.format, self.splits = Tree(self.path), "", dict[str, Any]()
        self.called: str | None = None
        root = os.path.abspath(self.tree.root)
        homes = (root, os.path.dirname(root))  # or its annotations/ were given
        if any(os.path.exists(os.path.join(home, REPLACED, REPLACING)) for home in homes):
            raise DataError(
                f"{path}: was being made anew when that was killed: give the command for that again"
            )
        with _reading(self.path):
            if not self.tree.whole:
                name = FILES.get(ending(str(path)))
                if name is None:
                    raise DataError(
                        f"{path}: no data set: give a folder, a COCO .json file or a YOLO data.yaml"
                    )
                self.format, self.splits = name, FORMATS[name].find_splits(self.tree)
                return
            found = {
                name: splits for name, reader in FORMATS.items() if (splits := reader.find_splits(self.tree))
            }
            if not _whole(found) and (not found or _inside(self.tree)):
                raise DataError(_nearest(self.tree))
        if len(found) > 1:
            both = " and ".join(f"{name} ({', '.join(splits)})" for name, splits in found.items())
            raise DataError(
                f"{path}: ambiguous, holds {both}: give the COCO .json or YOLO data.yaml file itself"
            )
        ((self.format, self.splits),) = found.items()
        if len(self.splits) == 1 and not set(self.splits) & set(SPLITS):
            ((self.called, place),) = self.splits.items()
            self.splits = {"train": place}

    def find(self, split: str) -> str:
        """The name under which a split is there, by that name, its own or one that means it; raises DataError else.

        A json file that means no split is read for any.
        """
        if not self.tree.whole and not set(self.splits) & set(SPLITS):
            return next(iter(self.splits))
        for name in split_names("train" if split == self.called else split_called(split)):
            if name in self.splits:
                return name
        there = ", ".join(sorted(self.splits)) + (f" (or {self.called})" if self.called else "")
        twins = self._sharing(split)
        mend = f"{' and '.join(twins)} mean {part_of(split)}: name one so, or " if twins else ""
        mend += "choose one of them"
        if split_called(split) in VALIDATION_NAMES and "train" in self.splits:
            mend += f", or make one: ghmdet data split {shlex.quote(str(self.path))} NEW-FOLDER"
        raise DataError(f"{self.path}: no split '{split}': splits found: {there}: {mend}{_unread(self.tree)}")

    def others(self, name: str) -> list[str]:
        """The splits beside one that a copy of the data set has, too.

        Without those that a data.yaml only names, and VOC's trainval, which would hold again what the copy changes.
        """
        return [other for other in self.splits if other not in (name, "trainval") and self.is_there(other)]

    def is_there(self, split: str) -> bool:
        """Whether something of a split is there: a data.yaml may name folders that an export has not brought."""
        place = self.splits[split]
        return not isinstance(place, yolo.YoloSplit) or any(map(os.path.exists, place.images))

    def _sharing(self, split: str) -> list[str]:
        """The names here that mean one part with a split, where they stand for different places."""
        places = {name: place for name, place in self.splits.items() if part_of(name) == part_of(split)}
        return list(places) if len(set(places.values())) > 1 else []

    def read(self, name: str, classes: Sequence[str] | None = None) -> DetectionData:
        """A split by the name it has here, maybe without a box; else raises as `read_data` does.

        What no split uses is among the problems of the first one, and of those that are not for evaluation.
        """
        reader = FORMATS[self.format]
        with _reading(self.path):
            try:
                data: DetectionData = reader.read_split(self.tree, name, self.splits[name], classes)
            except DataError as error:
                raise DataError(f"{error}{other_format(self.tree, of=str(error))}") from None
            scanned = tuple(
                folder for part in self.splits.values() for folder in getattr(part, "folders", ())
            )
            data = dataclasses.replace(data, folders=scanned)
            told, where = list(data.problems), (str(data.root), f"split {name}")
            for place, folder in self.tree.elsewhere.pop(name, {}).items():
                mend = "taken, as no other has its name: correct the list if its boxes are not this one's"
                said = where[0], place, f"(listed in {folder}/)"
                told.append(Problem("warning", "picture in another folder", *said, mend))
            if barred := list(self.tree.barred.pop(name, {})):
                mend = "not taken for a missing one of its name: if it is meant, rename its folder or list it with it"
                said = where[0], where[1], f"({barred[0]}{', ...' if barred[1:] else ''})"
                told.append(Problem("warning", "picture in another part's folder", *said, mend, len(barred)))
            if twins := self._sharing(name):
                part = part_of(name)
                taken = next((one for one in split_names(part) if one in twins), "none")
                mend = f"of these {taken} is read as {part}: join them, or move the others away"
                named = (str(self.path), f"split {part}", ", ".join(twins))
                told.append(Problem("warning", "part of more than one name", *named, mend))
            for pair in namesakes(data.classes) if classes is None else ():
                boxes = (many(data.boxes_per_class()[one], "box/boxes") for one in pair)
                counts = (f"{one} ({count})" for one, count in zip(apart(*pair), boxes, strict=True))
                mend = "kept apart: give both one name if they are one class"
                told.append(
                    Problem("warning", "classes of nearly one name", *where, " and ".join(counts), mend)
                )
            if name != next(iter(self.splits)) and name in (*VALIDATION_NAMES, "test"):
                return dataclasses.replace(data, problems=tuple(told))
            for split in self.splits.keys() - {name}:
                with suppress(DataError):  # said where it is asked for
                    self.tree.used.update(reader.files(self.tree, split, self.splits[split]))
            above = Path(os.path.abspath(self.tree.root)).parents  # a home, or a whole disk
            folders = [
                folder
                for folder in sorted({os.path.dirname(file) for file in self.tree.used})
                if os.path.isdir(folder) and Path(os.path.abspath(folder)) not in above
            ]
            left = self.tree.left_over([self.tree.root] if self.tree.whole else folders)
        return dataclasses.replace(data, problems=(*told, *left))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names what a disk refuses; meanwhile no garbage is looked for, again and again, in all that is being read."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    except OSError as error:  # a name that is too long for the disk, a folder that may not be read
        raise DataError(
            f"{path}: {error.strerror}: {shown(error.filename)}: correct the name or its permissions"
        ) from None
    finally:
        if collects:
            gc.enable()


def _nearest(tree: Tree) -> str:
    """What a folder that no reader knows holds, and what is missing to the layout that it is nearest to."""
    pictures = len(tree.pictures(tree.root))
    labels = [path for path in tree.walk(tree.root) if looks_like_label(path)]
    by_ending = {
        end: [os.path.relpath(path, tree.root) for path in labels if ending(path) == end] for end in LAYOUTS
    }
    end, there = max(by_ending.items(), key=lambda item: len(item[1]))
    lines = [
        f"{tree.given}: no data set recognised: {many(pictures, 'picture')}, "
        + ", ".join(f"{many(len(paths), 'label file')} {each}" for each, paths in by_ending.items())
        + " at any depth"
    ]
    clue = _inside(tree) or other_format(tree)
    if there:
        name, missing = LAYOUTS[end]
        lines.append(f"nearest layout: {name} (first label file: {there[0]}): {FORMATS[name].LOOKED_FOR}")
        lines.append(f"missing: {missing}")
    elif not clue:
        lines += [f"looked for {name}: {reader.LOOKED_FOR}" for name, reader in FORMATS.items()]
    return "\n".join(lines) + clue + _unread(tree)


def _unread(tree: Tree) -> str:
    """The label files that cannot be read, as a line; empty where there are none."""
    closed = [path for path in tree.walk(tree.root) if ending(path) in LAYOUTS and not readable(path)]
    more = f", nor can {many(len(closed) - 1, 'other')}" if closed[1:] else ""
    return f"\n{closed[0]} cannot be read{more}: mend its link or its permissions" if closed else ""


def _whole(found: dict[str, Any]) -> bool:
    """Whether what was found is more than YOLO's pictures and labels without the names of their classes."""
    return any(name != "YOLO" or any(split.names for split in found[name].values()) for name in found)


def _inside(tree: Tree) -> str:
    """The folders in a folder, or in one of these, that hold a data set, as a line; empty where none does."""
    lines: dict[str, str] = {}
    folders = list(tree.folders(tree.root).values())
    for folder in [*folders, *(inner for each in folders for inner in tree.folders(each).values())][:NESTED]:
        own = Tree(Path(folder))
        for name, reader in FORMATS.items() if os.path.dirname(folder) not in lines else ():
            with suppress(DataError):
                if (splits := reader.find_splits(own)) and _whole({name: splits}):
                    lines[folder] = f"\n{folder} holds {name} data ({', '.join(splits)}): give that folder"
    return "".join(list(lines.values())[:2])


def no_usable_box(data: DetectionData) -> str | None:
    """What makes a split an empty data set, in words; None when it has a box that is no crowd region."""
    crowd = int(data.records.crowd.sum())
    if crowd < len(data.records.crowd):
        return None
    aside = f" ({many(crowd, 'crowd region is/crowd regions are')} not trained on)" if crowd else ""
    return f"split {data.split} has {many(len(data.records), 'image')} and no usable box{aside}"


def read_data(
    path: str | Path, split: str = "train", *, classes: Sequence[str] | None = None
) -> DetectionData:
    """Read one split of a COCO, Pascal VOC, YOLO or LabelMe data set; the format is detected.

    path: a folder, a COCO .json file or a YOLO data.yaml. A json file is the split that its name or its folder's
    means; another split is the file beside it that is named alike (instances_val.json for instances_train.json). A json
    file that means none is read for any. split: val, valid and validation are one name.
    classes: the order of the classes (a validation set takes the training set's); a box of another class is then a
    problem of kind "unknown class".

    Bad records are left out and kept in `.problems`, as are counts of the files that no split uses. Raises DataError
    (naming the file, the record and the mend) when the path, format or split is not there, the file cannot be parsed,
    or no usable box remains.
    """
    source = DataSet(path)
    data = source.read(source.find(split), classes)
    if empty := no_usable_box(data):
        errors, warnings = (
            [p for p in data.problems if p.severity == level] for level in ("error", "warning")
        )
        rejected = errors[0] if errors else None
        first = f" (the first rejected: {rejected})" if rejected else f" ({warnings[0]})" if warnings else ""
        if classes and rejected and rejected.kind == "unknown class":
            raise DataError(
                f"{data.root}: split {data.split} has no box of the classes {', '.join(classes)}{first}: give a data"
                " set of these classes, or a detector of its own"
            )
        raise DataError(
            f"{data.root}: an empty data set: {empty}{first}: add boxes or correct them{other_format(source.tree)}"
        )
    return data
