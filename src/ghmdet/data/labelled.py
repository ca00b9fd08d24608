"""Readers of formats with one annotation file a picture: Pascal VOC's xml and LabelMe's json.

VOC's corners are taken as written: box = xmin, ymin, xmax, ymax, the far edge excluded, no pixel added or taken off.
VOC's own sets count pixels from 1 and include the far one; nearly every tool that writes the format since does not.
"""

import math
import os
import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from ghmdet.data.annotations import load_json
from ghmdet.data.coco import is_labelme
from ghmdet.data.collector import Collector
from ghmdet.data.layout import SPLITS, by_split, meant, read_lines, read_text
from ghmdet.data.records import DetectionData
from ghmdet.data.tree import FOREIGN, ONE_CLASS, PROBES, Tree, ending, readable
from ghmdet.data.values import flag, number, numbers, shown
from ghmdet.errors import DataError
from ghmdet.pictures import EXTENSIONS

FOLDERS = ("annotations", "annotation", "xml", "xmls", "json", "labels")  # of annotation files
PICTURES = ("JPEGImages", "images", "imgs", "img", "")  # in the place of such a folder
LISTS = (*SPLITS, "trainval")
# No objects are in these.
HEAD = ("folder", "filename", "path", "source", "owner", "size", "imagesize", "segmented")


class Place(NamedTuple):
    """The folder of a split's annotation files, and the file that lists them (None: all below the folder)."""

    folder: str
    listing: Path | None = None


class Annotated(NamedTuple):
    """What an annotation file says: its picture's name and size, and of each object its record, its class, its box as
    written, its corners (None: no box) and whether it is difficult."""

    picture: str
    size: list[object]
    objects: Sequence[tuple[str, str, str, Sequence[float] | None, object]]


@dataclass(frozen=True)
class OneFileEach:
    """A format with one annotation file a picture, by what parses such a file and tells it from others."""

    name: str
    LOOKED_FOR: str
    ending: str
    parse: Callable[[Path], Annotated]
    mend: str  # of a box that is none

    def _own(self, paths: Sequence[str]) -> bool:
        return any(readable(path) and (self.ending == ".xml" or is_labelme(path)) for path in paths)

    def find_splits(self, tree: Tree) -> dict[str, Place]:
        """The splits of a folder; its one split is called train where neither lists nor folders name more."""
        if not tree.whole:
            return {}
        inside = tree.folders(tree.root)
        for name, folder in inside.items():
            if name.lower() in FOLDERS and self._below(tree, folder):
                places = [Place(folder, Path(file)) for file in _lists(tree)]
                lists = {at.listing.stem: at for at in places if at.listing and self._lists_files(tree, at)}
                if lists:
                    return by_split(lists)
                below = {part: at for part, at in tree.folders(folder).items() if self._below(tree, at)}
                parts = {part: Place(at) for part, at in below.items() if meant(part) in SPLITS}
                told_apart = len(parts) == len(below) or "train" in map(meant, parts)
                if parts and told_apart and not tree.files(folder, self.ending):
                    return by_split(parts)
                tree.one_part(folder, (self.ending,))
                return {"train": Place(folder)}
        labelled = {name: self._own(tree.files(folder, self.ending)) for name, folder in inside.items()}
        there = {
            name: folder
            for name, folder in inside.items()
            if labelled[name] or (meant(name) in SPLITS and self._below(tree, folder))
        }
        found = {split: Place(folder) for split, folder in by_split(there).items()}
        return found or ({"train": Place(tree.root)} if self._own(tree.files(tree.root, self.ending)) else {})

    def _lists_files(self, tree: Tree, place: Place) -> bool:
        """Whether a text file is the list of a split. A whole line of it names an annotation file, or its place or its
        name says so and it is none of VOC's for one class (aeroplane_train.txt), whose last column is -1, 0 and 1: the
        picture may be called "cat 1".
        """
        listing = str(place.listing)
        text = Path(listing).read_text(encoding="utf-8-sig", errors="replace") if readable(listing) else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if any(tree.has(self._listed(tree, place, line)) for line in lines[:PROBES]):
            return True
        column = all(line.split()[1:] and line.split()[-1] in ("-1", "0", "1") for line in lines)
        named = Path(listing).stem.lower() in LISTS or os.path.dirname(listing) == _main(tree)
        if lines and column and Path(listing).stem.lower() in LISTS:
            tree.skipped[ONE_CLASS][listing] = None
        return named and not (lines and column)

    def _below(self, tree: Tree, folder: str) -> bool:
        return any(ending(path) == self.ending and self._own([path]) for path in tree.walk(folder))

    def pairs(self, tree: Tree, split: str, place: Place) -> list[tuple[str, str | None]]:
        """Each annotation file of a split and its picture, None where that is not there.

        The picture is named as the file is: `<filename>` is often left behind by renaming, and counts where there is no
        such picture, or more than one, if no other file claims the one it names.
        """
        if place.listing is None:
            own = [path for path in tree.walk(place.folder) if ending(path) == self.ending]
            missed = {path for path in own if not readable(path) and any(_alike(tree, path))}
            files = [path for path in own if self.ending == ".xml" or path in missed or self._own([path])]
        else:
            files = [self._listed(tree, place, line) for line in read_lines(place.listing)]
        found, names = list[str | None](), [""] * len(files)
        for file in files:
            alike = _alike(tree, file)
            if len(found) < PROBES:
                tree.one_of([paths[0] for paths in alike if len(paths) == 1])
            found.append(_only(alike))
        taken = set(found)
        for index, file in enumerate(files):
            if found[index] is None and (written := self._written(file)):
                names[index] = written
                homes = _picture_folders(tree, os.path.dirname(file))
                paths = [os.path.normpath(os.path.join(folder, written)) for folder in homes]
                stems = (os.path.split(os.path.splitext(path)[0]) for path in paths)
                exact = [path for path in paths if tree.has(path) and path not in taken]
                alike = [tree.named(folder, stem, EXTENSIONS) for folder, stem in stems]
                found[index] = exact[0] if exact else _only(alike, taken)
                taken.add(found[index])
        return list(zip(files, tree.match(names, found, split, tree.root), strict=True))

    def _listed(self, tree: Tree, place: Place, line: str) -> str:
        """The annotation file of a line of a list: a name with or without an ending, or its picture's path."""
        stem = line if ending(line) not in {*EXTENSIONS, self.ending} else os.path.splitext(line)[0]
        parts = [part for part in re.split(r"[\\/]+", stem) if part not in ("", ".")]
        elsewhere = FOREIGN.search(stem) or not tree.folder(os.path.join(place.folder, *parts[:1])).names
        for start in range(len(parts) if elsewhere else 1):
            folder, name = os.path.split(os.path.join(place.folder, *parts[start:]))
            if files := tree.named(folder, name, (self.ending,)):
                return files[0]
        return os.path.join(place.folder, f"{stem}{self.ending}")

    def _written(self, file: str) -> str:
        """The picture's name as the annotation file writes it, with forward slashes; empty where it cannot be read."""
        try:
            return self.parse(Path(file)).picture
        except (DataError, ElementTree.ParseError):
            return ""

    def files(self, tree: Tree, split: str, place: Place) -> Iterator[str]:
        """The annotation files of a split, and the pictures that are there."""
        for file, picture in self.pairs(tree, split, place):
            yield from filter(None, (file, picture))

    def read_split(
        self, tree: Tree, split: str, place: Place, classes: Sequence[str] | None = None
    ) -> DetectionData:
        """Read one split; classes are the names found, in alphabetical order, or those given by `classes`.

        Objects marked difficult become crowd regions. Raises DataError when the split lists no file or has no class;
        single bad records become problems.
        """
        pairs = self.pairs(tree, split, place)
        tree.used.update(file for pair in pairs for file in pair if file)
        homes = sorted({os.path.dirname(picture) for _, picture in pairs if picture is not None})
        home = os.path.commonpath(homes) if homes else os.path.join(tree.root, "JPEGImages")
        collect = Collector(Path(home), classes)
        for image_id, (path, picture) in enumerate(pairs, start=1):
            file = collect.file = Path(path)
            try:
                read = self.parse(file)
            except DataError as error:
                collect.file = place.listing or Path(place.folder)
                collect.report("unreadable annotation", f"'{file.stem}'", "", str(error))
                continue
            except ElementTree.ParseError as error:
                where = f"line {error.position[0]}, column {error.position[1] + 1}"
                collect.report("invalid XML", where, f"({error})", "write the file again")
                continue
            if picture is None:
                if any(_alike(tree, path)):
                    mend = "name one of them in the file, or remove the others"
                    collect.report("more than one picture of this name", f"'{file.stem}'", "", mend)
                    continue
                likely, *_ = _picture_folders(tree, os.path.dirname(path))
                picture = os.path.join(likely, file.stem + (ending(read.picture) or ".jpg"))  # a missing one
            name = os.path.relpath(picture, home)
            if collect.add_image(image_id, name, read.size, f"image '{name}'"):
                for record, label, written, box, difficult in read.objects:
                    crowd = flag(difficult)
                    if box is None:
                        collect.reject("malformed box", record, written, self.mend)
                    elif crowd is None:
                        collect.reject("malformed difficult", record, shown(difficult), "write 0 or 1")
                    else:
                        collect.add_box(box, label, (record, written), crowd=crowd)
        collect.file = place.listing or Path(place.folder)
        return collect.pack(tree.given, self.name, split)


def _lists(tree: Tree) -> Iterator[str]:
    """The files that list the pictures of a split: those in ImageSets/Main, last, and in ImageSets or at the root."""
    main = _main(tree)
    for file in (
        file for place in (tree.root, os.path.dirname(main), main) for file in tree.files(place, ".txt")
    ):
        if os.path.dirname(file) == main or meant(Path(file).stem) in LISTS:
            yield file


def _main(tree: Tree) -> str:
    return tree.at(tree.root, "ImageSets", "Main")


def _only(alike: Sequence[Sequence[str]], taken: Container[str | None] = ()) -> str | None:
    """The one picture in the first folder that has any; None where it has more, or that is taken."""
    paths = next(filter(None, alike), ())
    return paths[0] if len(paths) == 1 and paths[0] not in taken else None


def _alike(tree: Tree, file: str) -> list[list[str]]:
    """The pictures that are named as an annotation file is, of each folder where they may lie."""
    folders = _picture_folders(tree, os.path.dirname(file))
    return [tree.named(folder, Path(file).stem, EXTENSIONS) for folder in folders]


def _picture_folders(tree: Tree, folder: str) -> list[str]:
    """Where the pictures of the annotation files in a folder may lie, the likeliest first."""
    return tree.homes(folder, FOLDERS, PICTURES)


def parse_voc(file: Path) -> Annotated:
    """What a VOC xml file says, in any namespace, its tags in lower or upper case.

    Raises ParseError where it is no XML, and DataError where it holds something else than VOC's objects.
    """
    root = ElementTree.fromstring(read_text(file))
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2].lower()
    if root.tag != "annotation":
        raise DataError(f"{file}: no VOC annotation: its root is <{root.tag}>: convert it, or move it away")
    nodes = root.findall("object")
    if not nodes:
        for child in root:
            texts = [text for leaf in child.iter() for text in (leaf.text, *leaf.attrib.values())]
            if child.tag not in HEAD and sum(number(text) is not None for text in texts) >= 4:
                raise DataError(
                    f"{file}: no <object> but <{child.tag}> with numbers: is this another format?"
                )
    objects = []
    for place, node in enumerate(nodes, start=1):
        name = (node.findtext("name") or "").strip()
        boxes = node.findall("bndbox")
        texts = [
            (box.findtext(corner) or "").strip()
            for box in boxes
            for corner in ("xmin", "ymin", "xmax", "ymax")
        ]
        record, corners = f"object {place} '{name}'", numbers(texts) if len(boxes) == 1 else None
        objects.append((record, name, shown(texts), corners, node.findtext("difficult")))
    picture = (root.findtext("filename") or "").strip().replace("\\", "/")
    return Annotated(picture, [root.findtext(f"size/{side}") for side in ("width", "height")], objects)


def parse_labelme(file: Path) -> Annotated:
    """What a LabelMe json file says; the box of a shape is the one around it. Raises DataError where it is none."""
    content = load_json(file)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f"{file}: no LabelMe annotation: it has no list 'shapes' of objects: write it again")
    objects = []
    for place, shape in enumerate(shapes, start=1):
        label, points, kind = (shape.get(key) for key in ("label", "points", "shape_type"))
        name = str(label).strip() if isinstance(label, (str, int)) else ""
        pairs = [numbers(point) for point in points] if isinstance(points, list) else []
        ends = [pair for pair in pairs if pair is not None and len(pair) == 2]
        box = None
        if len(ends) == len(pairs) >= 2 and kind not in ("point", "points", "line", "linestrip"):
            xs, ys = zip(*ends, strict=True)
            if kind == "circle":  # its centre, and a point on it
                r = math.dist(ends[0], ends[1])
                xs, ys = (xs[0] - r, xs[0] + r), (ys[0] - r, ys[0] + r)
            box = (min(xs), min(ys), max(xs), max(ys))
        record = f"shape {place} '{name}'"
        objects.append((record, name, shown(points), box, shape.get("difficult")))
    written = content.get("imagePath")
    picture = written.strip().replace("\\", "/") if isinstance(written, str) else ""
    return Annotated(picture, [content.get("imageWidth"), content.get("imageHeight")], objects)


VOC = OneFileEach(
    "VOC",
    "Annotations/*.xml (with ImageSets/Main/{split}.txt and JPEGImages/), {split}/*.xml beside pictures, or "
    "{split}/annotations/*.xml and {split}/images/",
    ".xml",
    parse_voc,
    "write the numbers xmin, ymin, xmax and ymax in its bndbox",
)
LABELME = OneFileEach(
    "LabelMe",
    "a json file with shapes beside each picture, in {split}/ or all in one folder",
    ".json",
    parse_labelme,
    "draw it as a rectangle, a polygon or a circle",
)
