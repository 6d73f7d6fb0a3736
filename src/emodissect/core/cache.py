"""A store keyed by content: what was made once from the same inputs is not made again."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from emodissect.core.errors import UserError

log = logging.getLogger(__name__)

_SEAL = "entry.json"


class Cache:
    """Folders of finished results, each named by the hash of everything it was made from.

    An entry is written to a temporary folder, sealed with the size and SHA-256 of each file, and renamed. Two
    processes that want the same entry make it once: one makes, the other waits on a file lock. An entry whose files
    no longer match its seal is reported and made anew.

    Args:
        root: the folder of the store; made on first use.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()

    def entry(self, kind: str, key: Mapping[str, Any], write: Callable[[Path], None], anew: bool = False) -> Path:
        """The folder of the entry for ``key``, made by ``write(folder)`` where it does not stand yet.

        Args:
            kind: what is stored, e.g. ``activations``; the first level of folders.
            key: everything the result depends on, as plain JSON values.
            write: fills an empty folder with the entry's files.
            anew: make it even where it stands; the old one stays until the new one is whole.

        Raises:
            UserError: the store cannot be written, or its disk is full.
        """
        folder = self.path(kind, key)
        if not anew and _intact(folder, quick=True):
            return folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.with_suffix(".lock"))
            lock.acquire()
        except OSError as error:
            raise UserError(
                f"The cache folder {self.root} cannot be written ({error.strerror}). "
                "Give another: paths.cache_dir=<folder>."
            ) from error
        with lock:
            if not anew and _intact(folder):
                return folder
            if folder.exists() and not anew:
                log.warning("Cache entry %s is damaged; it is made anew.", folder)
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                write(unfinished)
                files = {str(p.relative_to(unfinished)): _seal(p) for p in sorted(unfinished.rglob("*")) if p.is_file()}
                (unfinished / _SEAL).write_text(json.dumps({"key": key, "files": files}, indent=1, default=str))
                shutil.rmtree(folder, ignore_errors=True)
                unfinished.rename(folder)
            except BaseException as error:
                full = disk_is_full(self.root)
                shutil.rmtree(unfinished, ignore_errors=True)
                if full and isinstance(error, Exception):
                    raise UserError(
                        f"The disk of the cache folder {self.root} is full. What was made before stays: free some "
                        "space and run the same command, or give another folder: paths.cache_dir=<folder>."
                    ) from error
                raise
        return folder

    def holds(self, kind: str, key: Mapping[str, Any]) -> bool:
        """Whether the entry for ``key`` stands and its files match its seal."""
        return _intact(self.path(kind, key))

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Where the entry for ``key`` stands or would stand."""
        return self.root / kind / content_key(key)


def content_key(key: Mapping[str, Any]) -> str:
    """The first 24 hex digits of the SHA-256 of ``key`` as JSON with sorted names."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]


def disk_is_full(folder: Path) -> bool:
    """Whether less than a mebibyte is free where a folder lies; libraries raise anything at all when it is."""
    return shutil.disk_usage(folder).free < 2**20


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def _intact(folder: Path, quick: bool = False) -> bool:
    """Whether every sealed file is there unchanged; ``quick`` compares sizes, and hashes only files under 64 MiB."""
    try:
        files = json.loads((folder / _SEAL).read_text())["files"]
        for name, seal in files.items():
            if (folder / name).stat().st_size != seal["bytes"]:
                return False
            if not (quick and seal["bytes"] > 2**26) and file_hash(folder / name) != seal["sha256"]:
                return False
    except (OSError, ValueError, KeyError):
        return False
    return True
