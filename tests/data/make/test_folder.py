"""A made set takes the place of an earlier one as a whole, or not at all, whenever it is stopped."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ghmdet.data.make import folder
from ghmdet.data.make.folder import new_set
from ghmdet.data.read import DataSet
from ghmdet.errors import DataError

OLD = {"annotations/a.json": "old", "train.json": "old", "only-old/a.txt": "old"}
NEW = {"annotations/a.json": "new", "annotations/b.json": "new", "val/x.jpg": "new", "top.txt": "new"}


def make(out: Path, files: Mapping[str, str]) -> None:
    with new_set(out, "made.json", "make") as building:
        for name, text in {**files, "made.json": json.dumps({"seed": 1})}.items():
            (building / name).parent.mkdir(exist_ok=True)
            (building / name).write_text(text)


def content(out: Path) -> dict[str, str]:
    return {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*") if path.is_file()}


def test_nothing_of_an_earlier_set_is_left_beside_a_new_one_and_other_files_are(tmp_path: Path) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    make(out, OLD)
    (out / "notes.txt").write_text("mine")
    make(out, NEW)
    make(fresh, NEW)
    assert content(out) == content(fresh) | {"notes.txt": "mine"}
    assert not (out / "only-old").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_a_set_that_is_stopped_while_it_takes_its_place_is_the_old_one_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """killed: nothing is tidied up either, and the next command finds what was left."""
    make(tmp_path / "old", OLD)
    make(tmp_path / "new", NEW)
    old, new = content(tmp_path / "old"), content(tmp_path / "new")
    rename, found = Path.rename, set[str]()
    for moves in range(12):
        out, done = tmp_path / f"{killed}{moves}", list[Path]()
        make(out, OLD)

        def stops(self: Path, target: Any, done: list[Path] = done, moves: int = moves) -> Any:
            done.append(self)
            if len(done) == moves + 1:  # once: what tidies up may rename
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(Path, "rename", stops)
            if killed:
                patch.setattr(folder, "_put_back", lambda out: None)
                patch.setattr("shutil.rmtree", lambda *_, **__: None)
            make(out, NEW)
        if killed and (out / ".replaced").exists():
            with pytest.raises(DataError, match="was being made anew when that was killed"):
                DataSet(out)
        if killed:
            with pytest.raises(ZeroDivisionError), new_set(out, "made.json", "make"):
                raise ZeroDivisionError
        found.add("old" if content(out) == old else "new" if content(out) == new else f"mixed at {moves}")
    assert found == {"old", "new"}


@pytest.mark.parametrize("name", [".notes.md", ".git/HEAD", "mine.txt", "link"])
def test_what_a_user_keeps_in_a_made_folder_stays(tmp_path: Path, name: str) -> None:
    make(tmp_path, NEW)
    own = tmp_path / "val" / name
    own.parent.mkdir(exist_ok=True)
    own.symlink_to(tmp_path) if name == "link" else own.write_text("mine")
    with pytest.raises(
        DataError, match=rf"was changed since 'make' wrote it \(the newest file: val/{name}\)"
    ):
        make(tmp_path, NEW)
    assert os.path.lexists(own)


def test_a_picture_that_was_painted_over_at_equal_size_is_a_change(tmp_path: Path) -> None:
    make(tmp_path, NEW)
    picture, made = tmp_path / "val" / "x.jpg", (tmp_path / "made.json").stat().st_mtime_ns
    os.utime(picture, ns=(made, made))
    make(tmp_path, NEW)
    picture.write_text("two")
    os.utime(picture, ns=(made + 10**9, made + 10**9))
    with pytest.raises(DataError, match=r"the newest file: val/x\.jpg"):
        make(tmp_path, NEW)


def test_a_linked_picture_of_the_future_is_no_change(tmp_path: Path) -> None:
    later = 2 * 10**18

    def linked() -> None:
        with new_set(tmp_path, "made.json", "make") as building:
            (building / "a.jpg").write_text("a")
            os.utime(building / "a.jpg", ns=(later, later))
            (building / "made.json").write_text("{}")

    linked()
    linked()
    os.utime(tmp_path / "a.jpg", ns=(later + 1000, later + 1000))
    with pytest.raises(DataError, match="was changed since"):
        linked()


def test_what_a_kill_before_the_first_move_leaves_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / ".replaced").mkdir()
    (tmp_path / ".replaced" / ".0a.0b.1.tmp").write_text("{")
    make(tmp_path, NEW)
    assert not (tmp_path / ".replaced").exists()


def test_a_folder_put_back_by_hand_after_a_kill_is_named(tmp_path: Path) -> None:
    make(tmp_path, OLD)
    for name, text in {
        ".replaced/.names.json": '["val"]',
        ".replaced/train.json": "old",
        ".unfinished/val/x": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(
        DataError, match=r"\.replaced/train\.json: was in the place of .*train\.json: remove one"
    ):
        make(tmp_path, NEW)
    assert (tmp_path / "train.json").read_text() == "old"


def test_a_set_of_somebody_else_moves_nothing_outside(tmp_path: Path) -> None:
    out, own = tmp_path / "out", tmp_path / "own.txt"
    own.write_text("mine")
    make(out, NEW)
    names = [
        "../own.txt",
        str(own),
        "..",
        ".",
        "",
        5,
        *json.loads((out / "made.json").read_text())["written"]["names"],
    ]
    assert folder._plain(names) == ["annotations", "top.txt", "val"]
    told = {"names": ["../own.txt"], "state": folder.state_of(out, [out / "../own.txt"])}
    (out / "made.json").write_text(json.dumps({"written": told}))
    make(out, NEW)
    (out / ".replaced").mkdir()
    (out / ".replaced" / ".names.json").write_text('["../own.txt"]')
    make(out, NEW)
    assert own.read_text() == "mine" and own.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_set_that_is_stopped_before_anything_is_moved_is_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """As where the list of what takes its place is written: the disk is full, or somebody waits no longer."""
    make(tmp_path, OLD)
    old, write = content(tmp_path), folder.write_atomic

    def full(path: Path, text: str) -> None:
        if path.name == ".names.json":
            path.parent.mkdir(exist_ok=True)
            raise error
        write(path, text)

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(folder, "write_atomic", full)
        make(tmp_path, NEW)
    assert content(tmp_path) == old and not (tmp_path / ".replaced").exists()


def test_no_file_of_a_set_that_is_half_replaced_is_read(tmp_path: Path) -> None:
    for name in ("annotations/instances_train.json", "data.yaml", ".replaced/.names.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
        for place in ("", "annotations/instances_train.json", "data.yaml"):
            if name.startswith(".replaced"):
                with pytest.raises(DataError, match="was being made anew when that was killed"):
                    DataSet(tmp_path / place)
