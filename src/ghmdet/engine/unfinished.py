"""Results kept picture by picture while `ghmdet predict` works, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ghmdet.files import write_atomic

Results = list[dict[str, Any]]


class Unfinished:
    """A file with a line for each finished picture: its name, its file's size and time, and its COCO results.

    A line of before holds where it was made in the same way, of the same file, and its drawing is still there; others
    are dropped. Only the places of the lines are in memory. As a context manager it removes the file after the block,
    and keeps it where the block was interrupted or failed.

    Args:
        path: the file.
        made: how the results are made, as plain values.
        files: the pictures by their names.
        drawn: whether the drawing of a name is there.
    """

    def __init__(
        self, path: Path, made: Mapping[str, Any], files: Mapping[str, Path], drawn: Callable[[str], bool]
    ) -> None:
        self.path, self.made, self.files, self.drawn = path, made, files, drawn
        self.lines: dict[str, int] = {}  # where that of each name begins
        write_atomic(path, self._keep)
        self.file = path.open("r+b")

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        self.file.close()
        if kind is None:
            self.path.unlink()
        elif kind is KeyboardInterrupt:
            done = f"{len(self.lines)} of {len(self.files)} pictures"
            raise KeyboardInterrupt(f"stopped after {done}; the same command goes on") from None

    def _keep(self, new: IO[bytes]) -> None:
        """Write how the results are made, and the lines of before that hold."""
        new.write(_line(self.made))
        if not self.path.exists():
            return
        with self.path.open("rb") as old:
            if old.readline() != _line(self.made):
                return
            for line in old:
                try:
                    one = json.loads(line)
                    name = one["file_name"]
                    holds = name in self.files and one["file"] == stamp(self.files[name])
                except (KeyError, TypeError, ValueError):  # cut by a kill, or a power cut
                    continue
                if holds and self.drawn(name):
                    self.lines[name] = new.tell()
                    new.write(line)

    def add(self, name: str, results: Results) -> None:
        """Keep the results of a picture."""
        self.lines[name] = self.file.seek(0, os.SEEK_END)
        self.file.write(_line({"file_name": name, "file": stamp(self.files[name]), "results": results}))
        self.file.flush()

    def results(self) -> Iterator[tuple[str, Results]]:
        """The results of each finished picture and its name, in the order of the pictures."""
        for name in self.files:
            if name in self.lines:
                self.file.seek(self.lines[name])
                yield name, json.loads(self.file.readline())["results"]


def stamp(file: Path) -> list[int] | None:
    """Size and time of a file, None where there is none: others mean another content."""
    try:
        about = file.stat()
    except OSError:
        return None
    return [about.st_size, about.st_mtime_ns]


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
