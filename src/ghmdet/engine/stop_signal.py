"""Stopping a run at a place from which it can go on."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType
from typing import Any


class StopSignal:
    """Turns the first interrupt or termination signal into a wish that the loop grants after its step."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        with contextlib.suppress(ValueError):  # not in the main thread: signals are not ours to take
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self.before[number])  # a second one stops at once
