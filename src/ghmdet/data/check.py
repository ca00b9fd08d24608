"""Every problem of a data set, listed: what the readers reject, and what only opening each picture can show."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np

from ghmdet.data.images import load_image
from ghmdet.data.layout import apart, did_you_mean, split_names
from ghmdet.data.read import DataSet, no_usable_box
from ghmdet.data.records import NAMED_PROBLEMS, DetectionData, Problem, Record, Severity, named_first
from ghmdet.data.values import shown
from ghmdet.errors import DataError
from ghmdet.pictures import reason
from ghmdet.progress import counting
from ghmdet.words import many

AT_ONCE = 256  # pictures handed to the threads before their results are taken
TAIL = 4096  # bytes at a file's end, in which hardly two pictures of one size agree
LEAK = "keep it in one, or evaluation is on what was trained on"
COPY = "copy of a picture (by its name before .rf.) in two splits"
Seen = dict[Path, tuple[Record, list[str]]]  # each picture once, and the splits that use it
_error, _warning = partial(Problem, "error"), partial(Problem, "warning")


def check_data(
    path: str | Path,
    split: str | None = None,
    *,
    say: Callable[[str], None] | None = None,
    threads: int = 4,
) -> list[Problem]:
    """Every problem of a data set, of one split or of all (None), errors first.

    Reads the annotations, then decodes every picture in full. say: takes what was read of each split, in a line. A data
    set that cannot be read at all is one problem, not an exception.
    """
    path = Path(path)
    try:
        source = DataSet(path)
        wanted = list(source.splits) if split is None else [source.find(split)]
    except DataError as error:
        return [_unreadable(path, error)]
    problems: list[Problem] = []
    if split is None:
        found = f"(found {', '.join(wanted)})"
        for needed in ("train", "val"):
            if not any(name in wanted for name in split_names(needed)):
                where = f"split {needed}"
                mend = "training needs one" + (": ghmdet data split makes one" if needed == "val" else "")
                problems.append(_warning("no such split", str(path), where, found, mend))
        if "train" in wanted:  # VOC's trainval is the union of two others
            wanted = [name for name in wanted if name != "trainval"]
    read: list[DetectionData] = []
    for name in wanted:
        try:
            read.append(source.read(name))
            if say is not None:
                say(read[-1].summary())
        except DataError as error:
            place, absent, _ = str(error).partition(": no such folder")
            unneeded = absent and split is None and name == "test"
            note = Problem("note", "no such folder", place, f"split {name}", "", "an export may only name it")
            problems.append(note if unneeded else _unreadable(path, error))
    seen: Seen = {}
    for data in read:
        problems += [*data.problems, *_check_records(data, seen)]
    problems += [*_check_classes(read), *_check_copies(read), *_check_pictures(seen, threads)]
    order = get_args(Severity)
    return sorted(dict.fromkeys(problems), key=lambda problem: order.index(problem.severity))


def in_both(train: DetectionData, val: DetectionData) -> list[Path]:
    """The pictures of one part that the other has too, at the same path or with the same content, by val's paths.

    Contents are compared where sizes and last bytes agree, so most files are hardly read; missing files are left out.
    """

    def tail(path: Path) -> tuple[int, bytes] | None:
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL))
                return size, file.read()
        except OSError:
            return None

    paths, others = ([record.path for record in part.records] for part in (val, train))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        ends, other_ends = (dict(zip(part, threads.map(tail, part), strict=True)) for part in (paths, others))
    alike = {end for end in other_ends.values() if end} & set(ends.values())
    digests = {_digest(path) for path, end in other_ends.items() if end in alike}
    return [
        path
        for path, end in ends.items()
        if path in other_ends or (end in alike and _digest(path) in digests)
    ]


def copies(train: DetectionData, val: DetectionData) -> list[Path]:
    """The pictures of val that Roboflow's augmentation made of one that train has, by their names before `.rf.`."""

    def original(path: Path) -> str:
        name, mark, _ = path.name.partition(".rf.")
        return name if mark else ""

    originals = {original(record.path) for record in train.records} - {""}
    return [record.path for record in val.records if original(record.path) in originals]


def has_errors(problems: Iterable[Problem]) -> bool:
    """Whether any problem is an error: something that was left out, or that training would stumble over."""
    return any(problem.severity == "error" for problem in problems)


def format_problems(problems: Sequence[Problem], *, each: bool = False) -> str:
    """A line for each kind of problem of a file with the same mend, or for `each` one, and their number at the end.

    >>> print(format_problems([Problem("warning", "duplicate box", "a.jpg", "RBC", "[1, 1, 9, 9]", "remove one")]))
    warning: a.jpg: RBC: duplicate box [1, 1, 9, 9]: remove one
    0 errors, 1 warning, 0 notes
    """
    counts = Counter(problem.severity for problem in problems)
    summary = (many(counts[kind], kind) for kind in get_args(Severity))
    if each:
        return "\n".join([*map(str, problems), ", ".join(summary)])
    groups: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.severity, problem.file, problem.kind, problem.mend), []).append(problem)
    lines = (
        f"{severity}: {file}: {len(same)} × {kind} ({named_first(one.found for one in same)}): {mend}"
        if len(same) > 1
        else str(same[0])
        for (severity, file, kind, mend), same in groups.items()
    )
    return "\n".join([*lines, ", ".join(summary)])


def _unreadable(path: Path, error: DataError) -> Problem:
    return _error("cannot be read", str(path), "", "", str(error).removeprefix(f"{path}: "))


def _check_records(data: DetectionData, seen: Seen) -> Iterator[Problem]:
    """A split without boxes, boxes twice, crowd regions, pictures twice in it or in another; adds to `seen`."""
    here = f"split {data.split}"
    if empty := no_usable_box(data):
        yield _error("empty data set", str(data.root), empty, "", "add boxes or correct them")
    for record in data.records:
        file = str(record.path)
        rows = np.column_stack([record.boxes, record.labels])
        kept, counts = np.unique(rows, axis=0, return_counts=True)
        for row, count in zip(kept[counts > 1].tolist(), counts[counts > 1], strict=True):
            where = f"{here}, class '{data.classes[int(row[4])]}', {count} times"
            yield _warning("duplicate box", file, where, shown(row[:4]), "keep one of them")
        if crowd := int(record.crowd.sum()):
            where = f"{here}, {crowd} of {len(record.crowd)} boxes"
            yield Problem("note", "crowd", file, where, "", "ignored in evaluation and not trained on")
        splits = seen.setdefault(record.path, (record, []))[1]
        if data.split in splits:
            yield _warning("image listed twice", file, here, "", "merge the two records")
        elif splits:
            yield _warning("image in two splits", file, f"splits {splits[0]} and {data.split}", "", LEAK)
        splits.append(data.split)


def _check_classes(read: Sequence[DetectionData]) -> Iterator[Problem]:
    """Classes without boxes, and boxes of classes that the training split does not have."""
    trained = next((data.boxes_per_class() for data in read if data.split == "train"), None)
    for data in read:
        root, here = str(data.root), f"split {data.split}"
        for name, count in data.boxes_per_class().items():
            if count == 0:
                mend = "add boxes of it or remove the class"
                yield _warning("class without boxes", root, here, f"'{name}'", mend)
            elif trained is not None and name not in trained:
                value, mend = f"'{name}'", f"the training split's classes are {', '.join(trained)}"
                if near := did_you_mean(name, tuple(trained)):
                    boxes, others = (many(number, "box/boxes") for number in (count, trained[near]))
                    own, meant = apart(name, near)
                    value = f"{own} ({boxes}; did you mean {meant}, of {others} in train?)"
                yield _error("unknown class", root, here, value, mend)


def _check_copies(read: Sequence[DetectionData]) -> Iterator[Problem]:
    """Pictures of other splits that were augmented from what one of the training split was."""
    train = next((data for data in read if data.split == "train"), None)
    for data in read:
        if train and data is not train and (found := copies(train, data)):
            shown = ", ".join(path.name for path in found[:NAMED_PROBLEMS])
            where = f"splits train and {data.split}"
            yield _warning(COPY, str(data.root), where, f"({shown})", LEAK, len(found))


def _check_pictures(seen: Seen, threads: int) -> Iterator[Problem]:
    """Pictures missing, damaged, of another size than annotated, or with the content of one in another split."""
    first_with: dict[bytes, tuple[Path, str]] = {}
    todo = iter(seen.items())
    with ThreadPoolExecutor(threads) as pool, counting("pictures", len(seen)) as advance:
        while chunk := list(islice(todo, AT_ONCE)):
            results = pool.map(_open, [record for _, (record, _) in chunk])
            for (path, (_, splits)), result in zip(chunk, results, strict=True):
                advance(1)
                if isinstance(result, Problem):
                    yield result
                else:
                    other, split = first_with.setdefault(result, (path, splits[0]))
                    if other != path and split != splits[0]:
                        where = f"splits {split} and {splits[0]}"
                        yield _warning("image in two splits", str(path), where, f"same as {other}", LEAK)


def _digest(path: Path) -> bytes:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).digest()


def _open(record: Record) -> bytes | Problem:
    """The hash of the picture's file, once it was decoded in full; else what is wrong with it."""
    file, which = str(record.path), f"image id {record.image_id}"
    try:
        load_image(record)
        return _digest(record.path)
    except OSError as error:
        return _error("unreadable image", file, which, f"({error.strerror})", "allow it")
    except DataError as error:
        kind, _, mend = reason(error, record.path).partition(": ")
        return _error(kind, file, which, "", mend)
