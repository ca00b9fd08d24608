"""Writing files so that a reader never meets half of one, and folders so that two writers never mix."""

import errno
import hashlib
import io
import os
import re
import socket
import stat
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ghmdet.errors import Busy, GhmdetError

try:
    import fcntl
except ImportError:  # on Windows; the lock's text has to do
    fcntl = None  # type: ignore[assignment]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says of a disk without room, or a file that may not be so large."""
LOCK = ".ghmdet.lock"
LEFT_BY_PROGRAMS = re.compile(
    r"\.DS_Store|\._.*|\.directory|\.ghmdet.*|\.[0-9a-f.]+\.tmp|\.ipynb_checkpoints|\.nfs.*|.*\.cache|@eaDir|Thumbs\.db|desktop\.ini",
    re.DOTALL,
)
"""Names of what comes by merely looking at a folder or training on it."""
TEMPORARY = ".{name:08x}.{host:08x}.{process}.tmp"
"""What a file is called while it is written. Short whatever its name: a disk takes 255 bytes."""
_held: dict[str, IO[str]] = {}  # the folders that this process holds, and their locked files


class _Written(io.BufferedWriter):
    """A file that tells no number: Pillow's JPEG encoder would write to that, and take a full disk for success."""

    def fileno(self) -> int:
        """There is none."""
        raise io.UnsupportedOperation("fileno")


def write_atomic(
    path: Path | str, content: bytes | str | Callable[[IO[bytes]], Any], *, keep: Path | None = None
) -> Path:
    """Writes `content` to `path` whole or not at all, making its folder; returns the path.

    content: bytes, text, or a function that writes into the file it is given, as a picture's `save` and a figure's
    `savefig` do. Text is written as UTF-8; what is none (a byte of a file's name, a half character) as `\\udcff`, which
    JSON reads back. keep: where what `path` held before is kept, instead of what is there.

    The bytes go to a temporary neighbour first, which then takes the name in one step: whoever opens `path`,
    even after a crash in the middle, finds the old content or the new. Raises OSError, naming `path`, where the disk
    refuses.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder: name a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    name = zlib.crc32(os.fsencode(path.name))
    temporary = path.with_name(TEMPORARY.format(name=name, host=_host(), process=os.getpid()))
    try:
        with temporary.open("wb", buffering=0) as raw, _Written(raw) as file:
            if callable(content):
                content(file)
            else:
                text = isinstance(content, str)
                file.write(content.encode(errors="backslashreplace") if text else content)  # type: ignore[union-attr, arg-type]
            file.flush()
            os.fsync(raw.fileno())  # without it a power cut can leave the new name on empty content
        if keep is not None:
            with suppress(FileNotFoundError):
                path.replace(keep)
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise
    except RuntimeError as error:  # as torch's writer says that a disk is full
        if isinstance(full := error.__context__, OSError):
            full.filename = str(path)
            raise full from None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """In the block, an error of a full disk names the file that is written; the system may name none, or the source."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            error.filename = str(path)
        raise


def file_stamp(path: Path) -> tuple[int, int]:
    """By which a file is known to be as it was: its size and the time of its last change; zeros where there is none."""
    try:
        about = path.stat()
    except OSError:
        return 0, 0
    return about.st_size, about.st_mtime_ns


def content_digest(path: Path) -> str:
    """A word for the content of a file, empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def state_of(root: Path, files: Iterable[Path], by_size: Collection[str] = ()) -> str:
    """A word for the names and contents of files below a folder; of those with such an ending the size counts alone."""

    def state(file: Path) -> object:
        if file.is_symlink():
            return os.fsencode(file.readlink())
        sized = file.suffix.lower() in by_size
        return file.stat().st_size if sized else zlib.crc32(file.read_bytes())

    told = [f"{os.fsencode(file.relative_to(root).as_posix())!r} {state(file)!r}" for file in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def files_below(folder: Path) -> list[Path]:
    """The files and links in a folder and below, by name, but for those that programs leave as they look."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not LEFT_BY_PROGRAMS.fullmatch(name)]
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name) for name in (*names, *links) if not LEFT_BY_PROGRAMS.fullmatch(name)]
    return sorted(found)


def require_ending(option: str, path: Path, *endings: str) -> None:
    """Raise GhmdetError where the file that an option names has none of the endings, as a checkpoint written over has.

    A folder is left to whoever writes.
    """
    if path.suffix.lower() not in endings and not path.is_dir():
        raise GhmdetError(f"{option} {path}: give a file whose name ends in {endings[0]}")


def checkpoint_file(path: Path | str) -> Path:
    """The file that is meant where a checkpoint is asked for: of a run's folder its best.pt."""
    best = Path(path) / "best.pt"
    return best if best.is_file() else Path(path)


@contextmanager
def hold(folder: Path | str) -> Iterator[None]:
    """Makes the folder and lets no other process write into it, for the block.

    Inside a block for the same folder it does nothing. A folder that it made and that stays empty goes again.
    What killed processes of this host had half written there and below is removed.
    The file `.ghmdet.lock` there says which host and process holds it. The system's own lock on that file ends with the
    process, so one that was killed leaves nothing to clean up. On a disk without such locks the text decides: one of a
    process of this host that has ended is taken over.

    Raises Busy, naming the holder, where another process holds the folder; GhmdetError where the lock is no file.
    """
    folder = Path(folder)
    key, path = os.path.realpath(folder), folder / LOCK
    if key in _held:
        yield
        return
    made = [above for above in (folder, *folder.parents) if not above.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise GhmdetError(f"{error.filename}: is a file: give a folder") from None
    with _locked(path) as file:
        _held[key] = file
        try:
            with errors_name(path):
                file.seek(0)
                file.truncate()
                file.write(f"{socket.gethostname()} {os.getpid()}\n")
                file.flush()
            _remove_half_written(folder)
            yield
        finally:
            del _held[key]
            path.unlink(missing_ok=True)  # while it is locked: the next one locks a new file
            with suppress(OSError):  # until a folder is not empty
                for empty in made:
                    empty.rmdir()


def _let_go() -> None:
    """Close the locked files in a worker, which may outlive a killed parent: the lock ends when all have closed it."""
    for file in _held.values():
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _remove_half_written(folder: Path) -> None:
    """Remove the temporary files in a folder, and below, whose process on this host has ended."""
    ours = re.compile(rf"\.[0-9a-f]{{8}}\.{_host():08x}\.([0-9]+)\.tmp")
    for place, _, names in os.walk(folder):
        for match in filter(None, map(ours.fullmatch, names)):
            if not _runs(match[1]):
                with suppress(OSError):
                    Path(place, match[0]).unlink()


def _host() -> int:
    """A number for this host."""
    return zlib.crc32(socket.gethostname().encode())


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    """The lock file, locked for the block; raises Busy where another has it, GhmdetError where it is no file."""
    while True:
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(path.lstat().st_mode):  # a link would have its target written over
                raise GhmdetError(f"{path}: is no file, but a link, a folder or the like: remove it")
        with path.open("a+", encoding="utf-8", errors="replace") as file:
            file.seek(0)
            host, _, process = file.read().strip().partition(" ")
            by = f"process {process} on {host}" if process else "another process"
            busy = Busy(
                f"{path.parent}: {by} is writing there: wait until it ends, stop it, or give another --out (where it"
                f" ended long ago, remove {path})"
            )
            try:
                if fcntl is None:
                    raise OSError(errno.ENOLCK, "no locks")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
            except OSError:
                if process and (host != socket.gethostname() or _runs(process)):
                    raise busy from None
            there = False
            with suppress(FileNotFoundError):
                there = os.path.samestat(os.fstat(file.fileno()), path.stat())
            if there:  # else its holder has just removed it
                yield file
                return


def _runs(process: str) -> bool:
    """Whether there is a process of this number on this host; of what is no number there is none."""
    try:
        os.kill(int(process), 0)
    except (OverflowError, ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
