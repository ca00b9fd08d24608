"""Reader of YOLO txt: data.yaml with names and train/val/test, or images/{split} and labels/{split} with classes.txt.

A row is `class cx cy w h`, fractions of the picture's size; of longer ones see `rows`.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ghmdet.data.collector import CORNERS, PROBED, Collector, may_be_top_left, must_be_corners
from ghmdet.data.layout import SPLITS, by_split, checked_classes, meant, part_of, read_lines, read_text
from ghmdet.data.records import DetectionData
from ghmdet.data.rows import Rows, boxes_of, label_lines
from ghmdet.data.tree import UNREADABLE, Tree, below, ending, readable, surrounds
from ghmdet.data.values import shown, whole
from ghmdet.errors import DataError
from ghmdet.keys import TextLoader
from ghmdet.pictures import EXTENSIONS, fitting

LOOKED_FOR = (
    "data.yaml with names and train/val/test, CVAT's obj.data, or classes.txt with images/{split} and labels/{split}, "
    "{split}/images and {split}/labels, or label files beside the pictures"
)
FOLDERS = (("images",), ()), ((), ("images",)), ((), ())  # above and below a split's own
KEYED = (".data", ".yaml", ".yml")
NOTHING = ("", "~", "null", "none")
IMAGES, LABELS = ("images",), ("labels",)  # a folder of pictures, and its place for their labels


class YoloSplit(NamedTuple):
    """The folders of pictures or lists of pictures of a split, the files that name the classes, the first meant, and
    the folders that patterns search."""

    images: tuple[str, ...]
    names: tuple[Path, ...]
    searched: tuple[str, ...] = ()

    @property
    def folders(self) -> list[Path]:
        """Those in which every picture counts."""
        return [Path(place) for place in (*self.images, *self.searched) if os.path.isdir(place)]


def find_splits(tree: Tree) -> dict[str, YoloSplit]:
    """The splits of a YOLO folder, or of a data.yaml; without splits its one split is called train."""
    config = _config(tree) if tree.whole else tree.given
    if config and (readable(config) or not tree.whole) and (splits := _named_splits(tree, config)):
        return splits
    if not tree.whole:
        raise DataError(f"{tree.given}: names no pictures: give train, val or test a folder")
    for layout in _layouts(tree):
        found = {
            split: YoloSplit((place,), (*filter(None, [config]), *_names_files(tree, place)))
            for split, place in layout.items()
            if _is_labelled(tree, split, place)
        }
        if found:
            ((place, *_), names, _), *more = found.values()
            if not more and names and place in (tree.root, tree.at(tree.root, "images")):
                tree.one_part(place, EXTENSIONS)
            return found
    return {}


def _layouts(tree: Tree) -> Iterator[dict[str, str]]:
    """Where the pictures of each split may lie, the likeliest first: in folders, in lists, in no folder of a split."""
    for above, under in FOLDERS:
        parts = tree.parts(tree.at(tree.root, *above))
        yield {split: tree.at(folder, *under) for split, folder in parts.items()}
    lists = {Path(file).stem: file for file in tree.files(tree.root, ".txt")}
    likely = {name: file for name, file in lists.items() if meant(name) in SPLITS}
    yield by_split({name: file for name, file in likely.items() if _is_labelled(tree, meant(name), file)})
    yield {"train": tree.at(tree.root, "images")}
    yield {"train": tree.root}


def _is_labelled(tree: Tree, split: str, place: str) -> bool:
    """Whether a folder or list of pictures has label files in labels/ in the place of images/, or beside them."""
    *labels, _ = tree.homes(place, IMAGES, LABELS)
    if any(ending(file) == ".txt" for folder in labels for file in tree.walk(folder)):
        return bool(tree.folder(place).names)
    pictures = tree.pictures(place)
    if tree.has(place):
        with suppress(DataError):  # any other text file may be called so
            pictures = [picture for picture in _listed(tree, split, place) if tree.has(picture)]
    folders = set(map(os.path.dirname, pictures))
    some = any(tree.files(home, ".txt") for folder in folders for home in tree.homes(folder, IMAGES, LABELS))
    return some and any(_label_file(tree, picture) for picture in pictures)


def _names_files(tree: Tree, folder: str) -> list[Path]:
    """The text files that name a folder's classes: beside its labels, at the root, in labels/; closed ones last."""
    places = [
        folder,
        *tree.homes(folder, IMAGES, LABELS),
        tree.root,
        *(tree.at(tree.root, name) for name in ("labels", "images")),
    ]
    names = (below(place, name) for place in places for name in ("classes.txt", "obj.names"))
    there = (Path(name) for name in dict.fromkeys(names) if tree.has(name))
    return sorted(there, key=lambda file: not readable(file))


def _config(tree: Tree) -> Path | None:
    """The file with class names: data.yaml, the first other one that names a split too, or a closed data.yaml."""
    data = Path(below(tree.root, "data.yaml"))
    if (there := tree.has(str(data))) and not readable(data):
        tree.skipped[UNREADABLE][str(data)] = None
    elif there and "names" in load(tree, data):
        return data
    found: dict[Path, list[Any]] = {}
    for file in map(Path, tree.files(tree.root, ".yaml", ".yml", ".data")):
        with suppress(DataError):  # any other yaml file may lie there
            content = load(tree, file) if file != data else {}
            if "names" in content and (parts := _entries(file, content)):
                found[file] = [content["names"], parts]
    for file, said in found.items():
        if said != next(iter(found.values())):
            both = f"{next(iter(found)).name} and {file.name}"
            raise DataError(f"{tree.given}: {both} name other classes or splits: give the file that is meant")
    return next(iter(found), data if there and not readable(data) else None)


def load(tree: Tree, file: Path) -> dict[str, Any]:
    """What a file of the endings KEYED says, which is parsed once; nothing for any other."""
    if file not in tree.parsed:
        tree.parsed[file] = _parsed(file) if file.suffix.lower() in KEYED else {}
    return tree.parsed[file]


def _parsed(file: Path) -> dict[str, Any]:
    """What a yaml file names, or lines `key = value` as in darknet's obj.data, all of it as the text written."""
    text = read_text(file)
    if file.suffix.lower() == ".data":
        pairs = [line.partition("=") for line in text.splitlines() if line.strip()]
        for key, times in Counter(key.strip() for key, _, _ in pairs).items():
            if times > 1:
                raise DataError(f"{file}: {shown(key)} is given twice: keep one of its lines")
        return {key.strip(): value.strip() for key, _, value in pairs}
    try:
        content = yaml.load(text, Loader=TextLoader)
    except RecursionError:
        raise DataError(f"{file}: invalid YAML (nested too deep): write the file again") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = " ".join(str(getattr(error, "problem", error)).split())
        raise DataError(f"{file}: invalid YAML{place} ({said}): write the file again") from None
    return content if isinstance(content, dict) else {}


def _base(config: Path, content: Mapping[str, Any]) -> Path:
    """The folder that a config's entries are named from."""
    written = content.get("path")
    base = config.parent / (written if isinstance(written, str) else "")
    return base if base.is_dir() else config.parent  # `path` is often the place on the machine that wrote it


def _entries(config: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of the endings KEYED says of each split, by the split that its key means: a split's own name, or
    another word that tells where a part is that is not there by such a name."""
    base = _base(config, content)
    told = {
        key: one
        for key, one in content.items()
        if one and not (isinstance(one, str) and one.lower() in NOTHING)
    }
    named = {part_of(key) for key in told if key.lower() in SPLITS}

    def is_split(key: str, entry: Any) -> bool:
        entries = entry if isinstance(entry, list) else [entry]
        if (
            meant(key) not in SPLITS
            or part_of(key) in named
            or not all(isinstance(one, str) for one in entries)
        ):
            return key.lower() in SPLITS
        return any(is_there(key, one) for one in entries)

    def is_there(key: str, entry: str) -> bool:
        if entry.lower() in NOTHING or surrounds(base / entry, base):
            return False
        with suppress(OSError):  # a text that is too long for a name
            place = _place(base, entry, key)
            return os.path.exists(place) or bool(_pictures(place))
        return False

    return by_split({key: entry for key, entry in told.items() if is_split(key, entry)})


def _named_splits(tree: Tree, config: Path) -> dict[str, YoloSplit]:
    content = load(tree, config)
    base, splits = _base(config, content), {}
    for split, entry in _entries(config, content).items():
        entries = entry if isinstance(entry, list) else [entry]
        if not all(isinstance(entry, str) for entry in entries):
            raise DataError(f"{config}: {split} is {shown(entries)}: give a folder, a list file or several")
        if wide := next((each for each in entries if surrounds(base / each, base, tree.root)), None):
            raise DataError(f"{config}: {split} is {wide}, which the data set lies in: give it a folder")
        named = [_place(base, entry, split) for entry in entries if entry.lower() not in NOTHING]
        if places := tuple(place for one in named for place in _pictures(one) or [one]):
            searched = (folder for one in named if _pictures(one) for folder in fitting(_searched(one)))
            splits[split] = YoloSplit(places, (config, *_names_files(tree, places[0])), tuple(searched))
    return splits


def _place(base: Path, entry: str, split: str = "") -> str:
    """The path of an entry. One that is not there may be of another machine: its longest end that is below the base.

    Roboflow writes ../train/images for what lies beside its data.yaml, and CVAT data/train.txt. The name of a part is
    not left out before images/ alone, which may hold all of them; another word for one (/home/me/dev/images) only
    where it means another part than the entry's.
    """
    parts = [part for part in re.split(r"[\\/]+", entry) if part not in ("", ".", "..")]
    words = (os.path.splitext(part)[0] for part in parts)
    named = [at for at, word in enumerate(words) if word.lower() in SPLITS or part_of(word) == part_of(split)]
    after = {part.lower() for part in parts[named[-1] + 1 :]} if named else set[str]()
    last = named[-1] if named and after <= {*IMAGES} else len(parts)
    starts = range(min(last + 1, len(parts)))
    places = (base / entry, *(base.joinpath(*parts[start:]) for start in starts))
    return os.path.normpath(
        next((path for path in places if path.exists() or _pictures(str(path))), places[0])
    )


def _pictures(pattern: str) -> list[str]:
    """The pictures that fit a pattern; none where it is none, or is there itself."""
    fit = fitting(pattern) if has_magic(pattern) and not os.path.lexists(pattern) else ()
    return [path for path in fit if ending(path) in EXTENSIONS]


def _searched(pattern: str) -> str:
    """The folders that a pattern searches, as a pattern: those of its files, or the ones above any depth (`**`)."""
    return os.path.dirname(pattern.partition("**")[0]) or os.curdir


def names_file(tree: Tree, file: Path) -> Path:
    """The file that holds the names of the classes: `file` itself, or the one that an obj.data or a yaml names."""
    listed = load(tree, file).get("names")
    try:
        place = Path(_place(file.parent, listed)) if isinstance(listed, str) else file
        return place if place.is_file() and place.suffix.lower() not in KEYED else file
    except OSError:  # a text that is too long for a name
        return file


def class_names(tree: Tree, file: Path) -> tuple[str, ...]:
    """The classes that a data.yaml, an obj.data or a list of names gives; raises DataError where it names none."""
    content = load(tree, file)
    if (listed := names_file(tree, file)) != file:
        return _counted(file, content, class_names(tree, listed))
    if file.suffix.lower() == ".data":
        raise DataError(f"{file}: no class names: write names = the file that names them, one a line")
    if file.suffix.lower() not in (".yaml", ".yml"):
        lines = read_text(file).rstrip().splitlines()
        if blank := next((place for place, line in enumerate(lines, start=1) if not line.strip()), None):
            mend = "classes are numbered by their lines: name this one, or remove the line"
            raise DataError(f"{file}: line {blank} is blank: {mend}")
        return checked_classes(lines, file)
    names = content.get("names")
    if isinstance(names, dict):
        numbered = {whole(number): name for number, name in names.items()}
        if set(numbered) != set(range(len(names))):
            last = len(names) - 1
            raise DataError(f"{file}: names are not numbered 0 to {last}: number them without a gap")
        names = [numbered[number] for number in range(len(names))]
    if not isinstance(names, list):
        said = f" (names is {shown(names)})" if names else ""
        raise DataError(f"{file}: no class names{said}: write names: [first, second]")
    return _counted(file, content, checked_classes(names, file))


def _counted(file: Path, content: Mapping[str, Any], classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes; raises DataError where the file's content says another number of them."""
    if "nc" in content and whole(content["nc"]) != len(classes):
        said = f"nc is {content['nc']!s:.60} but names has {len(classes)}"
        raise DataError(f"{file}: {said}: make them agree")
    return classes


def pairs(tree: Tree, split: str, source: YoloSplit) -> list[tuple[str, str | None]]:
    """Each picture of a split, and its label file where there is one."""
    pictures: list[str] = []
    for place in source.images:
        if os.path.isdir(place):
            pictures += tree.pictures(place)
        elif not os.path.exists(place) and (has_magic(place) or ending(place) not in EXTENSIONS):
            raise DataError(f"{place}: no such folder, list or picture: correct its entry in data.yaml")
        elif ending(place) in EXTENSIONS:
            pictures.append(place)
        else:
            pictures += _listed(tree, split, place)
    return [(picture, _label_file(tree, picture)) for picture in pictures]


def _listed(tree: Tree, split: str, listing: str) -> list[str]:
    """The pictures of a list, named from its own folder or from the data set's."""
    lines = read_lines(Path(listing))
    homes = (os.path.dirname(listing), tree.root)
    tried = [[os.path.normpath(os.path.join(home, line)) for home in homes] for line in lines]
    exact = [next(filter(tree.has, paths), None) for paths in tried]
    found = tree.match(lines, exact, split, tree.root)
    return [path or paths[0] for path, paths in zip(found, tried, strict=True)]


def _label_file(tree: Tree, picture: str) -> str | None:
    folder, name = os.path.split(picture)
    stem = os.path.splitext(name)[0]
    there = (tree.named(place, stem, (".txt",)) for place in tree.homes(folder, IMAGES, LABELS))
    return next((files[-1] for files in there if files), None)  # the last is in lower case


def files(tree: Tree, split: str, source: YoloSplit) -> Iterator[str]:
    """The pictures of a split, and the label files that are there."""
    for pair in pairs(tree, split, source):
        yield from filter(None, pair)


def read_split(
    tree: Tree, split: str, source: YoloSplit, classes: Sequence[str] | None = None
) -> DetectionData:
    """Read one YOLO split; classes are those that its data.yaml or classes.txt names, or ordered as by `classes`.

    A picture without a label file is a picture without boxes. Sizes come from the pictures' headers. Raises
    DataError when class names or pictures are missing; single bad records become problems.
    """
    if not source.names:
        above = Path(os.path.abspath(tree.root)).parent
        mend = "write classes.txt, one name a line, or names: in data.yaml"
        mend = f"give {above}, whose data.yaml names them" if (above / "data.yaml").is_file() else mend
        raise DataError(f"{source.images[0]}: no class names: {mend}")
    named, *others = source.names
    own = class_names(tree, named)
    collect = Collector(Path(tree.root), own if classes is None else classes)
    for file in filter(readable, others):
        theirs = class_names(tree, file)
        if any(a != b for a, b in zip(theirs, own, strict=False)):
            said = f"(classes: {', '.join(theirs)[:60]}; {named}: {', '.join(own)[:60]})"
            if named.suffix in (".txt", ".names"):
                raise DataError(f"{file}: class names that differ {said}: make them agree, or move one away")
            collect.file = file
            collect.report("class names that differ", "", said, f"those of {named.name} are taken", "warning")
    found = pairs(tree, split, source)
    if not found:
        places = ", ".join(source.images)
        raise DataError(f"{places}: an empty data set: no pictures there: add some or correct the path")
    tree.used.update(file for pair in found for file in pair if file)
    for file in (closed := {Path(label): None for _, label in found if label and not readable(label)}):
        collect.file = file
        collect.report("unreadable annotation", "", "", "mend its link or its permissions, or remove it")
    found = [pair for pair in found if Path(pair[1] or "") not in closed]
    rows = Rows(load(tree, named), named, [label for _, label in found if label])
    owners: dict[str, list[str]] = {}
    for picture, label in dict.fromkeys(found):
        owners.setdefault(label or picture, []).append(picture)
    for label, pictures in owners.items():
        if len(pictures) > 1:
            collect.file = label
            names = ", ".join(os.path.relpath(picture, tree.root) for picture in pictures)
            mend = "they are left out: keep one, or give each a label file of its own"
            collect.report("label file of more than one picture", "", f"({names})", mend)
    found = [pair for pair in found if len(owners[pair[1] or pair[0]]) == 1]
    few: list[tuple[str | None, Sequence[float]]] = []  # the first boxes, and their files
    for image_id, (picture, label) in enumerate(found, start=1):
        collect.file = label or picture
        lines = label_lines(label) if label else []
        boxes = list(boxes_of(collect, lines, own, rows))
        if None in boxes:
            continue  # what is not understood is no picture without objects
        collect.file = picture
        name = os.path.relpath(picture, tree.root)
        place = os.path.abspath(picture) if name.startswith(os.pardir) else name
        unread = sum(map(bool, map(str.strip, lines))) - len(boxes)
        if collect.add_image(image_id, place, (None, None), ""):
            collect.file = label or picture
            collect.count_rejected(unread)
            width, height = collect.size
            for (x1, y1, x2, y2), name, record, value in filter(None, boxes):
                corners = (x1 * width, y1 * height, x2 * width, y2 * height)
                if len(few) < PROBED and math.isfinite(sum(corners)):
                    few.append((label, (x1, y1, x2, y2)))
                collect.add_box(corners, name, (record, value))
    ends = np.array([box for _, box in few]).reshape(-1, 4)
    start, end = ends[:, :2], ends[:, 2:]
    if must_be_corners(np.hstack([(start + end) / 2, end - start]), ends):
        where = few[int((abs(ends - 0.5) > 0.6).any(axis=1).argmax())][0]
        raise DataError(f"{where}: boxes reach far out of their pictures: these are {CORNERS} cx, cy, w, h")
    if may_be_top_left(ends):
        collect.file = few[int((start < -0.01).any(axis=1).argmax())][0] or tree.root
        mend = "if x, y are the top left corner, write the centre: cx, cy, w, h"
        collect.report("boxes stick out at the left and top alone", "", "", mend, "warning")
    if len(own) in rows.classes and 0 not in rows.classes:
        raise DataError(f"{named}: rows of classes 1 to {len(own)} and none of class 0: number them from 0")
    bare = [os.path.splitext(picture)[0] for picture, label in found if label is None]
    if bare:
        folder, stem = os.path.split(bare[0])
        tried = ", ".join(below(place, f"{stem}.txt") for place in tree.homes(folder, IMAGES, LABELS))
        collect.file = tree.root
        mend = "read as a picture without objects: an empty label file says so on purpose"
        collect.report("picture without a label file", "", f"({tried})", mend, "warning", len(bare))
    return collect.pack(tree.given, "YOLO", split)
