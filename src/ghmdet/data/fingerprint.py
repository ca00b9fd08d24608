"""Whether a data set is still what it was: of each picture, what its labels and its file were."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import torch
from torch import Tensor

from ghmdet.data.records import NAMED_PROBLEMS, DetectionData


def fingerprint(data: DetectionData) -> Tensor:
    """Of each of the N pictures a hash of its record (name, size, labels) and one of its file's size and time.

    int64 [N, 2]. The content of the files is not read.
    """
    records = data.records
    rows = []
    for index in range(len(records)):
        part = slice(records.offsets[index], records.offsets[index + 1])
        columns = (records.boxes, records.labels, records.crowd, records.area)
        arrays = [records.sizes[index].tobytes(), *(column[part].tobytes() for column in columns)]
        about = os.stat(records.root / records.name(index))
        file = f"{about.st_size} {about.st_mtime_ns}".encode()
        rows.append([_hash(os.fsencode(records.name(index)), *arrays), _hash(file)])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)


def _hash(*parts: bytes) -> int:
    digest = hashlib.blake2b(b"\0".join(parts), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def differences(data: DetectionData, now: Tensor, then: Tensor) -> str:
    """In words what differs between a data set's fingerprint and an earlier one; empty where nothing does."""
    files = dict(then.tolist())
    new = np.array([record not in files for record, _ in now.tolist()], dtype=bool)
    touched = np.array([files.get(record, file) != file for record, file in now.tolist()], dtype=bool)
    gone = len(files.keys() - set(now[:, 0].tolist()))
    told = []
    for which, what in ((new, "with other labels or new"), (touched, "whose file has another size or time")):
        names = [data.records.name(int(index)) for index in np.flatnonzero(which)]
        more = ", ..." if len(names) > NAMED_PROBLEMS else ""
        told += [f"{len(names)} {what} ({', '.join(names[:NAMED_PROBLEMS])}{more})"] if names else []
    told += [f"{gone} changed or gone"] if gone > int(new.sum()) else []
    return f"pictures of {data.split}: {', '.join(told)}" if told else ""
