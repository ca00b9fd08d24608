"""What signals that ask a command to end do: interrupt, termination, and the terminal's going away."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

_asked_at = -math.inf
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def end_at_once(number: int, frame: FrameType | None) -> None:
    """While nothing is begun, as during imports: no exception, which a library may print or swallow."""
    os.write(2, b"ghmdet: stopped\n")
    os._exit(130)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt: what is being written is put away, and the command says how to go on."""
    if not _once_more():
        raise KeyboardInterrupt


def _once_more() -> bool:
    """Whether this is a request of the last second, come again: `timeout` asks the command, then its whole group."""
    global _asked_at
    again = time.monotonic() - _asked_at < 1
    if not again:
        _asked_at = time.monotonic()
    return again


def on_stop(handler: Any) -> None:
    """Let `handler` take each of `STOPS` that is not ignored, as SIGHUP is under nohup."""
    with contextlib.suppress(ValueError):  # not in the main thread: signals are not ours to take
        for number in STOPS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


def leave_to_main(worker: int) -> None:
    """Let a process that reads pictures end when the main one says so, and by no signal to all processes.

    What asks a whole group asks the main process too, which ends this one after its step; a worker that is gone before
    would be an error there.
    """
    for number in set(STOPS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, nor on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_main, daemon=True).start()


def _end_with_main() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class StopSignal:
    """Turns the first signal to stop into a wish that the loop grants after its step."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self.before = {number: signal.getsignal(number) for number in STOPS}
        on_stop(self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(ValueError):
            for number, handler in self.before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not _once_more():
            if self.asked:
                raise KeyboardInterrupt  # a second request stops at once
            self.asked = True
