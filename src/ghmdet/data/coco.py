"""Reader of COCO JSON: annotations/instances_{split}.json, {split}/_annotations.coco.json and their like."""

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ghmdet.data.annotations import CocoAnnotations, corners_of, name_of, read_annotations
from ghmdet.data.collector import UNCLEAR, Collector
from ghmdet.data.layout import (
    MEANT,
    SPLITS,
    by_split,
    checked_classes,
    meant,
    part_of,
    read_text,
    split_called,
)
from ghmdet.data.records import VALIDATION_NAMES, DetectionData
from ghmdet.data.tree import PROBES, Tree, below, looks_like_label, readable
from ghmdet.data.values import shown
from ghmdet.errors import DataError

LOOKED_FOR = (
    "annotations/instances_{split}.json, annotations/{split}.json, {split}/_annotations.coco.json, "
    "{split}/annotations.json, {split}/annotations/instances.json, {split}.json or result.json"
)
ONE_PART = r"(_annotations\.coco|annotations|instances(_default)?|result|labels)\.json"  # names no split
SPLIT = rf"({'|'.join(SPLITS)}|(?<![a-z])({'|'.join(MEANT)})(?![a-z]))"
MEANING = rf"({'|'.join((*SPLITS, *MEANT))})([-_ ]?(19|20)\d\d)?"  # of a folder
FILES = (
    r"annotations/instances_[^/]*\.json",
    r"annotations/[^/]*\.json",
    r"[^/]+/(annotations/)?_annotations\.coco\.json",
    rf"{MEANING}/(annotations/)?({ONE_PART}|[^/]*{SPLIT}[^/]*\.json)",
    rf"[^/]*{SPLIT}[^/]*\.json",
    ONE_PART,
)
"""Where a folder's annotation files lie: the first of these that any file fits; for a train or val part that
lacks there, also later ones that name a part."""
NAME = re.compile(r'"(file_name|coco_url)"\s*:\s*("(?:[^"\\]|\\.)+")')


def split_name(file: Path, root: str | None = None, *, alone: bool = True) -> str:
    """The split that a COCO file holds, from its name or, where that tells none, from its folder's.

    root: the set's folder, where it is known: of what lies in it or its `annotations` it is no split by its name.
    alone: whether no other file is there; then a word such as eval in its name (pets_eval.json) need not mean a part.

    >>> names = "instances_val2017.json", "valid/_annotations.coco.json", "test/annotations/instances.json"
    >>> [split_name(Path(name)) for name in names]
    ['val', 'valid', 'test']
    """
    home = _home(file)
    in_the_set = not root or home != Path(root).absolute()
    folder = split_called(home.name if in_the_set else file.parent.name)
    if file.name.lower() == "_annotations.coco.json":
        return folder
    plain = re.sub(r"(19|20)\d\d$", "", re.sub("^instances_", "", file.stem, flags=re.IGNORECASE)).rstrip(
        "_-"
    )
    words = re.split(r"[_\-. ]", plain.lower())
    for known in (SPLITS,) if alone else (SPLITS, MEANT):
        if len(said := [word for word in words if word in known]) == 1:
            return said[0]
    tells_none = re.fullmatch(ONE_PART, file.name, re.IGNORECASE)
    own = folder if in_the_set and tells_none and re.fullmatch(MEANING, folder, re.IGNORECASE) else ""
    return own or plain or file.stem


def _home(file: Path) -> Path:
    """The folder that a COCO file is of: its own, or that of its folder `annotations`."""
    folder = file.absolute().parent
    return folder.parent if folder.name.lower() == "annotations" else folder


def find_splits(tree: Tree) -> dict[str, Path]:
    """The annotation file of each split in a COCO folder, or of a file and those beside it; none when it is no COCO.

    Raises DataError when two files are of one split, as COCO's own of 2014 and 2017 are.
    """
    root = tree.given
    if not tree.whole:
        own = meant(split_name(root))
        beside = {split: _beside(root, own, split) for split in SPLITS if own in SPLITS and split != own}
        return {own: root} | {split: file for split, file in beside.items() if file is not None}
    root = Path(tree.root)
    inside = tree.folders(tree.root).values()
    folders = [tree.root, *inside, *(tree.at(folder, "annotations") for folder in inside)]
    names = [os.path.relpath(file, root) for folder in folders for file in tree.files(folder, ".json")]
    found: dict[str, Path] = {}
    for place in FILES:
        lacking = {SPLITS[0], VALIDATION_NAMES[0]}.difference(map(part_of, found))
        if found and (place == ONE_PART or not lacking or any(meant(split) not in SPLITS for split in found)):
            break
        files = [root / name for name in names if re.fullmatch(place, name, re.IGNORECASE)]
        if place not in (FILES[0], FILES[2]):  # a place for other json files too
            files = [file for file in files if looks_like_label(str(file))]
        here = [
            (split_name(file, tree.root, alone=len(names) == 1), file)
            for file in files
            if readable(file) and not is_labelme(file)
        ]
        for split, file in here if not found else [each for each in here if part_of(each[0]) in lacking]:
            other = found.setdefault(split, file)
            if other != file:
                raise DataError(
                    f"{root}: two files of split '{split}': {other.relative_to(root)} and "
                    f"{file.relative_to(root)}: give the .json file itself or move one of them away"
                )
    return by_split(found)


def is_labelme(file: Path | str) -> bool:
    """Whether a json file is LabelMe's, by its beginning."""
    with open(file, "rb") as content:
        head = content.read(4096)
        # Its keys may be sorted: the picture itself, as text, comes before the shapes.
        return b'"shapes"' in head or (b'"imageData"' in head and b'"shapes"' in content.read())


def _beside(file: Path, own: str, split: str) -> Path | None:
    """The file that is to another split what `file` is to its own, in upper or lower case; None where there is none."""
    home, tree = _home(file), Tree(file)
    names, folders = _renamed(file.name, own, split), _renamed(home.name, own, split)
    around = {name.lower(): path for name, path in tree.folders(str(home.parent)).items()}
    inside = file.absolute().parent.relative_to(home).parts
    others = [
        tree.at(around[name], *inside) for name in folders if name in around and meant(home.name) == own
    ]
    places = [(str(file.parent), names), *((other, names or [file.name.lower()]) for other in others)]
    for folder, wanted in places:
        there = {os.path.basename(path).lower(): path for path in tree.files(folder, ".json")}
        for path in (there[name] for name in wanted if name in there):
            if os.path.isfile(path):
                return Path(path)
    return None


def _renamed(name: str, own: str, split: str) -> list[str]:
    """A name in lower case with each word for another split in the place of its word for its own; none without one."""
    said, instead = (
        [part, *(word for word, meaning in MEANT.items() if meaning == part)] for part in (own, split)
    )
    word = re.compile(rf"(?<![a-z])({'|'.join(said)})(?![a-z])")
    return [word.sub(new, name.lower()) for new in instead if word.search(name.lower())]


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
    named: dict[str, list[str]] = {"file_name": [], "coco_url": []}
    try:
        for key, name in NAME.findall(read_text(file)):
            named[key].append(json.loads(name, strict=False))
    except (DataError, ValueError):
        return
    yield from filter(None, _find_pictures(tree, split, file, named["file_name"] or named["coco_url"])[1])


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
    named = {image_id: name for image_id, image in read.images.items() if (name := name_of(image))}
    home, places = _find_pictures(tree, split, file, list(named.values()))
    tree.used.update([str(file), *filter(None, places)])
    # Whether a picture's labels are unclear is told after its size, which may be the reason.
    collect = Collector(Path(home), classes, (each for each in read.problems if each.kind != UNCLEAR))
    collect.file = file
    for image_id in read.images.keys() - named.keys():
        mend = "give it a whole number as its id, and a file_name"
        collect.report("malformed image record", f"image id {image_id}", shown(read.images[image_id]), mend)
    labels = {name: label for label, name in enumerate(classes)}
    known = np.array([labels.get(name, -1) for name in read.categories.values()], dtype=np.int32)
    label = known[np.searchsorted(list(read.categories), read.category)]
    starts = np.searchsorted(read.image, np.arange(len(read.images) + 1))
    told = np.diff(
        np.append(0, np.cumsum(~read.plain | (label < 0)))[starts]
    )  # boxes of which there is something to say
    about = zip(
        read.images, itertools.pairwise(starts.tolist()), read.rejected.tolist(), told.tolist(), strict=True
    )
    left_out = read.left_out - read.unclear
    columns, found = (corners_of(read.box), label, read.crowd, read.area), iter(places)
    for image_id, (start, end), rejected, flawed in about:
        if image_id not in named:
            continue
        name, place, image = named[image_id], next(found), read.images[image_id]
        if image_id in left_out:
            continue
        if place is not None and place != below(home, name):
            name = os.path.relpath(place, home)
        size = image.get("width"), image.get("height")
        if not collect.add_image(image_id, name, size, f"image '{name}'", rejected):
            continue
        if rejected:
            collect.is_missized()
        boxes: list[Any] = [column[start:end] for column in columns]
        if not flawed:
            collect.add_sound(*boxes)
            continue
        names = [read.categories[category] for category in read.category[start:end].tolist()]
        for row, name, corners, _, crowd, area in zip(
            range(start, end), names, *(column.tolist() for column in boxes), strict=True
        ):
            collect.add_box(corners, name, partial(_told, read, row), crowd=crowd, area=area)
    collect.problems.sort(key=lambda problem: problem.kind != "size mismatch")  # a reason comes first
    where = tree.given if tree.whole else file  # the file given may be that of another split
    return collect.pack(where, "COCO", split, _category_ids(classes, read.categories))
