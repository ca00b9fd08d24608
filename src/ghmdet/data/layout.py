"""What the readers share: the splits' names, text files, the classes' names."""

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from ghmdet.data.records import VALIDATION_NAMES
from ghmdet.data.values import shown
from ghmdet.errors import DataError

SPLITS = ("train", *VALIDATION_NAMES, "test")
REPLACED, REPLACING = ".replaced", ".names.json"
"""The folder below a set in which an earlier one is while the new takes its place, and the file there that lists what
does, without which nothing was moved yet."""
MEANT = {"training": "train", "dev": "val", "eval": "val", "validate": "val", "testing": "test"}
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
T = TypeVar("T")
DECLARED = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]{1,40})["']""")


def split_called(folder: str) -> str:
    """The split that a folder is named after, in lower case; the name itself where it is none.

    >>> split_called("Train"), split_called("Cam1")
    ('train', 'Cam1')
    """
    return folder.lower() if folder.lower() in SPLITS else folder


def meant(folder: str) -> str:
    """The split that a folder's name is likely to mean; the name itself where it means none.

    >>> [meant(name) for name in ("Train", "val2017", "Testing", "Cam1")]
    ['train', 'val', 'test', 'Cam1']
    """
    word = re.sub(r"[-_ ]?(19|20)\d\d$", "", folder.lower())
    return MEANT.get(word, word if word in SPLITS else folder)


def part_of(split: str) -> str:
    """The part that a split's name means, by one name for validation; the name itself where it means none.

    >>> [part_of(name) for name in ("Train2017", "valid", "dev", "minival")]
    ['train', 'val', 'val', 'minival']
    """
    return VALIDATION_NAMES[0] if meant(split) in VALIDATION_NAMES else meant(split)


def by_split(places: Mapping[str, T]) -> dict[str, T]:
    """Places by the split that each one is named after or, where none is and no two mean one, that its name means;
    train, val and test come first.

    >>> by_split({"val2014": 2, "Training": 1, "val2017": 3})
    {'train': 1, 'val2014': 2, 'val2017': 3}
    >>> by_split({"Train": 1, "train2017": 2, "valid": 3, "dev": 4})
    {'train': 1, 'valid': 3, 'train2017': 2, 'dev': 4}
    """
    named, likely = Counter(map(split_called, places)), Counter(map(meant, places))

    def called(name: str) -> str:
        own, other = split_called(name), meant(name)
        if own in SPLITS:
            return own if named[own] == 1 else name
        return other if likely[other] == 1 and not any(one in named for one in split_names(other)) else name

    found = {called(name): place for name, place in places.items()}
    return {split: found[split] for split in dict.fromkeys((*SPLITS, *found)) if split in found}


def split_names(split: str) -> tuple[str, ...]:
    """The names under which a split may be found, its own first; val, valid and validation are one name.

    >>> split_names("valid"), split_names("test")
    (('valid', 'val', 'validation'), ('test',))
    """
    return tuple(dict.fromkeys((split, *VALIDATION_NAMES))) if split in VALIDATION_NAMES else (split,)


def read_text(path: Path) -> str:
    """The text of a file, in the encoding that its first bytes declare, else UTF-8.

    Raises DataError naming it when it is missing, empty or not such text.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # reading a device may never end
            raise DataError(f"{path}: is neither a file nor a folder: give a file")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file: check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        said = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({said}): check the path and its permissions") from None
    declared = DECLARED.match(raw)
    encoding = declared.group(1).decode() if declared else "UTF-8"
    if raw[:2] in UTF16:
        encoding = "UTF-16"
    try:
        text = raw.decode("utf-8-sig" if encoding.upper() == "UTF-8" else encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not {encoding} text (byte {error.start}): save it as UTF-8") from None
    except (LookupError, ValueError):
        raise DataError(f"{path}: no such encoding as the declared '{encoding}': save it as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path}: empty file: write it again")
    return text


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, without the spaces around them; raises as `read_text`."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def class_name(name: object, where: Path | str) -> str:
    """A class's name as text; raises DataError where it is neither text nor a number."""
    if isinstance(name, bool) or not isinstance(name, (str, int, float)):
        raise DataError(f"{where}: {shown(name)} is no name of a class: write text")
    return str(name).encode(errors="replace").decode().strip()  # a half character cannot be drawn or printed


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


def namesakes(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names that differ only in case, plural, blanks, Unicode form or signs that nobody sees.

    Single characters are not compared; what stands before a number, and after none or another one, is no blank.

    >>> list(namesakes(["car", "bus", "traffic light", "Cars", "TrafficLight", "10", "-10", "1_0"]))
    [('car', 'Cars'), ('traffic light', 'TrafficLight')]
    """
    singular, plural = dict[str, str](), dict[str, str]()
    for name in names:
        own = re.sub(r"[\s_-]+", " ", _seen("NFKC", name).casefold())
        own = re.sub(r"(?<=[^\W\d_]) | (?!\d)", "", own)
        if len(own) < 2:
            continue
        many = (f"{own}s", f"{own}es", re.sub("y$", "ies", own))
        alike = (singular.get(own), plural.get(own), *map(singular.get, many))
        if (other := next(filter(None, alike), None)) is not None:
            yield other, name
        singular.setdefault(own, name)
        plural.update({form: name for form in many if form not in plural})


def _seen(form: Literal["NFC", "NFKC"], name: str) -> str:
    """A name in a Unicode form, without what nobody sees: signs of format, and which kind of blank one is."""
    shown = (each for each in unicodedata.normalize(form, name) if unicodedata.category(each) != "Cf")
    return "".join(" " if each.isspace() else each for each in shown)


def apart(one: str, other: str) -> tuple[str, str]:
    """Two names in quotes; where they look alike, with escapes for what differs.

    >>> apart("car", "Car"), apart("car", "car\u200b")
    (("'car'", "'Car'"), ("'car'", "'car\\\\u200b'"))
    """
    alike = _seen("NFC", one) == _seen("NFC", other)
    return (ascii(one), ascii(other)) if alike else (f"'{one}'", f"'{other}'")


@lru_cache
def did_you_mean(name: str, classes: tuple[str, ...]) -> str | None:
    """The class that hardly differs from a name that is none of them (see `namesakes`)."""
    return next((one for one, other in namesakes((*classes, name)) if other == name), None)
