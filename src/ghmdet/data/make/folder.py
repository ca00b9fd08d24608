"""Writing a data set in COCO's layout where nothing, or an earlier one of ours, is."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ghmdet.data.annotations import load_json
from ghmdet.errors import DataError
from ghmdet.files import LOCK, files_below, hold, state_of, write_atomic
from ghmdet.pictures import EXTENSIONS

UNFINISHED = ".unfinished"


@contextmanager
def new_set(out: Path, marker: str, command: str) -> Iterator[Path]:
    """A folder to write a data set into: at the end of the block, what it holds takes its place in `out`.

    The folders of an earlier set that the new one has too are replaced, and other files of `out` stay. Nothing there
    changes when the block fails. marker: the JSON file by which a set of the same command is known; it gets a word for
    what was written, by which changes since are known.

    Raises DataError where `out` is a file, a folder with something in it but no marker, or a set that was changed since
    it was written.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file: give a folder to write the data set into")
    with hold(out):
        found = {entry.name for entry in out.iterdir()} - {UNFINISHED, LOCK}
        if found and marker not in found:
            raise DataError(
                f"{out}: holds files that '{command}' did not write (no {marker}): give a new or an empty folder"
            )
        if found and (what := _changed(out, marker)):
            raise DataError(
                f"{out}: was changed since '{command}' wrote it ({what}), and would be replaced: give another folder,"
                " or remove this one"
            )
        building = out / UNFINISHED
        shutil.rmtree(building, ignore_errors=True)  # of a run that was killed
        building.mkdir(parents=True)
        try:
            yield building
            names = sorted((entry.name for entry in building.iterdir()), reverse=True)
            told = {"names": [name for name in names if name != marker], "state": ""}
            told["state"] = state_of(building, _files(building, told["names"]), EXTENSIONS)
            if linked := next((out / name for name in names if (out / name).is_symlink()), None):
                raise DataError(
                    f"{linked}: is a link, which would be replaced: give another folder, or remove it"
                )
            # The marker first, by which an interrupted one is known. Annotations go first and come last: without them
            # it is no set.
            (building / marker).replace(out / marker)
            for name in reversed(told["names"]):
                if (building / name).is_dir():
                    shutil.rmtree(out / name, ignore_errors=True)
            for name in told["names"]:
                (building / name).replace(out / name)
            about = json.loads((out / marker).read_text(encoding="utf-8"))
            write_atomic(out / marker, json.dumps(about | {"written": told}, indent=1) + "\n")
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _changed(out: Path, marker: str) -> str:
    """What was changed of what its marker tells of; empty where nothing was, and where the marker tells nothing, as one
    of an interrupted set or of an older version.
    """
    try:
        about = load_json(out / marker)
        if isinstance(about, dict) and "written" not in about:
            return ""
        files = _files(out, about["written"]["names"])
        if about["written"]["state"] == state_of(out, files, EXTENSIONS):
            return ""
        newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=out / marker)
        since = newest.stat().st_mtime_ns > (out / marker).stat().st_mtime_ns
        return f"the newest file: {newest.relative_to(out)}" if since else "files are gone, or others"
    except OSError as error:  # a link to what is gone, too
        return f"{error.filename} cannot be read"
    except (DataError, KeyError, TypeError, ValueError):
        return f"{marker} cannot be read"


def _files(root: Path, names: Iterable[str]) -> list[Path]:
    """The files that a made set consists of: those of such a name in a folder, and all below folders of such a name."""
    entries = [root / name for name in names]
    return [file for one in entries for file in ([one] if one.is_file() else files_below(one))]


def write_annotations(root: Path, split: str, content: Mapping[str, Any]) -> None:
    """Write COCO annotations where `read_data` finds them; a byte of a name that is no UTF-8 as `\\udcff`."""
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, json.dumps(content, separators=(",", ":")) + "\n")
