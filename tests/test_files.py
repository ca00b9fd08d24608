from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest

from ghmdet.files import write_atomic


def test_text_and_bytes_arrive_and_replace_what_was_there(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "new" / "a.json", "größe")
    assert path.read_bytes() == "größe".encode()
    write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_old_content_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.txt", "old")
    with pytest.raises(TypeError):
        write_atomic(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_function_writes_into_the_file_and_its_failure_keeps_the_old_content(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.txt", lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"

    def breaks_off(file: IO[bytes]) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, breaks_off)
    assert path.read_bytes() == b"whole"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", ["", ".", "folder", "folder/", "/"])
def test_a_folder_in_place_of_a_file_is_named_and_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder: name a file") as raised:
        write_atomic(name, "text")
    assert raised.value.filename == str(Path(name))
    assert [p.name for p in tmp_path.rglob("*")] == ["folder"]
