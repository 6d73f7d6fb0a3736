"""What may happen to a process while it works: signals, a terminal, pipe or working directory that is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from types import FrameType
from typing import Any, TextIO

log = logging.getLogger(__name__)

RESUMES = (
    "The same command resumes: finished steps come from the cache, an unfinished training continues after its last "
    "complete epoch."
)


class CutOff(SystemExit):
    """The end of a run before its time, by a signal: exit code 128 + signal.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        name = signal.Signals(number).name
        self.said = "Interrupted." if number == signal.SIGINT else f"Ended by {name}."


def exit_on_signals() -> None:
    """Turns SIGTERM and SIGHUP into :class:`CutOff`, raised where the program is, so that what is open is closed.

    A signal that is ignored (``nohup``) stays so. A second one is ignored: schedulers send it again and again, and
    what is written then must be written whole.
    """
    received: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        if not received:
            received.append(number)
            raise CutOff(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def cut_off(end: BaseException) -> CutOff | None:
    """The signal behind the end of a run; None for any other end.

    Lightning answers Ctrl-C with ``exit(1)``, and SIGTERM at the next batch with a SystemExit without a code.
    """
    if isinstance(end, CutOff):
        return end
    if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
        return CutOff(signal.SIGINT)
    if type(end).__name__ == "SIGTERMException":  # by name: importing Lightning for it takes seconds
        return CutOff(signal.SIGTERM)
    return None


class SteadyStream:
    """Standard output or error that never ends the program.

    When the reader of a pipe is gone, or the disk behind a redirected file is full, what is printed is dropped, and
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


def leave_gone_directory() -> None:
    """Changes to the folder for temporary files where the working directory was removed: much asks for its name."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir(tempfile.gettempdir())
        log.warning(
            "The working directory was removed. Relative paths are now looked for in %s; give absolute ones.",
            tempfile.gettempdir(),
        )
