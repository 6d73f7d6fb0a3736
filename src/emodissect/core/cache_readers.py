"""Which processes are reading a cache, so that files they may have open are not removed."""

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

    A reader that announced itself after an entry was replaced sees the new version only. So the old version may go
    when every remaining reader announced itself later. The lock of a killed process is released with it.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / _FOLDER
        self._own: Path | None = None

    def announce(self) -> None:
        """Makes this process a reader, once; where the cache cannot be written it reads unannounced."""
        if self._own is not None:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            while self._own is None:
                path = self.folder / uuid.uuid4().hex
                lock = FileLock(path)
                lock.acquire(timeout=0)
                if path.exists():  # otherwise another process took it for that of a dead one before it was locked
                    self._own = path
                    weakref.finalize(self, _leave, lock, path, os.getpid())

    def others_since_before(self, moment: float) -> bool:
        """Whether a live reader announced itself before a given time (seconds since the epoch)."""
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
    if os.getpid() == process:  # a forked child shares the lock and must not open it
        with suppress(OSError):
            path.unlink(missing_ok=True)
            lock.release()
