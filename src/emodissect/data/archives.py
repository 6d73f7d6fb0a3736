"""Archives of data sets: unpacked once into the cache, with path traversal and zip bombs rejected."""

from __future__ import annotations

import gzip
import io
import logging
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache as kept
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from emodissect.core.cache import Cache, file_hash
from emodissect.core.errors import UserError
from emodissect.data.class_folders import LEFT_BY_SYSTEMS, SPLIT_OF
from emodissect.data.decoding import ENDINGS

log = logging.getLogger(__name__)

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVES = (".zip", *TARS, ".csv.gz")
_LISTS = (".csv", ".tsv", ".txt", ".npy", ".npz")

_RATIO = 200  # largest compression ratio; images and CSVs of pixels stay below 20
_ALWAYS = 2 * 2**30  # bytes that may be unpacked regardless of the ratio
_MEMBERS = 20_000_000
_PIECE = 2**20
_FORM = 1


def places_of(path: str | Path, data_dir: str | Path | None) -> list[Path]:
    """Candidate locations of a path: relative to the working directory, then to ``data_dir``.

    >>> [place.as_posix() for place in places_of("/faces", "/data")], len(places_of("faces", "/data"))
    (['/faces'], 2)
    """
    given = Path(path).expanduser()
    below = [Path(data_dir).expanduser().absolute() / given] if data_dir is not None else []
    return list(dict.fromkeys([given.absolute(), *below]))


def located(path: str | Path | None, data_dir: str | Path | None, key: str, more: str) -> Path:
    """The existing file or folder for a path. Raises UserError, ending with ``more``, if there is none."""
    if path is None:
        raise UserError(f"{key} is not given. {more}")
    places = places_of(path, data_dir)
    for place in places:
        if place.exists():
            return place
    raise UserError(f"{key}: no such file or folder: {', '.join(map(str, places))}. {more}")


def opened(
    path: str | Path | None, data_dir: str | Path | None, cache_dir: str | Path, more: str, a_file: bool = False
) -> Path:
    """The folder at data.path, for an archive the unpacked one; with ``a_file`` a plain file is accepted too."""
    place = located(path, data_dir, "data.path", more)
    if place.is_file() and is_archive(place):
        return unpacked(place, Cache(cache_dir))
    if place.is_dir() or a_file:
        return place
    raise UserError(f"data.path: {place} is neither a folder nor an archive. {more}")


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its extension.

    >>> is_archive(Path("fer2013.TAR.GZ")), is_archive(Path("fer2013.csv"))
    (True, False)
    """
    return path.name.lower().endswith(ARCHIVES)


def unpacked(path: Path, cache: Cache) -> Path:
    """The folder with an archive's images and lists, unpacked into the cache the first time.

    Folders that contain only one other folder are skipped over. Other files, links and nested archives are ignored and
    counted.

    Args:
        path: ``.zip``, ``.tar``, ``.tar.gz``, ``.tgz``, ``.tar.bz2``, ``.tar.xz`` or ``.csv.gz``.

    Raises:
        UserError: a damaged or encrypted archive, a member outside the target folder, or an archive that unpacks to
            more than 200 times its size or to more than the free disk space.
    """
    about = path.stat()
    key = {"form": _FORM, "content": _hash(path, about.st_size, about.st_mtime_ns)}
    folder = cache.entry("unpacked", key, partial(_unpack, path)) / "files"
    while inner := _only_folder(folder):
        folder = inner
    return folder


@kept
def _hash(path: Path, size: int, changed: int) -> str:
    """The file's hash, cached by size and time: a config refers to an archive several times, and it may be large."""
    return file_hash(path)


def _only_folder(folder: Path) -> Path | None:
    inside = list(folder.iterdir())
    if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in SPLIT_OF:
        return None
    deeper = list(inside[0].iterdir())
    return inside[0] if any(item.is_dir() or item.suffix.lower() in _LISTS for item in deeper) else None


def _unpack(path: Path, folder: Path) -> None:
    if not path.stat().st_size:
        raise UserError(f"data.path={path} is empty: writing or copying it was interrupted. Download it again.")
    target = folder / "files"
    target.mkdir()
    limit = min(max(_ALWAYS, _RATIO * path.stat().st_size), int(0.95 * shutil.disk_usage(folder).free))
    budget = _Budget(path, limit)
    ignored = 0
    try:
        for name, size, stream in _members(path):
            inside = _inside(path, name)
            if stream is None or not _wanted(inside):
                budget.spend(size)
                ignored += 1
                continue
            place = target / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "wb") as file:
                while piece := stream.read(_PIECE):
                    budget.spend(len(piece))
                    file.write(piece)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise UserError(f"data.path={path} is damaged, or not an archive: {error}. Download it again.") from error
    except (gzip.BadGzipFile, NotImplementedError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"data.path={path} cannot be unpacked: {error}. Download it again, or unpack it.") from error
    except RuntimeError as error:  # zipfile's error for an encrypted member
        raise UserError(f"data.path={path} cannot be unpacked: {error}. Unpack it, and name the folder.") from error
    if ignored:
        log.info("%s: %d members that are neither images nor lists are ignored.", path, ignored)


def _members(path: Path) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Each file's name, the bytes decompressed when skipping it, and its content; None if it is not a regular file."""
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for about in archive.infolist():
                if about.is_dir():
                    continue
                if (about.external_attr >> 16) & 0o170000 == 0o120000:  # a link
                    yield about.filename, 0, None
                elif _wanted(PurePosixPath(about.filename)):
                    with archive.open(about) as stream:
                        yield about.filename, 0, stream
                else:
                    yield about.filename, 0, io.BytesIO()
    elif path.name.lower().endswith(TARS):
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if not member.isdir():
                    yield member.name, max(0, member.size), archive.extractfile(member) if member.isreg() else None
    else:
        with gzip.open(path) as stream:
            yield path.name[: -len(".gz")], 0, stream  # type: ignore[misc]


def _inside(path: Path, name: str) -> PurePosixPath:
    """The member's path relative to the target folder."""
    inside = PurePosixPath(name.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts or "\0" in name or (inside.parts and ":" in inside.parts[0]):
        raise UserError(
            f"data.path={path} is refused: its member {name!r} would be written outside the folder it is unpacked to. "
            "Check where this file comes from."
        )
    return inside


def _wanted(inside: PurePosixPath) -> bool:
    junk = any(part.startswith(".") or part.lower() in LEFT_BY_SYSTEMS for part in inside.parts)
    return not junk and inside.suffix.lower() in (*ENDINGS, *_LISTS)


class _Budget:
    """Number of bytes that an archive may still unpack to."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit, self.left, self.members = path, limit, limit, 0

    def spend(self, count: int) -> None:
        self.left -= count
        self.members += 1
        if self.left < 0 or self.members > _MEMBERS:
            raise UserError(
                f"data.path={self.path} is refused: it unpacks to more than {self.limit / 2**30:.1f} GiB, which is "
                f"more than the free space on the cache's disk, or more than {_RATIO} times its own size. If you trust "
                "it, unpack it yourself and give the folder."
            )
