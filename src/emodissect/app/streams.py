"""What is printed: it never ends the program, carries a parallel job's number, and is in the log file too."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

from rich.console import Console


class SteadyStream:
    """Standard output or error that never ends the program.

    When the reader of a pipe has exited, or the disk behind a redirected file is full, what is printed is dropped, and
    the run continues: results are files. Characters that the encoding lacks are printed as ``?``.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """As of the stream; the text is dropped where it cannot be written."""
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """As of the stream."""
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_streams_open() -> None:
    """Lets standard output and error be :class:`SteadyStream`, and gives a process without them the null device."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for the life of the process
        if not isinstance(stream, SteadyStream):
            setattr(sys, name, SteadyStream(stream))


class NumberedStream:
    """Whole lines at a time, each with a job's number before it."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream, self._prefix, self._line = stream, prefix, ""

    def write(self, text: str) -> int:
        """Keeps what comes after the last end of a line until that line ends."""
        *lines, self._line = (self._line + text).split("\n")
        if lines:
            self._stream.write("".join(f"{self._prefix}{line}\n" for line in lines))
            self._stream.flush()
        return len(text)

    def isatty(self) -> bool:
        """False: bars of several jobs would write over one another."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def number_lines(number: int) -> None:
    """Puts ``[number]`` before each line that this process prints; tables become narrower by as much."""
    prefix = f"[{number}] "
    os.environ["COLUMNS"] = str(max(shutil.get_terminal_size().columns - len(prefix), 40))
    sys.stdout = cast(TextIO, NumberedStream(sys.stdout, prefix))
    sys.stderr = cast(TextIO, NumberedStream(sys.stderr, prefix))


class LoggedConsole(Console):
    """A console whose tables and sentences are also in the run's log file, 120 characters wide and without colours."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As of rich's console."""
        super().print(*objects, **options)
        files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
        for handler in [] if self.quiet else files:
            if handler.stream is not None:
                Console(file=handler.stream, width=120, color_system=None).print(*objects, **options)
                handler.flush()
