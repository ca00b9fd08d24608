"""Writing a data set in COCO's layout where nothing, or an earlier one of ours, is."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ghmdet.data.annotations import load_json
from ghmdet.data.layout import REPLACED, REPLACING
from ghmdet.errors import DataError
from ghmdet.files import LOCK, files_below, hold, state_of, write_atomic
from ghmdet.pictures import EXTENSIONS

UNFINISHED = ".unfinished"
"""The folder below a set in which the one is that will take its place."""


@contextmanager
def new_set(out: Path, marker: str, command: str) -> Iterator[Path]:
    """A folder to write a data set into: at the end of the block, what it holds takes its place in `out`.

    An earlier set there goes as a whole, and other files of `out` stay. Nothing there changes when the block fails or
    is stopped. marker: the JSON file by which a set of the same command is known; it gets a word for what was written,
    by which changes since are known.

    Raises DataError where `out` is a file, a folder with something in it but no marker, or a set that was changed since
    it was written.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file: give a folder to write the data set into")
    with hold(out):
        _put_back(out)  # where a run was killed
        found = {entry.name for entry in out.iterdir()} - {UNFINISHED, REPLACED, LOCK}
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
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            yield building
            names = sorted(entry.name for entry in building.iterdir() if entry.name != marker)
            told = {"names": names, "state": state_of(building, _files(building, names), EXTENSIONS)}
            about = json.loads((building / marker).read_text(encoding="utf-8"))
            write_atomic(building / marker, json.dumps(about | {"written": told}, indent=1) + "\n")
            # Times of linked pictures are their own: later than the marker's means painted over since.
            newest = max((file.stat().st_mtime_ns for file in _files(building, [*names, marker])), default=0)
            os.utime(building / marker, ns=(newest, newest))
            _take_place(out, [*names, marker], _earlier(out, marker) if found else [])
        finally:
            _put_back(out)
            shutil.rmtree(building, ignore_errors=True)


def _take_place(out: Path, names: list[str], earlier: list[str]) -> None:
    """Move what was built into `out`, and what an earlier set had there out of the way; only renamed, so in no time."""
    building, aside = out / UNFINISHED, out / REPLACED
    old = [name for name in dict.fromkeys((*earlier, *names)) if os.path.lexists(out / name)]
    if linked := next((out / name for name in old if (out / name).is_symlink()), None):
        raise DataError(f"{linked}: is a link, which would be replaced: give another folder, or remove it")
    write_atomic(aside / REPLACING, json.dumps(names))
    for name in old:
        (out / name).rename(aside / name)
    for name in names:
        (building / name).rename(out / name)
    aside.rename(building / REPLACED)


def _put_back(out: Path) -> None:
    """Undo a `_take_place` that did not come to its end, unless only its last step is missing."""
    building, aside = out / UNFINISHED, out / REPLACED
    if not (aside / REPLACING).exists():  # nothing was moved
        shutil.rmtree(aside, ignore_errors=True)
        return
    names = _plain(load_json(aside / REPLACING))
    building.mkdir(exist_ok=True)
    moved = [name for name in names if os.path.lexists(out / name) and not os.path.lexists(building / name)]
    if names and moved == names:  # all are in their place
        aside.rename(building / REPLACED)
        return
    for name in moved:
        (out / name).rename(building / name)
    for entry in aside.iterdir():
        if os.path.lexists(out / entry.name):
            raise DataError(f"{entry}: was in the place of {out / entry.name}: remove one of them")
        if entry.name != REPLACING:
            entry.rename(out / entry.name)
    shutil.rmtree(aside)


def _earlier(out: Path, marker: str) -> list[str]:
    """What the set in a folder consists of, as its marker tells it; of an older version's nothing is known."""
    about: Any = load_json(out / marker)
    return _plain(about["written"]["names"]) if "written" in about else []


def _plain(names: Iterable[Any]) -> list[str]:
    """Those that name something in a folder itself: a set may be of anyone, and what it names elsewhere stays there."""
    texts = (name for name in names if isinstance(name, str) and name not in ("", os.pardir))
    return [name for name in texts if name == Path(name).name]


def _changed(out: Path, marker: str) -> str:
    """What was changed of what its marker tells of; empty where nothing was, and where the marker tells nothing, as one
    of an older version.
    """
    try:
        about = load_json(out / marker)
        if isinstance(about, dict) and "written" not in about:
            return ""
        files = _files(out, about["written"]["names"])
        at = {file: file.lstat().st_mtime_ns for file in files}
        made = (out / marker).stat().st_mtime_ns  # it was written last
        since = [file for file in files if at[file] > made]
        painted = any(file.suffix.lower() in EXTENSIONS for file in since)
        if about["written"]["state"] == state_of(out, files, EXTENSIONS) and not painted:
            return ""
        newest = max(since, key=lambda file: at[file], default=None)
        return f"the newest file: {newest.relative_to(out)}" if newest else "files are gone, or others"
    except OSError as error:
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
