"""Progress bars where there is a terminal to draw them on, and lines, ever fewer, where training has none."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

FIRST_LINE = 30.0


@contextmanager
def counting(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr for the block; yields a function to call with the number of things just done."""
    if not sys.stderr.isatty():  # Rich before 14 prints an empty line even where its bar is disabled
        yield lambda done: None
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
        began, due = time.monotonic(), FIRST_LINE

        def line(share: float, about: str) -> None:
            nonlocal due
            if show and time.monotonic() - began >= due:
                say(f"{about}: {share:.1%}")
                due = 2 * (time.monotonic() - began)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not show) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share, about: bar.update(task, completed=share, description=about)
