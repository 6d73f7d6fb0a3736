"""Output streams: failing writes do not end the program, parallel jobs are numbered, and the log file has a copy."""

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
    """Wrapper of standard output or error whose failing writes do not end the program.

    When the reader of a pipe has exited, or the disk of a redirected file is full, output is discarded and the run
    continues: results are files. Characters that the encoding lacks are printed as ``?``.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """Write to the stream; text that cannot be written is discarded."""
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Flush the stream, ignoring failures."""
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
    """Wrap standard output and error in :class:`SteadyStream`; where they are None, use the null device."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for the life of the process
        if not isinstance(stream, SteadyStream):
            setattr(sys, name, SteadyStream(stream))


class NumberedStream:
    """Stream wrapper that writes whole lines, each prefixed with a job's number."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream, self._prefix, self._line = stream, prefix, ""

    def write(self, text: str) -> int:
        """Write the complete lines; an incomplete last line is buffered until it ends."""
        *lines, self._line = (self._line + text).split("\n")
        if lines:
            self._stream.write("".join(f"{self._prefix}{line}\n" for line in lines))
            self._stream.flush()
        return len(text)

    def isatty(self) -> bool:
        """False: progress bars of several jobs would overwrite one another."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def number_lines(number: int) -> None:
    """Prefix each line that this process prints with ``[number]``; tables become narrower to match."""
    prefix = f"[{number}] "
    os.environ["COLUMNS"] = str(max(shutil.get_terminal_size().columns - len(prefix), 40))
    sys.stdout = cast(TextIO, NumberedStream(sys.stdout, prefix))
    sys.stderr = cast(TextIO, NumberedStream(sys.stderr, prefix))


class LoggedConsole(Console):
    """A console that also prints to the run's log file, 120 characters wide and without colours."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print to the console and to the log file."""
        super().print(*objects, **options)
        files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
        for handler in [] if self.quiet else files:
            if handler.stream is not None:
                Console(file=handler.stream, width=120, color_system=None).print(*objects, **options)
                handler.flush()
