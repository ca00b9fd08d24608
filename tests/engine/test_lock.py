"""No two processes write into one folder, and one that was killed leaves nothing to clean up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engine_cases import TINY
from ghmdet import files
from ghmdet.cli import main
from ghmdet.engine.train import train
from ghmdet.errors import GhmdetError
from ghmdet.files import LOCK, hold

HOLDER = """
import sys, time
from ghmdet.files import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


class Holder:
    """A process that holds a folder."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "held\n"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_held_folder_is_refused_with_its_holder_and_one_of_a_killed_process_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with Holder(folder) as holder:
        who = f"process {holder.process.pid} on {socket.gethostname()} is writing there"
        with pytest.raises(GhmdetError, match=who), hold(folder):
            pass
    assert holder.process.returncode == -signal.SIGKILL and (folder / LOCK).exists()
    with hold(folder):
        assert (folder / LOCK).read_text() == f"{socket.gethostname()} {os.getpid()}\n"
        with hold(tmp_path / "a" / ".." / "a" / "b"):  # a command that calls another
            (folder / "kept").write_text("")
        with Holder(tmp_path / "other"):
            assert (folder / LOCK).exists()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_on_a_disk_without_locks_the_text_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for host, process, free in (
        (socket.gethostname(), os.getppid(), False),
        (socket.gethostname(), ended.pid, True),
        ("elsewhere", ended.pid, False),
    ):
        (tmp_path / LOCK).write_text(f"{host} {process}\n")
        if free:
            with hold(tmp_path):
                pass
            assert not (tmp_path / LOCK).exists()
        else:
            with pytest.raises(GhmdetError, match=f"process {process} on {host} .* remove"), hold(tmp_path):
                pass


def test_a_folder_that_was_made_for_nothing_goes_again_and_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold(tmp_path / "a" / "b"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(GhmdetError, match=r"file.*: is a file: give a folder"), hold(place):
            pass


def test_every_command_that_writes_a_folder_is_refused_one_that_is_held(
    run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, best = tmp_path / "out", run / "best.pt"
    words = [
        *(["train", squares, *more] for more in ([], ["--resume"])),
        ["val", best, squares],
        ["predict", best, squares / "images"],
        ["spectrum", best, squares],
        ["compare", squares, "--weights-grid=none"],
        ["demo"],
        ["audit", squares, f"--checkpoint={best}"],
        ["data", "synth"],
        ["data", "split", squares],
        ["data", "thin", squares, "--keep=red=.5"],
        ["data", "spoil", squares, "--share=.1"],
    ]
    with Holder(out) as holder:
        for command in words:
            where = [out] if command[0] == "data" else ["--out", out]
            place = command[:3] + where + command[3:]
            with pytest.raises(SystemExit) as stopped:
                main(list(map(str, place)))
            said = capsys.readouterr().err
            assert stopped.value.code == 2, said
            assert f"{out}: process {holder.process.pid} on" in said, command
        assert [path.name for path in out.iterdir()] == [LOCK]


def test_a_run_can_be_trained_while_it_is_not_held_and_leaves_no_lock(squares: Path, tmp_path: Path) -> None:
    with Holder(tmp_path / "x"), pytest.raises(GhmdetError, match="is writing there"):
        train(squares, tmp_path / "x", TINY, say=lambda line: None)
    assert not (tmp_path / "x" / "run.json").exists()
