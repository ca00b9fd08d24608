"""Writing a data set in COCO's layout where nothing, or an earlier one of ours, is."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ghmdet.errors import DataError
from ghmdet.files import LOCK, hold, write_atomic

UNFINISHED = ".unfinished"


@contextmanager
def new_set(out: Path, marker: str, command: str) -> Iterator[Path]:
    """A folder to write a data set into: at the end of the block, what it holds takes its place in `out`.

    The folders of an earlier set that the new one has too are replaced, and other files of `out` stay. Nothing there
    changes when the block fails. marker: the file by which a set of the same command is known.

    Raises DataError where `out` is a file, or a folder with something in it but no marker.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file: give a folder to write the data set into")
    with hold(out):
        found = {entry.name for entry in out.iterdir()} - {UNFINISHED, LOCK}
        if found and marker not in found:
            raise DataError(
                f"{out}: holds files that '{command}' did not write (no {marker}): give a new or an empty folder"
            )
        building = out / UNFINISHED
        shutil.rmtree(building, ignore_errors=True)  # of a run that was killed
        building.mkdir(parents=True)
        try:
            yield building
            for entry in building.iterdir():
                if entry.is_dir():
                    shutil.rmtree(out / entry.name, ignore_errors=True)
            # The annotations last: without them it is no set.
            for entry in sorted(building.iterdir(), reverse=True):
                entry.replace(out / entry.name)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def write_annotations(root: Path, split: str, content: Mapping[str, Any]) -> None:
    """Write COCO annotations where `read_data` finds them; a byte of a name that is no UTF-8 as `\\udcff`."""
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, json.dumps(content, separators=(",", ":")) + "\n")
