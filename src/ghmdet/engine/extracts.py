"""What `ghmdet predict` writes on demand: YOLO labels of its boxes (`--save-txt`), and what is in each (`--crop`)."""

import math
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from ghmdet.data.values import shown
from ghmdet.draw import save_jpeg
from ghmdet.engine.sources import Reader, Source
from ghmdet.engine.unfinished import Results
from ghmdet.errors import GhmdetError
from ghmdet.files import files_below, state_of, write_atomic

LABELS, CROPS = "labels", "crops"
"""The folders that they are written into."""
MARKER = ".ghmdet-predict"
"""The file in each that tells it from the user's own."""
UNSAFE = re.compile(r"[^\w ,()+-]")  # in a folder's name
LONGEST_NAME = 255
"""Bytes of a file's name."""
Found = Iterable[tuple[str, Results]]


def check(out: Path, names: Sequence[Path], folders: Sequence[str], classes: Sequence[str]) -> None:
    """Raise GhmdetError where one of the folders in `out` is in use, two things there would have one name, or a class
    is no line of a text.
    """
    several = [name for name in classes if name.splitlines() != [name]]
    if LABELS in folders and several:
        raise GhmdetError(
            f"class {shown(several[0])}: is no line of classes.txt: leave --save-txt out, or rename it"
        )
    for folder in (LABELS, CROPS):
        there = out / folder
        if not there.is_symlink() and (there / MARKER).is_file() and not _as_written(there):
            raise GhmdetError(
                f"{there}: was changed since `ghmdet predict` wrote it, and would be removed: move it away, or give"
                " another --out"
            )
    for folder in folders:
        there = out / folder
        if there.is_symlink():
            raise GhmdetError(f"{there}: is a link, which is not followed: remove it, or give another --out")
        if not (there / MARKER).exists() and there.exists() and (not there.is_dir() or any(there.iterdir())):
            raise GhmdetError(f"{there}: holds what no `ghmdet predict` wrote: give another --out")
    taken = {Path("classes"): Path("classes.txt")}
    for name in names if folders else ():
        if name.parts[0] in folders:
            raise GhmdetError(
                f"{name}: its drawing would lie in {out / name.parts[0]}: rename the folder it is in"
            )
        if (other := taken.setdefault(name.with_suffix(""), name)) != name:
            raise GhmdetError(
                f"{name}: what is written of it would have the name of that of {other}: rename it"
            )
    for above in sorted({parent for name in names for parent in name.parents[:-1]}):
        for written, ending in ((LABELS, r"(.+)\.txt"), (CROPS, r"(.+)-[0-9]+\.jpg")):
            stem = re.fullmatch(ending, above.name, re.DOTALL)
            clash = (stem and above.with_name(stem[1]) in taken) or above == Path(MARKER)
            if written in folders and clash:
                raise GhmdetError(
                    f"{above}: what is written into {out / written} would have its name: rename it"
                )


def short(name: str, picture: str, ending: str) -> str:
    """A name for what is made of a picture, cut where it is too long for a disk."""
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    return f"{picture[:40]}~{zlib.crc32(os.fsencode(picture)):08x}{ending}"


def remove(folder: Path) -> bool:
    """Remove what an earlier predict wrote there; whether there was something."""
    there = not folder.is_symlink() and (folder / MARKER).exists()
    if there:
        shutil.rmtree(folder)
    return there


def _as_written(folder: Path) -> bool:
    """Whether nothing was added or changed since a predict wrote it; one that was cut off has not said what."""
    told = (folder / MARKER).read_text(encoding="utf-8")
    return not told or told == _state(folder)


def _state(folder: Path) -> str:
    """A word for the names and contents of the files in a folder and below, but for hidden ones."""
    return state_of(folder, files_below(folder))


def _new(folder: Path) -> None:
    remove(folder)
    folder.mkdir(exist_ok=True)
    (folder / MARKER).touch()  # before all else: what is left of an interrupted one is known


def write_labels(
    folder: Path, found: Found, sources: Mapping[str, Source], classes: Mapping[int, str]
) -> None:
    """Write the boxes of each picture as rows `class cx cy w h`, in fractions of it, and the names of the classes.

    found: COCO results of each picture by its name. classes: names by category id, in the order of their numbers.
    """
    numbers, reader = {category: number for number, category in enumerate(classes)}, Reader()
    _new(folder)
    write_atomic(folder / "classes.txt", "".join(f"{name}\n" for name in classes.values()))
    for name, rows in found:
        height, width = reader.size(sources[name])
        lines = []
        for row in rows:
            x, y, w, h = row["bbox"]
            place = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            lines.append(" ".join([str(numbers[row["category_id"]]), *(f"{value:.6f}" for value in place)]))
        picture = Path(name)
        file = folder / picture.with_name(short(f"{picture.stem}.txt", picture.name, ".txt"))
        write_atomic(file, "".join(f"{line}\n" for line in lines))
    write_atomic(folder / MARKER, _state(folder))


def write_crops(
    folder: Path, found: Found, sources: Mapping[str, Source], classes: Mapping[int, str]
) -> None:
    """Write what is in each box as a picture: CLASS/NAME-1.jpg for the surest of a picture, then -2 and so on.

    The arguments are those of `write_labels`.
    """
    reader = Reader()
    _new(folder)
    for name, rows in found:
        read = reader.read(sources[name]) if rows else None
        if read is None:
            continue
        picture, (height, width) = Image.fromarray(read[0]), read[1]
        for number, row in enumerate(rows, start=1):
            x, y, w, h = row["bbox"]
            scale = picture.width / width, picture.height / height
            left, top = int(x * scale[0]), int(y * scale[1])
            right, bottom = (
                max(first + 1, min(side, math.ceil(end)))
                for first, side, end in (
                    (left, picture.width, (x + w) * scale[0]),
                    (top, picture.height, (y + h) * scale[1]),
                )
            )
            label = UNSAFE.sub("_", classes[row["category_id"]])[:80]
            place = Path(name)
            cut = short(f"{place.stem}-{number}.jpg", place.name, f"-{number}.jpg")
            file = folder / label / place.with_name(cut)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_jpeg(picture.crop((left, top, right, bottom)), file, quality=92)
    write_atomic(folder / MARKER, _state(folder))
