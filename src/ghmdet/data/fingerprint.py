"""Whether a data set is still what it was: of each picture, what its labels and its file were."""

import hashlib
import json
import os
from collections import Counter

import numpy as np
import torch
from torch import Tensor

from ghmdet.data.records import NAMED_PROBLEMS, DetectionData
from ghmdet.files import file_stamp


def fingerprint(data: DetectionData) -> Tensor:
    """Of each of the N pictures hashes of its name, of its labels, and of its file's size and time.

    int64 [N, 3]. The content of the files is not read; a file that is gone is as one of no size.
    """
    records = data.records
    rows = []
    for index in range(len(records)):
        part = slice(records.offsets[index], records.offsets[index + 1])
        columns = (records.boxes, records.labels, records.crowd, records.area)
        labels = _hash(records.sizes[index].tobytes(), *(column[part].tobytes() for column in columns))
        file = _hash(" ".join(map(str, file_stamp(records.root / records.name(index)))).encode())
        rows.append([_hash(os.fsencode(records.name(index))), labels, file])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


def digest(data: DetectionData) -> str:
    """A word for the names of all pictures, their labels and the sizes of their files, the same wherever they lie."""
    records = data.records
    sizes = [file_stamp(records.root / records.name(index))[0] for index in range(len(records))]
    return f"{_hash(fingerprint(data)[:, :2].numpy().tobytes(), str(sizes).encode()):x}"


def scored(data: DetectionData) -> str:
    """A word for all that a score on the data depends on: ids, classes, names, labels; sizes and times of the files."""
    return f"{_hash(json.dumps(data.to_coco()).encode(), fingerprint(data).numpy().tobytes()):x}"


def labelled(data: DetectionData) -> Tensor:
    """By what the M pictures with objects are known again, in whatever format and folder they are given.

    int64 [M, 5]: a hash of the name without folders, the size and the sorted class names, and the mean box in quarter
    pixels (xyxy), since formats round differently. Crowd regions, which not every format has, are left out.
    """
    records, rows = data.records, []
    for index in range(len(records)):
        part = slice(records.offsets[index], records.offsets[index + 1])
        real = ~records.crowd[part]
        if not real.any():
            continue
        names = sorted(data.classes[label] for label in records.labels[part][real])
        size = "x".join(map(str, records.sizes[index].tolist()))
        known = "\n".join([os.path.basename(records.name(index)), size, *names])
        mean = records.boxes[part][real].astype(np.float64).mean(axis=0)
        rows.append([_hash(os.fsencode(known)), *(4 * mean).round().astype(int).tolist()])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)


def count_known(now: Tensor, then: Tensor) -> int:
    """How many rows of `labelled` are among those of another data set, mean boxes to a quarter of a pixel."""
    before: dict[int, list[Tensor]] = {}
    for row in then:
        before.setdefault(int(row[0]), []).append(row[1:])
    return sum(any(((row[1:] - box).abs() <= 1).all() for box in before.get(int(row[0]), [])) for row in now)


def _hash(*parts: bytes) -> int:
    digest = hashlib.blake2b(b"\0".join(parts), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def differences(data: DetectionData, now: Tensor, then: Tensor) -> str:
    """In words what differs between a data set's fingerprint and an earlier one; empty where nothing does."""
    before = {name: rest for name, *rest in then.tolist()}
    listed, listed_before = (Counter(names[:, 0].tolist()) for names in (now, then))
    found: dict[str, list[str]] = {
        "new": [],
        "with other labels, or the same in another order": [],
        "whose file has another size or time": [],
        "listed more often, or less": [],
    }
    for index, (name, *rest) in enumerate(now.tolist()):
        labels, file = (a != b for a, b in zip(rest, before.get(name, rest), strict=True))
        often = name in before and listed[name] != listed_before[name]
        for what, so in zip(found, (name not in before, labels, file, often), strict=True):
            if so:
                found[what].append(data.records.name(index))
    told = []
    for what, names in ((what, list(dict.fromkeys(names))) for what, names in found.items()):
        more = ", ..." if len(names) > NAMED_PROBLEMS else ""
        told += [f"{len(names)} {what} ({', '.join(names[:NAMED_PROBLEMS])}{more})"] if names else []
    gone = len(before.keys() - listed.keys())
    told += [f"{gone} gone"] if gone else []
    kept, kept_before = (
        [name for name in names[:, 0].tolist() if name in listed and name in before] for names in (now, then)
    )
    same_numbers = Counter(kept) == Counter(kept_before)
    told += ["listed in another order"] if same_numbers and kept != kept_before else []
    return f"pictures of {data.split}: {', '.join(told)}" if told else ""
