"""Interruptions of a running process: signals, and a removed working directory."""

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
"""Seconds within which a second signal counts as the same one."""


class CutOff(SystemExit):
    """Premature end of a run by a signal: exit code 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        name = signal.Signals(number).name
        self.said = "Interrupted." if number == signal.SIGINT else f"Ended by {name}."


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise :class:`CutOff` in the main thread, so that open resources are closed.

    Ignored signals (``nohup``) stay ignored. A signal that follows another within ``SAME_SIGNAL`` seconds is taken for
    the same one, sent to the process group as well.
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
    """Context manager that defers SIGTERM, SIGHUP and SIGINT to its end, or to ``release``.

    A signal mask is not enough: the kernel delivers the signal to another thread, and Python handles it in the main
    one.
    """

    def __enter__(self) -> HeldSignals:
        self.received: list[int] = []
        numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        self.handlers = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Restore the handlers and deliver the first signal that was received."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.received:
            signal.raise_signal(self.received[0])

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)


def cut_off(end: BaseException) -> CutOff | None:
    """The signal that ended a run; None for any other end.

    Lightning turns Ctrl-C into ``exit(1)``, and SIGTERM at the next batch into a SystemExit without a code.
    """
    if isinstance(end, CutOff):
        return end
    if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
        return CutOff(signal.SIGINT)
    if type(end).__name__ == "SIGTERMException":  # by name: importing Lightning for it takes seconds
        return CutOff(signal.SIGTERM)
    return None


def leave_gone_directory() -> None:
    """Change to the temporary folder if the working directory was removed, because much code calls ``os.getcwd``."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir(tempfile.gettempdir())
        log.warning(
            "The working directory was removed. Relative paths are now resolved in %s; give absolute ones.",
            tempfile.gettempdir(),
        )
