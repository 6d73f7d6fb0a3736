"""A progress bar on a terminal; nothing where output goes to a file."""

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
    """A bar on stderr that is removed afterwards; yields the function that advances it.

    Args:
        total: how far it goes; None where that is not known. No bar for 0.
    """
    if total == 0:
        yield lambda count: None
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    timed = (*columns, TimeElapsedColumn(), TimeRemainingColumn())
    # a bar that is not live would leave an empty line in a log
    progress = Progress(*timed, console=console, transient=True, disable=not console.is_terminal)
    try:
        progress.start()
    except LiveError:  # another bar is on the screen
        yield lambda count: None
        return
    try:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
    finally:
        progress.stop()


def tracked(items: Iterable[Item], what: str | None, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar while they are iterated.

    Args:
        what: the label of the bar; an empty label shows no bar.
        total: how many they are, where the items themselves do not know.
    """
    if not what:
        yield from items
        return
    with progress_bar(what, total if total is not None else length_hint(items) or None) as advance:
        for item in items:
            yield item
            advance(1)
