"""Results kept picture by picture while `ghmdet predict` works, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ghmdet.files import write_atomic
from ghmdet.words import many

Results = list[dict[str, Any]]
Stamp = list[int]


class Unfinished:
    """A file with a line for each finished picture: its name, the stamps of its file and drawing, and its COCO results.

    A line of before holds where it is as it was written, was made in the same way, and picture and drawing are the same
    files as then; others are dropped. Only the places of the lines are in memory. As a context manager it removes the
    file after the block, and keeps it where the block was interrupted or failed.

    Args:
        path: the file.
        made: how the results are made, as plain values.
        files: the pictures by their names.
        drawings: their drawings by the same names.
    """

    def __init__(
        self, path: Path, made: Mapping[str, Any], files: Mapping[str, Path], drawings: Mapping[str, Path]
    ) -> None:
        self.path, self.made, self.files, self.drawings = path, made, files, drawings
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
            done = f"{len(self.lines)} of {many(len(self.files), 'picture')}"
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
                    one = json.loads(line)[1]
                    name = one["file_name"]
                    files = self.files[name], self.drawings[name]
                    holds = line == _line(one) and one["stamps"] == [stamp(file) for file in files]
                except (IndexError, KeyError, RecursionError, TypeError, ValueError):  # cut, or damaged
                    continue
                if holds and None not in one["stamps"]:
                    self.lines[name] = new.tell()
                    new.write(line)

    def add(self, name: str, read: Stamp | None, results: Results) -> None:
        """Keep the results of a picture that is drawn; `read` is the stamp of its file before it was read."""
        place = self.file.seek(0, os.SEEK_END)
        stamps = [read, stamp(self.drawings[name])]
        try:
            self.file.write(_line({"file_name": name, "stamps": stamps, "results": results}))
            self.file.flush()
        except OSError as error:
            error.filename = str(self.path)
            raise
        self.lines[name] = place  # only now: an interrupt may come at any time

    def results(self) -> Iterator[tuple[str, Results]]:
        """The results of each finished picture and its name, in the order of the pictures."""
        for name in self.files:
            if name in self.lines:
                self.file.seek(self.lines[name])
                yield name, json.loads(self.file.readline())[1]["results"]


def stamp(file: Path) -> Stamp | None:
    """What changes with a file's content: size, times of content and of state, inode; None where there is no file.

    The time of content alone can be set, and goes along when files change places.
    """
    try:
        about = file.stat()
    except OSError:
        return None
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def _line(value: Any) -> bytes:
    """A value as a line of JSON, after the checksum of its text."""
    text = json.dumps(value)
    return f"[{zlib.crc32(text.encode())}, {text}]\n".encode()
