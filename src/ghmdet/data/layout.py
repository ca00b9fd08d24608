"""What the readers share: the splits' names, text files, folders of pictures, the classes' names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ghmdet.data.images import EXTENSIONS
from ghmdet.data.records import VALIDATION_NAMES
from ghmdet.data.values import shown
from ghmdet.errors import DataError

SPLITS = ("train", *VALIDATION_NAMES, "test")
PROBES = 16  # how many file names decide which folder holds the pictures


def split_names(split: str) -> tuple[str, ...]:
    """The names under which a split may be found, its own first; val, valid and validation are one name.

    >>> split_names("valid"), split_names("test")
    (('valid', 'val', 'validation'), ('test',))
    """
    return tuple(dict.fromkeys((split, *VALIDATION_NAMES))) if split in VALIDATION_NAMES else (split,)


def read_text(path: Path) -> str:
    """The text of a file; raises DataError naming it when it is missing, empty or not text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file: check the path") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}): check the path and its permissions"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path}: empty file: write it again")
    return text


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, without the spaces around them; raises as `read_text`."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def image_files(folder: Path) -> list[Path]:
    """The pictures under a folder, sub-folders included, in the order of their names."""
    found = (
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in EXTENSIONS
    )
    return sorted(found)


def folder_of(names: Sequence[str], candidates: Iterable[Path]) -> Path:
    """The candidate folder that holds most of the first named pictures; the first candidate when none holds any."""
    candidates = list(dict.fromkeys(candidates))
    hits = [sum((folder / name).is_file() for name in names[:PROBES]) for folder in candidates]
    return candidates[hits.index(max(hits))]


def class_name(name: object, where: Path | str) -> str:
    """A class's name as text; raises DataError where it is neither text nor a number."""
    if isinstance(name, bool) or not isinstance(name, (str, int, float)):
        raise DataError(f"{where}: {shown(name)} is no name of a class: write text")
    return str(name).strip()


def checked_classes(names: Iterable[object], file: Path | str) -> tuple[str, ...]:
    """The class names as text; raises DataError when there is none, one is no name, or one is there twice."""
    classes = tuple(class_name(name, file) for name in names)
    if not classes:
        raise DataError(f"{file}: no classes: name at least one category")
    if "" in classes:
        raise DataError(f"{file}: a class has an empty name: name every category")
    if twice := next((name for name, count in Counter(classes).items() if count > 1), None):
        raise DataError(f"{file}: class '{twice}' is there twice: give every category a name of its own")
    return classes
