"""Progress bars, shown only in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import length_hint
from typing import TypeVar

from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Context manager: a bar on stderr that is removed at the end; yields the function that advances it.

    Args:
        total: number of steps; None if unknown. No bar for 0.
    """
    if total == 0:
        yield lambda count: None
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    timed = (*columns, TimeElapsedColumn(), TimeRemainingColumn())
    # outside a terminal the bar would leave an empty line in a log
    progress = Progress(*timed, console=console, transient=True, disable=not console.is_terminal)
    try:
        progress.start()
    except LiveError:  # another bar is active
        yield lambda count: None
        return
    try:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
    finally:
        progress.stop()


def tracked(items: Iterable[Item], what: str | None, total: int | None = None) -> Iterator[Item]:
    """The items, with a progress bar while they are iterated.

    Args:
        what: label of the bar; None or empty for no bar.
        total: number of items, if they have no length.
    """
    if not what:
        yield from items
        return
    with progress_bar(what, total if total is not None else length_hint(items) or None) as advance:
        for item in items:
            yield item
            advance(1)
