"""Whether a data set is still what it was: of each picture, what its labels and its file were."""

from __future__ import annotations

import hashlib
import os

import torch
from torch import Tensor

from ghmdet.data.records import NAMED_PROBLEMS, DetectionData


def fingerprint(data: DetectionData) -> Tensor:
    """Of each of the N pictures hashes of its name, of its labels, and of its file's size and time.

    int64 [N, 3]. The content of the files is not read.
    """
    about = [os.stat(data.records.root / data.records.name(index)) for index in range(len(data.records))]
    files = [_hash(f"{one.st_size} {one.st_mtime_ns}".encode()) for one in about]
    return torch.cat((labels_fingerprint(data), torch.tensor(files, dtype=torch.int64)[:, None]), dim=1)


def labels_fingerprint(data: DetectionData) -> Tensor:
    """Of each of the N pictures hashes of its name and of its labels: int64 [N, 2]."""
    records = data.records
    rows = []
    for index in range(len(records)):
        part = slice(records.offsets[index], records.offsets[index + 1])
        columns = (records.boxes, records.labels, records.crowd, records.area)
        labels = _hash(records.sizes[index].tobytes(), *(column[part].tobytes() for column in columns))
        rows.append([_hash(os.fsencode(records.name(index))), labels])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)


def _hash(*parts: bytes) -> int:
    digest = hashlib.blake2b(b"\0".join(parts), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def differences(data: DetectionData, now: Tensor, then: Tensor) -> str:
    """In words what differs between a data set's fingerprint and an earlier one; empty where nothing does."""
    before = {name: rest for name, *rest in then.tolist()}
    found: dict[str, list[str]] = {
        "new": [],
        "with other labels": [],
        "whose file has another size or time": [],
    }
    for index, (name, *rest) in enumerate(now.tolist()):
        labels, file = (a != b for a, b in zip(rest, before.get(name, rest), strict=True))
        for what, so in zip(found, (name not in before, labels, file), strict=True):
            if so:
                found[what].append(data.records.name(index))
    told = []
    for what, names in found.items():
        more = ", ..." if len(names) > NAMED_PROBLEMS else ""
        told += [f"{len(names)} {what} ({', '.join(names[:NAMED_PROBLEMS])}{more})"] if names else []
    gone = len(before.keys() - set(now[:, 0].tolist()))
    told += [f"{gone} gone"] if gone else []
    return f"pictures of {data.split}: {', '.join(told)}" if told else ""
