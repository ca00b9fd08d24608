"""Every problem of a data set, listed: what the readers reject, and what only opening each picture can show."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np

from ghmdet.data.images import load_image, reason
from ghmdet.data.layout import split_names
from ghmdet.data.read import FORMATS, Format, detect_format, find_split, no_usable_box
from ghmdet.data.records import DetectionData, Problem, Record, Severity
from ghmdet.data.values import shown
from ghmdet.errors import DataError

AT_ONCE = 256  # pictures handed to the threads before their results are taken
Seen = dict[Path, tuple[Record, list[str]]]  # each picture once, and the splits that use it


def check_data(
    path: str | Path,
    split: str | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 4,
) -> list[Problem]:
    """Every problem of a data set, of one split or of all (None), errors first.

    Reads the annotations, then decodes every picture in full. progress: called as progress(done, total) after each
    picture. A data set that cannot be read at all is one problem, not an exception.
    """
    path = Path(path)
    try:
        name, splits = detect_format(path)
        wanted = splits if split is None else dict([find_split(path, splits, split)])
    except DataError as error:
        return [_unreadable(path, error)]
    problems: list[Problem] = []
    if split is None:
        problems += _check_splits(path, splits)
        if "train" in wanted:
            wanted.pop("trainval", None)  # VOC's union of two others
    read: list[DetectionData] = []
    for each, source in wanted.items():
        data = _read(FORMATS[name], path, each, source)
        if isinstance(data, Problem):
            problems.append(data)
        else:
            read.append(data)
    seen: Seen = {}
    for data in read:
        problems += data.problems
        if empty := no_usable_box(data):
            problems.append(
                Problem("error", "empty data set", str(data.root), empty, "", "add boxes or correct them")
            )
        problems += [*_check_boxes(data), *_check_names(data, seen)]
    problems += _check_classes(read)
    problems += _check_pictures(seen, progress, threads)
    order = get_args(Severity)
    return sorted(dict.fromkeys(problems), key=lambda problem: order.index(problem.severity))


def has_errors(problems: Iterable[Problem]) -> bool:
    """Whether any problem is an error: something that was left out, or that training would stumble over."""
    return any(problem.severity == "error" for problem in problems)


def format_problems(problems: Sequence[Problem]) -> str:
    """One line a problem, and their number at the end.

    >>> print(format_problems([Problem("warning", "duplicate box", "a.jpg", "RBC", "[1, 1, 9, 9]", "remove one")]))
    warning: a.jpg: RBC: duplicate box [1, 1, 9, 9]: remove one
    0 errors, 1 warning, 0 notes
    """
    counts = Counter(problem.severity for problem in problems)
    words = {"error": "error", "warning": "warning", "info": "note"}
    summary = ", ".join(
        f"{counts[severity]} {words[severity]}{'s' if counts[severity] != 1 else ''}"
        for severity in get_args(Severity)
    )
    return "\n".join([*map(str, problems), summary])


def _unreadable(path: Path, error: DataError) -> Problem:
    return Problem("error", "cannot be read", str(path), "", "", str(error).removeprefix(f"{path}: "))


def _read(format: Format, path: Path, split: str, source: object) -> DetectionData | Problem:
    try:
        return format.read_split(path, split, source, None)
    except DataError as error:
        return _unreadable(path, error)


def _check_splits(path: Path, splits: Mapping[str, object]) -> Iterator[Problem]:
    """The splits that training needs, where they are not there."""
    for needed in ("train", "val"):
        if not any(name in splits for name in split_names(needed)):
            found = f"found {', '.join(splits)}"
            yield Problem(
                "warning", "no such split", str(path), f"split {needed}", f"({found})", "training needs one"
            )


def _check_boxes(data: DetectionData) -> Iterator[Problem]:
    """Duplicate boxes and crowd regions, image by image."""
    for record in data.records:
        file = str(record.path)
        rows = np.column_stack([record.boxes, record.labels])
        kept, counts = np.unique(rows, axis=0, return_counts=True)
        for row, count in zip(kept[counts > 1], counts[counts > 1], strict=True):
            name = data.classes[int(row[4])]
            where = f"split {data.split}, class '{name}', {count} times"
            yield Problem(
                "warning", "duplicate box", file, where, shown(row[:4].tolist()), "keep one of them"
            )
        if crowd := int(record.crowd.sum()):
            regions = f"split {data.split}, {crowd} of {len(record.crowd)} boxes"
            yield Problem("info", "crowd", file, regions, "", "ignored in evaluation and not trained on")


def _check_names(data: DetectionData, seen: Seen) -> Iterator[Problem]:
    """Pictures that the data set lists twice, in a split or in two; adds this split's to `seen`."""
    for record in data.records:
        splits = seen.setdefault(record.path, (record, []))[1]
        if data.split in splits:
            mend = "merge the two records"
            yield Problem("warning", "image listed twice", str(record.path), f"split {data.split}", "", mend)
        elif splits:
            where = f"splits {splits[0]} and {data.split}"
            mend = "keep it in one, or evaluation is on what was trained on"
            yield Problem("warning", "image in two splits", str(record.path), where, "", mend)
        splits.append(data.split)


def _check_classes(read: Sequence[DetectionData]) -> Iterator[Problem]:
    """Classes without boxes, and boxes of classes that the training split does not have."""
    train = next((data for data in read if data.split == "train"), None)
    for data in read:
        for name, count in data.boxes_per_class().items():
            if count == 0:
                mend = "add boxes of it or remove the class"
                yield Problem(
                    "warning", "class without boxes", str(data.root), f"split {data.split}", f"'{name}'", mend
                )
            elif train is not None and name not in train.classes:
                mend = f"the training split's classes are {', '.join(train.classes)}"
                yield Problem(
                    "error", "unknown class", str(data.root), f"split {data.split}", f"'{name}'", mend
                )


def _check_pictures(
    seen: Seen, progress: Callable[[int, int], None] | None, threads: int
) -> Iterator[Problem]:
    """Pictures missing, damaged, of another size than annotated, or with the content of one in another split."""
    first_with: dict[bytes, tuple[Path, str]] = {}
    todo = iter(seen.items())
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(todo, AT_ONCE)):
            results = pool.map(_open, [record for _, (record, _) in chunk])
            for (path, (_, splits)), result in zip(chunk, results, strict=True):
                done += 1
                if isinstance(result, Problem):
                    yield result
                else:
                    other, split = first_with.setdefault(result, (path, splits[0]))
                    if other != path and split != splits[0]:
                        where = f"splits {split} and {splits[0]}"
                        mend = "keep it in one, or evaluation is on what was trained on"
                        yield Problem(
                            "warning", "image in two splits", str(path), where, f"same as {other}", mend
                        )
                if progress is not None:
                    progress(done, len(seen))


def _open(record: Record) -> bytes | Problem:
    """The hash of the picture's file, once it was decoded in full; else what is wrong with it."""
    try:
        load_image(record)
        return hashlib.sha1(record.path.read_bytes(), usedforsecurity=False).digest()
    except DataError as error:
        kind, _, mend = reason(error, record.path).partition(": ")
        return Problem("error", kind, str(record.path), f"image id {record.image_id}", "", mend)
