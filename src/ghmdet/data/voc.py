"""Reader of Pascal VOC: Annotations/*.xml, ImageSets/Main/{split}.txt and JPEGImages/, or xml files beside pictures.

Corners are taken as written: box = xmin, ymin, xmax, ymax, the far edge excluded, no pixel added or taken off. The
original VOC sets count pixels from 1 and include the far one; nearly every tool that writes the format since does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from ghmdet.data.collector import Collector
from ghmdet.data.images import EXTENSIONS
from ghmdet.data.layout import read_lines, read_text
from ghmdet.data.records import DetectionData
from ghmdet.data.values import flag, numbers, shown
from ghmdet.errors import DataError

LOOKED_FOR = (
    "Annotations/*.xml (with ImageSets/Main/{split}.txt and JPEGImages/), or {split}/*.xml beside pictures"
)


class VocSplit(NamedTuple):
    """Where the xml files of a split lie, and the file that lists them (None: all of the folder)."""

    annotations: Path
    listing: Path | None = None


def find_splits(root: Path) -> dict[str, VocSplit]:
    """The splits of a VOC folder; without ImageSets its one split is called train. None when it is no VOC folder."""
    annotations = next(
        (root / name for name in ("Annotations", "annotations") if _has_xml(root / name)), None
    )
    if annotations is None:
        folders = [child for child in sorted(root.iterdir()) if child.is_dir() and _has_xml(child)]
        flat = {"train": VocSplit(root)} if _has_xml(root) else {}
        return {folder.name: VocSplit(folder) for folder in folders} or flat
    listings = [file for file in sorted((root / "ImageSets" / "Main").glob("*.txt")) if _lists_images(file)]
    return {file.stem: VocSplit(annotations, file) for file in listings} or {"train": VocSplit(annotations)}


def _has_xml(folder: Path) -> bool:
    return next(folder.glob("*.xml"), None) is not None


def _lists_images(listing: Path) -> bool:
    """Not one of VOC's lists for one class (aeroplane_train.txt), which have a last column of -1, 0 and 1."""
    lines = listing.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    rows = [line.split() for line in lines if line.strip()]
    return not rows or not all(len(words) > 1 and words[-1] in ("-1", "0", "1") for words in rows)


def read_split(
    root: Path, split: str, source: VocSplit, classes: Sequence[str] | None = None
) -> DetectionData:
    """Read one VOC split; classes are the names found, in alphabetical order, or those given by `classes`.

    Objects marked difficult become crowd regions. Raises DataError when the split lists no file or has no class;
    single bad records become problems.
    """
    folder, pictures = _pictures(root, source)
    collect = Collector(folder, classes)
    if source.listing is None:
        files = sorted(source.annotations.glob("*.xml"))
    else:
        files = [source.annotations / f"{stem}.xml" for stem in read_lines(source.listing)]
    for image_id, file in enumerate(files, start=1):
        collect.file = file
        try:
            tree = ElementTree.fromstring(read_text(file))
        except DataError as error:
            collect.file = source.listing or source.annotations
            collect.report("unreadable annotation", f"'{file.stem}'", "", str(error))
            continue
        except ElementTree.ParseError as error:
            where = f"line {error.position[0]}, column {error.position[1] + 1}"
            collect.report("invalid XML", where, f"({error})", "write the file again")
            continue
        # <filename> is often left behind by renaming: the picture named as the xml file is comes first.
        written = Path((tree.findtext("filename") or "").strip().replace("\\", "/"))
        found = [pictures[key] for key in (file.stem, written.name, written.stem) if key in pictures]
        name = found[0] if found else written.name or f"{file.stem}.jpg"
        size = [tree.findtext(f"size/{side}") for side in ("width", "height")]
        if collect.add_image(image_id, name, size, f"image '{name}'"):
            for number, node in enumerate(tree.findall("object"), start=1):
                _add_box(collect, node, number)
    collect.file = source.listing or source.annotations
    return collect.pack(root, "VOC", split)


def _pictures(root: Path, source: VocSplit) -> tuple[Path, dict[str, str]]:
    """The folder of the pictures, and its pictures' names by name and by stem."""
    for folder in (root / "JPEGImages", root / "images", source.annotations):
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        names = [file.name for file in files if file.suffix.lower() in EXTENSIONS]
        if names:
            return folder, {Path(name).stem: name for name in names} | {name: name for name in names}
    return root / "JPEGImages", {}


def _add_box(collect: Collector, node: ElementTree.Element, number: int) -> None:
    name, difficult = (node.findtext("name") or "").strip(), node.findtext("difficult")
    texts = [(node.findtext(f"bndbox/{corner}") or "").strip() for corner in ("xmin", "ymin", "xmax", "ymax")]
    record, value, box, crowd = f"object {number} '{name}'", shown(texts), numbers(texts), flag(difficult)
    if box is None:
        mend = "write the numbers xmin, ymin, xmax and ymax in its bndbox"
        collect.report("malformed box", record, value, mend)
    elif crowd is None:
        collect.report("malformed difficult", record, shown(difficult), "write 0 or 1")
    else:
        collect.add_box(box, name, record, value, crowd=crowd)
