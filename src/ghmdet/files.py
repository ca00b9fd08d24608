"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomic(path: Path | str, content: bytes | str | Callable[[IO[bytes]], Any]) -> Path:
    """Writes `content` to `path` whole or not at all, making its folder; returns the path.

    content: bytes, text (written as UTF-8), or a function that writes into the file it is given, as a picture's `save`
    and a figure's `savefig` do.

    The bytes go to a temporary neighbour first, which then takes the name in one step: whoever opens `path`,
    even after a crash in the middle, finds the old content or the new. Raises OSError where the disk refuses.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder: name a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # without it a power cut can leave the new name on empty content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
