"""Reader of YOLO txt: data.yaml with names and train/val/test, or images/{split} and labels/{split} with classes.txt.

A line is `class cx cy w h`, fractions of the picture's size; or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, of which the
surrounding box is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ghmdet.data.collector import Collector
from ghmdet.data.images import EXTENSIONS
from ghmdet.data.layout import SPLITS, checked_classes, image_files, read_lines, read_text
from ghmdet.data.records import DetectionData
from ghmdet.data.values import numbers, shown, whole
from ghmdet.errors import DataError

LOOKED_FOR = "data.yaml with names and train/val/test, or images/{split} and labels/{split} with classes.txt"
NOTHING = ("", "~", "null", "none")
OUTSIDE = 2.0  # fractions beyond this are no rounding or sticking out: they must be pixels


class YoloSplit(NamedTuple):
    """The folders of pictures or lists of pictures of a split, and the file that names the classes."""

    images: tuple[Path, ...]
    names: Path | None


def find_splits(root: Path) -> dict[str, YoloSplit]:
    """The splits of a YOLO folder, or of a data.yaml; without splits its one split is called train."""
    config = root if root.is_file() else _config(root)
    if config is not None and (splits := _yaml_splits(config)):
        return splits
    if root.is_file():
        raise DataError(f"{root}: names no pictures: give train, val or test a folder")
    texts = (root / "classes.txt", root / "labels" / "classes.txt")
    names = config or next((file for file in texts if file.is_file()), None)
    for layout in (("images/{}", "labels/{}"), ("{}/images", "{}/labels")):
        places = {split: [root / folder.format(split) for folder in layout] for split in SPLITS}
        there = {split: pair for split, pair in places.items() if all(folder.is_dir() for folder in pair)}
        found = {split: YoloSplit((images,), names) for split, (images, _) in there.items()}
        if found:
            return found
    if (root / "images").is_dir() and next((root / "labels").glob("*.txt"), None) is not None:
        return {"train": YoloSplit((root / "images",), names)}
    return {}


def _config(root: Path) -> Path | None:
    """The yaml file with class names: data.yaml, or the first other one that names classes and a split."""
    data = root / "data.yaml"
    if data.is_file() and "names" in _load(data):
        return data
    for file in [*sorted(root.glob("*.yaml")), *sorted(root.glob("*.yml"))]:
        with suppress(DataError):  # any other yaml file may lie there
            if file != data and "names" in (content := _load(file)) and not content.keys().isdisjoint(SPLITS):
                return file
    return None


def _load(file: Path) -> dict[str, Any]:
    text = read_text(file)
    try:
        content = yaml.load(
            text, Loader=yaml.BaseLoader
        )  # every word as written: a class may be called yes or 2024
    except RecursionError:
        raise DataError(f"{file}: invalid YAML (nested too deep): write the file again") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = " ".join(str(getattr(error, "problem", error)).split())
        raise DataError(f"{file}: invalid YAML{place} ({said}): write the file again") from None
    return content if isinstance(content, dict) else {}


def _yaml_splits(config: Path) -> dict[str, YoloSplit]:
    content = _load(config)
    written = content.get("path")
    base = config.parent / (written if isinstance(written, str) else "")
    if not base.is_dir():
        base = config.parent  # `path` is often the place on the machine that wrote it
    splits = {}
    for split in SPLITS:
        entries = content.get(split) or []
        entries = entries if isinstance(entries, list) else [entries]
        if not all(isinstance(entry, str) for entry in entries):
            raise DataError(
                f"{config}: {split} is {shown(entries)}: give it a folder, a list file or several"
            )
        if places := tuple(_place(base, entry) for entry in entries if entry.lower() not in NOTHING):
            splits[split] = YoloSplit(places, config)
    return splits


def _place(base: Path, entry: str) -> Path:
    """The path of an entry; Roboflow writes ../train/images for what lies beside its data.yaml."""
    path = base / entry
    return base / entry[3:] if entry.startswith("../") and not path.exists() else path


def _class_names(source: YoloSplit) -> tuple[str, ...]:
    file = source.names
    if file is None:
        where = source.images[0]
        raise DataError(f"{where}: no class names: write classes.txt, one name a line, or data.yaml")
    if file.suffix == ".txt":
        return checked_classes(read_text(file).strip().splitlines(), file)
    content = _load(file)
    names = content.get("names")
    if isinstance(names, dict):
        numbered = {whole(number): name for number, name in names.items()}
        if set(numbered) != set(range(len(names))):
            last = len(names) - 1
            raise DataError(f"{file}: names are not numbered 0 to {last}: number them without a gap")
        names = [numbered[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{file}: no class names: write names: [first, second]")
    classes = checked_classes(names, file)
    if "nc" in content and whole(content["nc"]) != len(classes):
        said = f"nc is {content['nc']!s:.60} but names has {len(classes)}"
        raise DataError(f"{file}: {said}: make them agree")
    return classes


def _images(place: Path) -> list[Path]:
    if place.is_dir():
        return image_files(place)
    if place.suffix.lower() in EXTENSIONS:
        return [place]
    if not place.exists():
        raise DataError(f"{place}: no such folder or list of pictures: correct its entry in data.yaml")
    return [place.parent / line for line in read_lines(place)]


def _label_file(image: Path) -> Path:
    """labels/ in the place of the path's last images/, else beside the picture."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def read_split(
    root: Path, split: str, source: YoloSplit, classes: Sequence[str] | None = None
) -> DetectionData:
    """Read one YOLO split; classes are those that its data.yaml or classes.txt names, or ordered as by `classes`.

    A picture without a label file is a picture without boxes. Sizes come from the pictures' headers. Raises
    DataError when class names or pictures are missing; single bad records become problems.
    """
    own = _class_names(source)
    classes = own if classes is None else tuple(classes)
    images = [image for place in source.images for image in _images(place)]
    if not images:
        places = ", ".join(map(str, source.images))
        raise DataError(f"{places}: an empty data set: no pictures there: add some or correct the path")
    base = root.parent if root.is_file() else root
    collect = Collector(base, classes)
    for image_id, image in enumerate(images, start=1):
        collect.file = image
        name = str(image.relative_to(base)) if image.is_relative_to(base) else str(image)
        if not collect.add_image(image_id, name, (None, None), ""):
            continue
        collect.file = _label_file(image)
        if collect.file.is_file():
            lines = collect.file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    _add_box(collect, line, number, own)
    return collect.pack(root, "YOLO", split)


def _add_box(collect: Collector, line: str, number: int, names: Sequence[str]) -> None:
    record, value = f"line {number}", shown(line.strip())
    words = numbers(line.split())
    fractions = words[1:] if words else []
    polygon = len(fractions) >= 6 and len(fractions) % 2 == 0
    if words is None or (len(fractions) != 4 and not polygon):
        collect.report("malformed box", record, value, "write five numbers: class cx cy w h")
    elif words[0] not in range(len(names)):
        collect.report("unknown class", record, value, f"classes are 0 to {len(names) - 1}")
    elif max(fractions) > OUTSIDE:
        mend = "divide by the picture's width and height"
        collect.report("box not in fractions", record, value, mend)
    else:
        if polygon:
            xs, ys = fractions[0::2], fractions[1::2]
            x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
        else:
            cx, cy, w, h = fractions
            x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        width, height = collect.size
        corners = (x1 * width, y1 * height, x2 * width, y2 * height)
        collect.add_box(corners, names[int(words[0])], record, value)
