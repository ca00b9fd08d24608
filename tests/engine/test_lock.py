"""No two processes write into one folder, and one that was killed leaves nothing to clean up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize(
    "text", [b"\xff\xfe\x00", b"", b"\0" * 99, b"%b x", b"%b 1e9", b"%b 99999999999999999999", b"%b \xff"]
)
def test_a_lock_with_a_damaged_text_holds_nothing_up(
    text: bytes, locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:
        monkeypatch.setattr(files, "fcntl", None)
    (tmp_path / LOCK).write_bytes(text.replace(b"%b", socket.gethostname().encode()))
    with hold(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{socket.gethostname()} {os.getpid()}\n"
    assert not list(tmp_path.iterdir())


WRITER = """
import os, signal, sys
from pathlib import Path
from ghmdet.files import write_atomic
for name in sys.argv[1:]:
    if not os.fork():
        write_atomic(name, lambda file: (file.write(b"half"), file.flush(), os.kill(os.getpid(), signal.SIGKILL)))
    os.wait()
"""


def test_what_a_killed_process_had_half_written_goes_and_that_of_others_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "a" / "b"
    subprocess.run([sys.executable, "-c", WRITER, tmp_path / "last.pt", below / "x.jpg"], check=True)
    left = list(tmp_path.rglob(".*.tmp"))
    assert [file.parent for file in left] == [tmp_path, below]
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        with hold(tmp_path):
            pass
    assert all(file.exists() for file in left)
    others = [tmp_path / ".a.tmp", tmp_path / "0.1.2.tmp", tmp_path / f"{left[0].name}.jpg"]
    with write_half(tmp_path / "mine") as mine:
        for file in (*others, mine):
            file.touch()
        with hold(tmp_path):
            pass
        assert mine.exists()
    assert all(file.exists() for file in others) and not any(file.exists() for file in left)


@contextmanager
def write_half(path: Path) -> Iterator[Path]:
    """The temporary file of a writing that goes on during the block."""
    asked, go = threading.Event(), threading.Event()

    def write(file: IO[bytes]) -> None:
        found.append(Path(file.name))
        asked.set()
        go.wait()

    found = list[Path]()
    thread = threading.Thread(target=lambda: files.write_atomic(path, write))
    thread.start()
    asked.wait()
    yield found[0]
    go.set()
    thread.join()


FORKS = """
import os, signal, sys, time
from ghmdet.files import hold
with hold(sys.argv[1]):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_worker_that_outlives_a_killed_process_holds_nothing_up(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", FORKS, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        with pytest.raises(GhmdetError, match=f"process {process.pid} on"), hold(tmp_path):
            pass  # the worker has let go of the lock, its parent has not
        process.kill()
        process.wait()
        os.kill(worker, 0)  # it lives
        with hold(tmp_path):
            pass
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)
        process.communicate()


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


def test_a_link_or_a_folder_in_place_of_the_lock_is_named_and_nothing_is_written_over(tmp_path: Path) -> None:
    mine, lock = tmp_path / "mine", tmp_path / "out" / LOCK
    mine.write_text("precious")
    lock.parent.mkdir()

    def refused() -> None:
        said = r"\.ghmdet\.lock: is no file, but a link, a folder or the like: remove it"
        with pytest.raises(GhmdetError, match=said), hold(lock.parent):
            pytest.fail("it is held")
        assert os.path.lexists(lock)

    for target in (mine, tmp_path / "nowhere", tmp_path):
        lock.symlink_to(target)
        refused()
        lock.unlink()
    assert mine.read_text() == "precious" and not (tmp_path / "nowhere").exists()
    os.mkfifo(lock)
    refused()
    lock.unlink()
    lock.mkdir()
    refused()
    lock.rmdir()
    with hold(lock.parent):
        assert lock.is_file()


@pytest.mark.parametrize("before", ["new", "old", "full"])
def test_a_file_that_is_missing_in_the_block_is_the_error_and_the_lock_goes(
    tmp_path: Path, before: str
) -> None:
    folder = tmp_path / "out"
    if before != "new":
        folder.mkdir()
    if before == "full":
        (folder / "kept").touch()
    with pytest.raises(FileNotFoundError, match="missing"), hold(folder):
        (tmp_path / "missing").read_text()
    assert [path.name for path in tmp_path.rglob("*")] == {
        "new": [],
        "old": ["out"],
        "full": ["out", "kept"],
    }[before]
    with hold(folder):
        pass
