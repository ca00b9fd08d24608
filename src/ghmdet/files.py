"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path | str, content: bytes | str) -> Path:
    """Writes `content` (text as UTF-8) to `path` whole or not at all, making its folder; returns the path.

    The bytes go to a temporary neighbour first, which then takes the name in one step: whoever opens `path`,
    even after a crash in the middle, finds the old content or the new. Raises OSError where the disk refuses.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # without it a power cut can leave the new name on empty content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
