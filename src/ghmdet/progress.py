"""Progress bars where there is a terminal to draw them on, and lines, ever fewer, where training has none."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

FIRST_LINE = 30.0


@contextmanager
def counting(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, or lines as of `progress_bar`; yields a function to call with the number of things just done."""
    if not sys.stderr.isatty():  # Rich before 14 prints an empty line even where its bar is disabled
        line, done = _seldom(partial(print, file=sys.stderr)), 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            line(f"{what}: {done}{f' of {total}' if total else ''}")

        yield advance
        return
    with Progress(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def progress_bar(
    *, show: bool, say: Callable[[str], None] = lambda line: None
) -> Iterator[Callable[[float, str], None]]:
    """A bar on stdout for the block, if `show`; yields a function of the share that is done and of what is done now.

    Where stdout is no terminal, `say` takes a line after `FIRST_LINE` seconds, and the next each time twice as late.
    """
    if not sys.stdout.isatty():
        line = _seldom(say if show else lambda line: None)
        yield lambda share, about: line(f"{about}: {share:.1%}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not show) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share, about: bar.update(task, completed=share, description=about)


def _seldom(say: Callable[[str], None]) -> Callable[[str], None]:
    """Passes a line on after `FIRST_LINE` seconds, and the next each time twice as late."""
    began, due = time.monotonic(), FIRST_LINE

    def line(text: str) -> None:
        nonlocal due
        if time.monotonic() - began >= due:
            say(text)
            due = 2 * (time.monotonic() - began)

    return line
