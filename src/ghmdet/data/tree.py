"""The files of a data set's folder: what is there, what a listed name means, what is left over."""

import filecmp
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import lru_cache
from glob import has_magic
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from ghmdet.data.layout import MEANT, SPLITS, by_split, meant, part_of
from ghmdet.data.records import NAMED_PROBLEMS, Problem, Severity
from ghmdet.errors import DataError
from ghmdet.pictures import EXTENSIONS, beginning

WHOLE = re.compile(r"(?:[a-zA-Z][\w+.-]*:|[\\/])")  # how a path begins that is below no folder of here
FOREIGN = re.compile(rf"\\|%[\da-fA-F]{{2}}|\?\w+=|^{WHOLE.pattern}|^\.\.")  # a path of elsewhere
SEPARATORS = re.compile(r"[\\/]+|[?&]\w+=")  # of paths, and of URLs that carry one
BESIDE = {"images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "data", "set", "obj"}
"""Words of no meaning in a folder's name."""
LABELS = {
    ".txt": re.compile(rb"\s*[\d.]+([ \t]+[-+.\deE]+){4}"),
    ".xml": re.compile(rb"<(\w+:)?(annotations?|object)\b", re.IGNORECASE),
    ".json": re.compile(rb'"(shapes|images|annotations|categories)"\s*:\s*\['),
}  # what the beginning of a label file holds, by its ending
PROBES = 16  # how many of the listed pictures are looked at to know what all are
HEAD = 1 << 16  # bytes
UNREAD = {".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".svg", ".exr"}
UNREAD -= EXTENSIONS

NO_LABEL = "label file that no split uses"
NO_PICTURE = "picture that no split uses"
UNREADABLE = "label file that cannot be read"
LEFT: dict[str, tuple[Severity, str]] = {
    NO_LABEL: ("warning", "not read: no picture of a split goes with it"),
    NO_PICTURE: ("note", "not read: no label file, list or sound record names it"),
    UNREADABLE: ("warning", "not read: mend its link or its permissions, or remove it"),
    "picture that the installed Pillow cannot open": ("warning", "not read: save it as JPEG or PNG"),
    "folder that may not be read": ("error", "allow reading it"),
    "symlinked folder that leads back": ("warning", "not followed: its files are read once"),
    "hidden file": ("note", "skipped on purpose"),
    "pipe or device": ("warning", "not opened: reading it may never end"),
    "list of one class": (
        "warning",
        "not read, by its last column of -1, 0 and 1: leave it out if it is of all",
    ),
}
"""What can be left over of a data set, with the severity and what is said about it."""
_, _, _, UNOPENED, CLOSED, LOOP, HIDDEN, DEVICE, ONE_CLASS = LEFT


def below(folder: str, name: str) -> str:
    """The path of a name in a folder, without a leading ./"""
    return name if folder == os.curdir else os.path.join(folder, name)


def surrounds(place: Path, *folders: str | Path) -> bool:
    """Whether a path, or a pattern of any depth, takes in what lies beside each of the folders too: it is above them,
    or the root of the file system, which takes minutes to look through.
    """
    path = os.path.abspath(place)
    there = beginning(path)
    deeper = path[len(there) :] if has_magic(path[len(there) :]) else ""
    start = Path(there if deeper else path)
    above = all(start in Path(os.path.abspath(folder)).parents for folder in folders)
    return (above or start == start.parent) and (not deeper or "**" in deeper.strip(os.sep).split(os.sep)[:2])


def ending(path: str) -> str:
    """The ending of a file's name in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()


def readable(path: str | Path) -> bool:
    """Whether a file can be read: it is no broken link, and may be opened."""
    return os.access(path, os.R_OK)


def looks_like_label(path: str) -> bool:
    """Whether a file begins as the label files of its ending do."""
    pattern = LABELS.get(ending(path))
    if pattern is None:
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            if b'"imageData"' in head:  # LabelMe's, with the picture before the shapes
                return True
            if (
                len(head) < HEAD and ending(path) == ".json"
            ):  # the categories of nothing, as Label Studio's notes.json
                head = re.sub(rb'"categories"\s*:', b"", head)
            return bool((pattern.match if ending(path) == ".txt" else pattern.search)(head))
    except OSError:
        return False


def _composed(name: str) -> str:
    """A name with its accents as parts of their letters: macOS writes them apart, most else does not."""
    return unicodedata.normalize("NFC", name)


@lru_cache
def folder_parts(name: str) -> frozenset[str]:
    """The parts that a folder's name means: by the names of splits in it or, without any, by its one other word beside
    numbers, letters and words such as images.

    >>> [*map("".join, map(folder_parts, ("coco_val2017", "test-dev", "Eval_a", "obj_Train_data", "dev-board", "1")))]
    ['val', 'test', 'val', 'train', '', '']
    """
    words = [word for word in re.findall("[a-z]{2,}", name.lower()) if word not in BESIDE]
    if not (named := [word for word in words if word in SPLITS]) and len(words) == 1:
        named = [word for word in words if word in MEANT]
    return frozenset(map(part_of, named))


class Folder(NamedTuple):
    """What lies in a folder: the names to walk, in order; which are folders; the others by `ending`; all files by stem;
    the hidden names."""

    names: list[str]
    folders: set[str]
    ends: dict[str, list[str]]
    stems: dict[str, list[str]]
    hidden: list[str]


class Tree:
    """The files of the data set at `given`, a folder or a file in it; `root` is the folder.

    Symlinked folders are followed, but not into what is seen anyway. Hidden files (also those of macOS) are not walked.
    """

    def __init__(self, given: Path) -> None:
        self.given, self.whole = given, given.is_dir()
        folder = given if self.whole else given.parent
        self.root = os.path.normpath(folder)
        # Up from a link: the system follows it first.
        if os.path.realpath(self.root) != os.path.realpath(folder):
            self.root = os.path.realpath(folder)
        if self.root == os.curdir:  # it has no name in the paths of what it holds
            self.root = os.path.abspath(folder)
            self.given = Path(self.root, "" if self.whole else given.name)
        self.linked = False  # whether any link was seen
        self.used: set[str] = set()  # the pictures and label files that readers say they read
        self.skipped: dict[str, dict[str, None]] = defaultdict(dict)  # paths by kind of LEFT
        # By split, pictures and the other folders they are listed in; and those not taken, as they are another part's.
        self.elsewhere: dict[str, dict[str, str]] = defaultdict(dict)
        self.barred: dict[str, dict[str, None]] = defaultdict(dict)
        self.parsed: dict[Path, dict[str, Any]] = {}  # what files that readers parse say
        self._folders: dict[str, Folder] = {}
        self._homes: dict[tuple[str, Sequence[str]], list[str]] = {}

    def folder(self, path: str) -> Folder:
        """What lies in a folder; nothing where there is none."""
        if path not in self._folders:
            self._folders[path] = self._look(path)
        return self._folders[path]

    def _look(self, path: str) -> Folder:
        seen = Folder([], set(), {}, {}, [])
        try:
            with os.scandir(path) as entries:
                found = sorted((e.name, _is_folder(e), e.is_symlink(), _is_device(e)) for e in entries)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
            return seen
        except PermissionError:
            self.skipped[CLOSED][path] = None
            return seen
        for name, is_folder, is_link, is_device in found:
            if is_device:
                self.skipped[DEVICE][below(path, name)] = None
                continue
            self.linked = self.linked or is_link
            hidden = name.startswith((".", "__MACOSX"))
            (seen.hidden if hidden else seen.names).append(name)
            if is_folder:
                seen.folders.add(name)
                continue
            stem, end = os.path.splitext(name)
            seen.stems.setdefault(_composed(stem), []).append(name)
            if not hidden:
                seen.ends.setdefault(end.lower(), []).append(name)
        return seen

    def folders(self, path: str) -> dict[str, str]:
        """The folders in a folder, by their names, in order."""
        here = self.folder(path)
        return {name: below(path, name) for name in here.names if name in here.folders}

    def at(self, path: str, *names: str) -> str:
        """The path of folders in one another, each spelled as it is there: Train/Images for train, images."""
        for name in names:
            there = self.folders(path)
            alike = (folder for own, folder in there.items() if own.lower() == name.lower())
            path = there.get(name) or next(alike, below(path, name))
        return path

    def parts(self, path: str) -> dict[str, str]:
        """The folders with pictures in a folder whose names mean splits, by these."""
        likely = {name: folder for name, folder in self.folders(path).items() if meant(name) in SPLITS}
        return by_split({name: folder for name, folder in likely.items() if any(self._pictures(folder))})

    def one_part(self, top: str, endings: Container[str]) -> None:
        """Make sure that all files below a folder with one of the endings can be one split.

        Raises DataError where the name of a folder of theirs means val or test.
        """
        files = (path for path in self.walk(top) if ending(path) in endings)
        for folder in dict.fromkeys(map(os.path.dirname, files)):
            for name in os.path.relpath(folder, top).split(os.sep):
                if (part := meant(name)) in SPLITS[1:]:
                    raise DataError(
                        f"{folder}: pictures of split {part} in a folder that is read as one split: give"
                        f" train and {part} folders side by side, or move this one away"
                    )

    def homes(self, folder: str, among: Sequence[str], instead: Sequence[str]) -> list[str]:
        """The folders with one of the names `instead` in the place of the last of the names `among` in a folder's path,
        and the folder itself, last. Folders above the data set are left as they are called.
        """
        if (folder, among) not in self._homes:
            inside = os.path.relpath(folder, self.root)
            top = self.root if not inside.startswith(os.pardir) else os.sep
            parts = (inside if top == self.root else os.path.abspath(folder)).split(os.sep)
            last = max((place for place, part in enumerate(parts) if part.lower() in among), default=None)
            found = [folder]
            if last is not None:
                above = os.path.normpath(os.path.join(top, *parts[:last]))
                ends = ([*filter(None, [name]), *parts[last + 1 :]] for name in instead)
                found = [*(self.at(above, *end) for end in ends), folder]
            self._homes[folder, among] = list(dict.fromkeys(found))
        return self._homes[folder, among]

    def one_of(self, paths: Sequence[str]) -> str | None:
        """The first of the pictures that a record may mean; raises DataError where another one differs from it."""
        for other in paths[1:]:
            if not filecmp.cmp(paths[0], other, shallow=False):
                raise DataError(
                    f"{self.given}: ambiguous: {paths[0]} and {other} differ, and labels may mean either: "
                    "move one of them away"
                )
        return paths[0] if paths else None

    def files(self, path: str, *endings: str) -> list[str]:
        """The files in a folder, not below it, that have one of the endings."""
        ends = self.folder(path).ends
        return [below(path, name) for name in sorted(name for end in endings for name in ends.get(end, ()))]

    def has(self, path: str) -> bool:
        """Whether there is such a file."""
        folder, name = os.path.split(path)
        return name in self.folder(folder).stems.get(_composed(os.path.splitext(name)[0]), ())

    def named(self, folder: str, stem: str, endings: Iterable[str]) -> list[str]:
        """The files in a folder that have this stem and one of the endings, in lower or upper case."""
        names = self.folder(folder).stems.get(_composed(stem), ())
        fitting = [name for name in names if ending(name) in endings]
        exact = [name for name in fitting if os.path.splitext(name)[0] == stem]
        return [below(folder, name) for name in exact or fitting]

    def walk(self, top: str) -> Iterator[str]:
        """Every file below a folder, in the order of their names, folder by folder."""
        pending: list[tuple[str, bool, tuple[str, ...]]] = [(top, True, (os.path.realpath(top),))]
        while pending:
            path, is_folder, above = pending.pop()
            if not is_folder:
                yield path
                continue
            if path != top and os.path.islink(path):
                target = os.path.realpath(path)
                if any(os.path.commonpath([target, place]) in (target, place) for place in above):
                    self.skipped[LOOP][path] = None
                    continue
                above = (*above, target)
            here = self.folder(path)
            pending += [(below(path, name), name in here.folders, above) for name in reversed(here.names)]

    def pictures(self, top: str) -> list[str]:
        """Every picture below a folder, in the order of their names."""
        return list(self._pictures(top))

    def _pictures(self, top: str) -> Iterator[str]:
        return (path for path in self.walk(top) if ending(path) in EXTENSIONS)

    def match(
        self, names: Sequence[str], exact: Sequence[str | None], split: str, top: str
    ) -> list[str | None]:
        """The picture that each listed name means: the one at its path (`exact`), else one below `top`.

        That is the only picture with the name, or the one whose folders agree with most of the listed path, of equals
        the one in the part's own folder; of names that mean one picture, the one that agrees most. It is neither
        another record's nor in the folder of another part, unless the listed path names that folder. Where whole paths
        of another machine name no part but one other (as /home/me/test/ does), its folder counts only for names that
        the part's own does not have. Where other names are found at their paths, only names of elsewhere (foreign
        separators, drives, URLs, absolute paths) are looked for, as others are missing. Pictures whose folder the
        listed one contradicts are kept in `elsewhere`, and those not taken for their part in `barred`.
        """
        lost = dict.fromkeys(name for name, path in zip(names, exact, strict=True) if path is None)
        if not lost:
            return list(exact)
        if any(exact):
            lost = {name: None for name in lost if FOREIGN.search(name) or not name.isascii()}
        taken, there, own = set(exact), defaultdict[str, list[Candidate]](list), part_of(split)
        for path in self.pictures(top) if lost else ():
            parts = _composed(os.path.relpath(path, top).casefold()).split(os.sep)
            of = list(map(folder_parts, parts[:-1]))
            first = next((at for at, named in enumerate(of) if named), len(parts))
            if path not in taken:
                is_own = any(own in named for named in of)
                there[parts[-1]].append(Candidate(parts, path, is_own, 0 if is_own else len(parts) - first))
        listed = {os.path.dirname(unquote(name).replace("\\", "/")) for name in names}
        words = (
            {part for one in SEPARATORS.split(folder) for part in folder_parts(one)} for folder in listed
        )
        others = set(map(frozenset, filter(None, words)))
        own_first = len(others) == 1 and own not in next(iter(others)) and all(map(WHOLE.match, lost))
        claims: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for name in lost:
            if (claim := _meant(name, there, own_first)) is not None:
                claims[claim[1]].append((claim[0], name))
        found = dict[str, str]()
        for path, claimed in claims.items():
            (most, name), *less = sorted(claimed, reverse=True)
            if not most:
                self.barred[split][os.path.relpath(path, self.root)] = None
            elif not less or most > less[0][0]:
                found[name] = path
        for name, path in found.items():
            if folder := _contradicted(name, path, top):
                self.elsewhere[split][os.path.relpath(path, self.root)] = folder
        return [path or found.get(name) for name, path in zip(names, exact, strict=True)]

    def left_over(self, tops: Iterable[str]) -> list[Problem]:
        """What looks like a picture or a label below the folders and is not among the files used, by kind."""
        left: dict[str, list[str]] = defaultdict(list)
        used = set(map(os.path.abspath, self.used))  # a set may write ./a.jpg
        for path in dict.fromkeys(path for top in tops for path in self.walk(top)):
            if os.path.abspath(path) not in used and (kind := _kind(path)):
                left[kind].append(path)
        if self.linked:  # a file may be used by way of a link; a list may name any
            real = {os.path.realpath(path) for path in self.used if "\0" not in path}
            for paths in left.values():
                paths[:] = [path for path in paths if os.path.realpath(path) not in real]
        return list(self.problems(left | {HIDDEN: self.hidden({*EXTENSIONS, *LABELS})}))

    def hidden(self, endings: Container[str]) -> list[str]:
        """The hidden files with one of the endings, and those in hidden folders, wherever it was looked."""
        names = [below(folder, name) for folder, here in self._folders.items() for name in here.hidden]
        deeper = [below(top, file) for one in names for top, _, files in os.walk(one) for file in files]
        return [path for path in names + deeper if ending(path) in endings]

    def problems(self, left: dict[str, list[str]]) -> Iterator[Problem]:
        """What is left over, paths by kind of `LEFT`, and what was not gone into wherever it was looked."""
        for kind, (severity, said) in LEFT.items():
            if paths := [*left.get(kind, ()), *self.skipped.get(kind, ())]:
                shown = ", ".join(os.path.relpath(path, self.root) for path in paths[:NAMED_PROBLEMS])
                more = ", ..." if len(paths) > NAMED_PROBLEMS else ""
                yield Problem(severity, kind, self.root, "", shown + more, said, len(paths))


def _is_device(entry: os.DirEntry[str]) -> bool:
    """Whether it is neither a file nor a folder nor a broken link, as a pipe, whose reading never ends."""
    try:
        return not entry.is_file() and not entry.is_dir() and os.path.exists(entry.path)
    except OSError:  # a link to itself
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _kind(path: str) -> str | None:
    end = ending(path)
    if end in EXTENSIONS:
        return NO_PICTURE
    if end in UNREAD:
        return UNOPENED
    if end in LABELS and not readable(path):
        return UNREADABLE
    return NO_LABEL if looks_like_label(path) else None


class Candidate(NamedTuple):
    """A picture that a record may mean: the parts of its path below the top, its path, whether it lies in the folder of
    the record's own part, and how many of the last parts the record must name, as they are another part's."""

    parts: list[str]
    path: str
    own: bool
    least: int


def _meant(name: str, there: dict[str, list[Candidate]], own_first: bool) -> tuple[int, str] | None:
    """The one picture that a name of elsewhere can mean, by the longest end of its path, and how many parts that end
    has: 0 where it is another part's. None where there are more, or none. there: by the picture's name."""
    barred: list[Candidate] = []
    for text in (name, unquote(name)):
        parts = [part for part in SEPARATORS.split(_composed(text.casefold())) if part]
        while parts and ending(parts[-1]) not in EXTENSIONS:
            parts.pop()
        alike = there.get(parts[-1] if parts else "", [])
        if own_first and any(each.own for each in alike):
            alike = [each for each in alike if not each.least]
        ends = ((_common_end(parts, each.parts), each) for each in alike)
        agreed = sorted((end, each.own, each.path) for end, each in ends if end >= each.least)
        if agreed:
            end, _, path = agreed[-1]
            return (end, path) if len(agreed) == 1 or agreed[-1][:2] > agreed[-2][:2] else None
        barred += alike
    return (0, barred[0].path) if barred else None


def _contradicted(name: str, path: str, top: str) -> str:
    """The folder of a listed path that another one stands for at the picture's place; empty where none does, as where
    the path is of another machine, or only folders of parts and such as images/ come in between."""
    if FOREIGN.search(name.replace("\\", "/")):
        return ""
    listed, found = (
        [part for part in SEPARATORS.split(_composed(text))[:-1] if part.lower() not in {".", *BESIDE}]
        for text in (name, os.path.relpath(path, top))
    )
    listed, found = ([part for part in parts if not folder_parts(part)] for parts in (listed, found))
    known = {part.casefold() for part in listed}, {part.casefold() for part in found}
    apart = (
        listed and found and listed[-1].casefold() not in known[1] and found[-1].casefold() not in known[0]
    )
    return listed[-1] if apart else ""


def _common_end(a: list[str], b: list[str]) -> int:
    pairs = zip(reversed(a), reversed(b), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
