"""A content-keyed cache: each result is computed once for the same inputs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
import xxhash
from filelock import FileLock

from emodissect.core.cache_readers import Readers
from emodissect.core.errors import UserError
from emodissect.core.fingerprint import content_key, fingerprint

log = logging.getLogger(__name__)

Value = TypeVar("Value")

_SEAL = "entry.json"
_HASHES: Mapping[str, Callable[..., Any]] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}


class Cache:
    """Folders of finished results, each named by the hash of everything that it depends on.

    An entry is written to a temporary folder, sealed with the size and hash of each file, and renamed. If two processes
    need the same entry, one computes it and the other waits on a file lock. An entry whose files do not match its seal
    is reported and recomputed. Files are verified the first time that a process uses the entry (20 GB/s), and again if
    their size or time has changed.

    A finished entry never changes. Recomputing it adds a new version (``<key>.1``, ``<key>.2``, ...), which is then
    used; the old one is removed when no process may still be reading it.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self._readers = Readers(self.root)
        self._verified: dict[Path, list[tuple[Any, ...]]] = {}
        self._given: set[Path] = set()

    def entry(self, kind: str, key: Mapping[str, Any], write: Callable[[Path], None], recompute: bool = False) -> Path:
        """The folder of the entry for ``key``, created by ``write(folder)`` if it does not exist.

        Args:
            kind: what is stored, e.g. ``activations``; the first level of folders.
            key: everything that the result depends on: plain values, and objects by their fingerprint
                (:func:`emodissect.core.fingerprint.fingerprint`).
            write: fills an empty folder with the entry's files.
            recompute: create a new version even if one exists, unless another process is already creating one.

        Raises:
            UserError: the cache cannot be written, or its disk is full.
        """
        before = self._newest(kind, key)
        if not recompute and self._intact(before):
            return self._give(before)
        name = self.root / kind / content_key(key)
        try:
            name.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(name.with_suffix(".lock"))
            lock.acquire()
        except OSError as error:
            raise UserError(
                f"The cache folder {self.root} cannot be written ({error.strerror}). "
                "Give another: paths.cache_dir=<folder>."
            ) from error
        try:
            newest = self._newest(kind, key)
            if (not recompute or newest != before) and self._intact(newest):
                return self._give(newest)
            if os.path.lexists(newest) and not recompute:
                log.warning("Cache entry %s is damaged or is not an entry; it is recomputed.", newest)
            made = self._make(name, key, write)
            self._remove_replaced(name, made)
            return self._give(made)
        finally:
            lock.release()

    def value(
        self,
        kind: str,
        key: Mapping[str, Any],
        write: Callable[[Path], None],
        read: Callable[[Path], Value],
        recompute: bool = False,
    ) -> Value:
        """The result of ``read(folder)`` for the entry of ``key``, which is created by ``write`` if it does not exist.

        An entry for which ``read`` fails (written by another version) counts as missing.

        Args:
            kind, key, write, recompute: as in :meth:`entry`.
            read: may raise any exception if the folder's content is not as expected.
        """
        folder = self.entry(kind, key, write, recompute)
        try:
            return read(folder)
        except Exception as error:  # KeyError, TypeError, a library's own: reading another format can raise anything
            log.warning("Cache entry %s is not of this version (%s); it is recomputed.", folder, _reason(error))
        return read(self.entry(kind, key, write, recompute=True))

    def held(self, kind: str, key: Mapping[str, Any], read: Callable[[Path], Value]) -> Value | None:
        """The result of ``read(folder)`` for the entry of ``key``; None if there is no readable entry."""
        folder = self._newest(kind, key)
        if not self._intact(folder):
            return None
        try:
            return read(self._give(folder))
        except Exception as error:  # as in value()
            log.warning("Cache entry %s is not of this version (%s); it is recomputed.", folder, _reason(error))
            return None

    def holds(self, kind: str, key: Mapping[str, Any]) -> bool:
        """Whether the entry for ``key`` exists and its files match its seal."""
        return self._intact(self._newest(kind, key))

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        """The folder of the newest version of the entry for ``key``, whether it exists or not."""
        return self._give(self._newest(kind, key))

    def _newest(self, kind: str, key: Mapping[str, Any]) -> Path:
        self._readers.announce()
        name = self.root / kind / content_key(key)
        return max(_versions(name), key=_number, default=name)

    def _give(self, folder: Path) -> Path:
        self._given.add(folder)
        return folder

    def _make(self, name: Path, key: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
        # left by a killed process, since this one holds the lock
        for left in name.parent.glob(f"{name.name}.*.unfinished"):
            shutil.rmtree(left, ignore_errors=True)
        unfinished = name.with_name(f"{name.name}.{uuid.uuid4().hex[:8]}.unfinished")
        unfinished.mkdir()
        try:
            write(unfinished)
            files = {str(p.relative_to(unfinished)): _seal(p) for p in sorted(unfinished.rglob("*")) if p.is_file()}
            seal = {"name": name.name, "key": fingerprint(key), "files": files}
            (unfinished / _SEAL).write_text(json.dumps(seal, indent=1), encoding="utf-8")
            number = max(map(_number, _versions(name)), default=-1) + 1
            while os.path.lexists(made := _version(name, number)):  # a file or a link, which must not be removed
                number += 1
            unfinished.rename(made)
        except BaseException as error:
            full = disk_is_full(self.root)
            shutil.rmtree(unfinished, ignore_errors=True)
            if full and isinstance(error, Exception):
                raise UserError(
                    f"The disk of the cache folder {self.root} is full. Completed results are kept: free some "
                    "space and run the same command, or give another folder: paths.cache_dir=<folder>."
                ) from error
            raise
        return made

    def _remove_replaced(self, name: Path, newest: Path) -> None:
        replaced = [folder for folder in _versions(name) if _number(folder) < _number(newest)]
        if not replaced or self._given & set(replaced):
            return
        if not self._readers.others_since_before((newest / _SEAL).stat().st_mtime):
            for folder in replaced:
                shutil.rmtree(folder, ignore_errors=True)

    def _intact(self, folder: Path) -> bool:
        """Whether all sealed files exist unchanged; files are read once, and again if size or time changed."""
        try:
            seal = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
            files = seal["files"]
            if not files or seal.get("name", _stem(folder)) != _stem(folder):
                return False
            found = [(name, *_size_and_time(folder, name)) for name in files]
            if any(size != files[name]["bytes"] for name, size, *_ in found):
                return False
            if self._verified.get(folder) != found:
                if not all(_matches(folder / name, sealed) for name, sealed in files.items()):
                    return False
                self._verified[folder] = found
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):  # a seal of any shape
            return False
        return True


def disk_is_full(folder: Path) -> bool:
    """Whether less than 1 MiB is free on a folder's disk; libraries raise various errors then."""
    return shutil.disk_usage(folder).free < 2**20


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    return _digest(Path(path), "sha256")


def _digest(path: Path, method: str) -> str:
    with open(path, "rb") as file:
        return str(hashlib.file_digest(file, _HASHES[method]).hexdigest())


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _seal(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "xxh3_128": _digest(path, "xxh3_128")}


def _matches(path: Path, sealed: Mapping[str, Any]) -> bool:
    """Whether a file has the sealed hash; entries of earlier versions use SHA-256."""
    method = "xxh3_128" if "xxh3_128" in sealed else "sha256"
    return _digest(path, method) == sealed[method]


def _size_and_time(folder: Path, name: str) -> tuple[int, int, int]:
    """Size, time and inode of a regular file inside the folder. Raises ValueError for anything else."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name} is outside the entry")
    about = os.lstat(folder / name)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{name} is not a regular file")
    return about.st_size, about.st_mtime_ns, about.st_ino


def _versions(name: Path) -> list[Path]:
    """The folders of an entry's versions, ignoring files and links with such names."""
    found: list[Path] = []
    with suppress(OSError), os.scandir(name.parent) as items:
        for item in items:
            stem, _, number = item.name.partition(".")
            if stem == name.name and (number.isdecimal() or item.name == stem) and item.is_dir(follow_symlinks=False):
                found.append(Path(item.path))
    return found


def _version(name: Path, number: int) -> Path:
    return name.with_name(f"{name.name}.{number}") if number else name


def _stem(folder: Path) -> str:
    return folder.name.partition(".")[0]


def _number(folder: Path) -> int:
    return int(folder.name.partition(".")[2] or 0)


def user_cache_dir() -> Path:
    """The folder of the current user's caches for this package, e.g. ``~/.cache/emodissect``."""
    return Path(platformdirs.user_cache_dir("emodissect", appauthor=False))
