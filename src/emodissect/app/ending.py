"""What may happen to a process while it works: signals, and a working directory that is removed."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from types import FrameType

log = logging.getLogger(__name__)

RESUMES = (
    "The same command resumes: finished steps come from the cache, an unfinished training continues after its last "
    "complete epoch."
)


SAME_SIGNAL = 2.0
"""Seconds."""


class CutOff(SystemExit):
    """The end of a run before its time, by a signal: exit code 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        name = signal.Signals(number).name
        self.said = "Interrupted." if number == signal.SIGINT else f"Ended by {name}."


def exit_on_signals() -> None:
    """Turns SIGTERM and SIGHUP into :class:`CutOff`, raised where the program is, so that what is open is closed.

    A signal that is ignored (``nohup``) stays so. One that comes soon after another is the same one, sent to the group
    of processes as well.
    """
    last = -SAME_SIGNAL

    def end(number: int, _: FrameType | None) -> None:
        nonlocal last
        earlier, last = last, time.monotonic()
        if last - earlier > SAME_SIGNAL:
            raise CutOff(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


class HeldSignals:
    """A context in which SIGTERM, SIGHUP and SIGINT wait. They are answered once at its end, or by ``release``.

    A mask would not do: the kernel gives the signal to another thread, and Python answers it in the main one.
    """

    def __enter__(self) -> HeldSignals:
        self.received: list[int] = []
        numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        self.handlers = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Answers what was received, as it would have been without this."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.received:
            signal.raise_signal(self.received[0])

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)


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
