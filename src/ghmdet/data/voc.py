"""Reader of Pascal VOC: Annotations/*.xml, ImageSets/Main/{split}.txt and JPEGImages/, or xml files beside pictures.

Corners are taken as written: box = xmin, ymin, xmax, ymax, the far edge excluded, no pixel added or taken off. The
original VOC sets count pixels from 1 and include the far one; nearly every tool that writes the format since does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from ghmdet.data.collector import Collector
from ghmdet.data.images import EXTENSIONS
from ghmdet.data.layout import read_text
from ghmdet.data.records import DetectionData
from ghmdet.data.values import flag, numbers, shown
from ghmdet.errors import DataError

LOOKED_FOR = (
    "Annotations/*.xml (with ImageSets/Main/{split}.txt and JPEGImages/), or {split}/*.xml beside pictures"
)
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocSplit:
    """Where the xml files of a split lie, and the file that lists them (None: all of the folder)."""

    annotations: Path
    listing: Path | None = None


def find_splits(root: Path) -> dict[str, VocSplit]:
    """The splits of a VOC folder; without ImageSets its one split is called train. None when it is no VOC folder."""
    both = (root / "Annotations", root / "annotations")
    annotations = next((folder for folder in both if _has_xml(folder)), None)
    if annotations is None:
        flat = {"train": root} if _has_xml(root) else {}
        folders = {
            child.name: child for child in sorted(root.iterdir()) if child.is_dir() and _has_xml(child)
        }
        return {name: VocSplit(folder) for name, folder in (folders or flat).items()}
    listings = [file for file in sorted((root / "ImageSets" / "Main").glob("*.txt")) if _lists_images(file)]
    if not listings:
        return {"train": VocSplit(annotations)}
    return {file.stem: VocSplit(annotations, file) for file in listings}


def _has_xml(folder: Path) -> bool:
    return next(folder.glob("*.xml"), None) is not None


def _lists_images(listing: Path) -> bool:
    """Not one of VOC's lists for one class (aeroplane_train.txt), which have a last column of -1, 0 and 1."""
    lines = (line.split() for line in listing.read_text(encoding="utf-8-sig", errors="replace").splitlines())
    rows = [words for words in lines if words]
    return not rows or not all(len(words) > 1 and words[-1] in ("-1", "0", "1") for words in rows)


def _xml_files(source: VocSplit) -> list[Path]:
    if source.listing is None:
        return sorted(source.annotations.glob("*.xml"))
    stems = (line.strip() for line in read_text(source.listing).splitlines())
    return [source.annotations / f"{stem}.xml" for stem in stems if stem]


def read_split(
    root: Path, split: str, source: VocSplit, classes: Sequence[str] | None = None
) -> DetectionData:
    """Read one VOC split; classes are the names found, in alphabetical order, or those given by `classes`.

    Objects marked difficult become crowd regions. Raises DataError when the split lists no file or has no class;
    single bad records become problems.
    """
    listing = source.listing or source.annotations
    folder, there = _pictures(root, source)
    collect = Collector(folder, classes)
    for image_id, file in enumerate(_xml_files(source), start=1):
        collect.file = file
        tree = _parse(file, listing, collect)
        if tree is None:
            continue
        name = _image_name(tree, file, there)
        size = [tree.findtext(f"size/{side}") for side in ("width", "height")]
        if collect.add_image(image_id, name, size, f"image '{name}'"):
            for number, node in enumerate(tree.findall("object"), start=1):
                _add_box(collect, node, number)
    collect.file = listing
    return collect.pack(root, "VOC", split)


def _parse(file: Path, listing: Path, collect: Collector) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(read_text(file))
    except DataError as error:
        collect.file = listing
        collect.report("unreadable annotation", f"'{file.stem}'", "", str(error))
    except ElementTree.ParseError as error:
        line, column = error.position
        where = f"line {line}, column {column + 1}"
        collect.report("invalid XML", where, f"({error})", "write the file again")
    return None


def _pictures(root: Path, source: VocSplit) -> tuple[Path, dict[str, str]]:
    """The folder of the pictures, and its pictures' names by name and by stem."""
    for folder in (root / "JPEGImages", root / "images", source.annotations):
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        names = [name for name in names if Path(name).suffix.lower() in EXTENSIONS]
        if names:
            return folder, {Path(name).stem: name for name in names} | {name: name for name in names}
    return root / "JPEGImages", {}


def _image_name(tree: ElementTree.Element, file: Path, there: dict[str, str]) -> str:
    """The picture named as the xml file is, since <filename> is often left behind by renaming; else <filename>."""
    written = Path((tree.findtext("filename") or "").strip().replace("\\", "/")).name
    return (
        there.get(file.stem)
        or there.get(written)
        or there.get(Path(written).stem)
        or written
        or f"{file.stem}.jpg"
    )


def _add_box(collect: Collector, node: ElementTree.Element, number: int) -> None:
    name = (node.findtext("name") or "").strip()
    record = f"object {number} '{name}'"
    texts = [(node.findtext(f"bndbox/{corner}") or "").strip() for corner in CORNERS]
    value, corners = shown(texts), numbers(texts)
    difficult = node.findtext("difficult")
    crowd = flag(difficult)
    if corners is None:
        mend = "write the numbers xmin, ymin, xmax and ymax in its bndbox"
        collect.report("malformed box", record, value, mend)
    elif crowd is None:
        collect.report("malformed difficult", record, shown(difficult), "write 0 or 1")
    else:
        collect.add_box((corners[0], corners[1], corners[2], corners[3]), name, record, value, crowd=crowd)
