"""Registry of the processes that read a cache, so that files that they may have open are not removed."""

from __future__ import annotations

import logging
import os
import uuid
import weakref
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

_FOLDER = ".readers"
_SLACK = 60.0  # seconds, far more than pass between sealing an entry and renaming it


class Readers:
    """The readers of one cache: each holds a lock on its own file until it exits.

    A reader that registered after an entry was replaced only sees the new version. So the old version may be removed
    when all remaining readers registered later. The lock of a killed process is released automatically.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / _FOLDER
        self._own: Path | None = None

    def announce(self) -> None:
        """Register this process as a reader, once; skipped if the cache is not writable."""
        if self._own is not None:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            while self._own is None:
                path = self.folder / uuid.uuid4().hex
                lock = FileLock(path)
                lock.acquire(timeout=0)
                if path.exists():  # else another process removed it before it was locked, as a dead reader's
                    self._own = path
                    weakref.finalize(self, _leave, lock, path, os.getpid())

    def others_since_before(self, moment: float) -> bool:
        """Whether another live reader registered before a given time (seconds since the epoch)."""
        for path in self.folder.glob("*"):
            with suppress(OSError):  # it exited in the meantime
                if path != self._own and path.stat().st_mtime <= moment + _SLACK and _lives(path):
                    return True
        return False


def _lives(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    path.unlink(missing_ok=True)
    lock.release()
    return False


def _leave(lock: FileLock, path: Path, process: int) -> None:
    if os.getpid() == process:  # a forked child shares the lock and must not release it
        with suppress(OSError):
            path.unlink(missing_ok=True)
            lock.release()
