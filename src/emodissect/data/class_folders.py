"""Class folders: finding image files with their split and class."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from emodissect.core.cache import file_hash
from emodissect.core.errors import UserError, listed
from emodissect.data.decoding import ENDINGS

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "publictest"),
    "test": ("test", "testing", "privatetest"),
}
SPLIT_OF = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}

LEFT_BY_SYSTEMS = ("__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information")
"""Folders that operating systems and NAS devices create; they contain copies and thumbnails."""

_DEPTH = 5  # levels searched below data.path to suggest the right folder


@dataclass(frozen=True)
class FoundImage:
    """An image file: its split (None without splits), class, path, and the subject or sequence if known."""

    split: str | None
    class_name: str
    path: Path
    group: str | None = None


@dataclass(frozen=True)
class FoundImages:
    """The image files of a folder.

    Attributes:
        images: in a fixed order: split (train, val, test), class folder, path, compared by characters.
        notes: sentences on what was ignored or read together, with counts.
    """

    images: tuple[FoundImage, ...]
    notes: tuple[str, ...]

    @property
    def folders(self) -> list[str]:
        """The names of class folders with images, alphabetically; of names that differ only by case, the first.

        >>> FoundImages((FoundImage(None, "b", Path("b/0.png")), FoundImage(None, "A", Path("A/0.png"))), ()).folders
        ['A', 'b']
        """
        names = sorted({image.class_name for image in self.images}, key=lambda name: (name.lower(), name))
        return list({name.lower(): name for name in reversed(names)}.values())[::-1]


def find_images(root: Path) -> FoundImages:
    """All image files below ``root/<split>/<class>`` or ``root/<class>``.

    Links to folders are followed. Hidden files and folders, system folders (`__MACOSX`, `@eaDir`) and other kinds of
    files are ignored. Dangling links, pipes and unreadable files are included, so that reading reports them.

    Raises:
        UserError: a folder that cannot be listed.
    """
    folders = _subfolders(root)
    by_split = {
        split: [folder for folder in folders if folder.name.lower() in names] for split, names in SPLIT_FOLDERS.items()
    }
    found = _Finder(root)
    for split, given in by_split.items():
        counts = {folder: found.add(folder, split) for folder in given}
        if len(counts) > 1:
            listed = ", ".join(f"{folder.name}/ ({count:,} images)" for folder, count in counts.items())
            found.notes.append(f"Read together as {split}: {listed}.")
    if found.images:
        found.note_unread([folder for folder in folders if folder.name.lower() not in SPLIT_OF])
    else:
        found = _Finder(root)
        found.add(root, None)
    return FoundImages(tuple(found.images), (*found.notes, *found.last_notes()))


def deeper_folders(root: Path) -> list[Path]:
    """The nearest folders below ``root`` that look like a data set: with split folders, or at least two classes."""
    level = _subfolders(root)
    for _ in range(_DEPTH):
        meant = [folder for folder in level if _has_splits(folder)]
        meant = meant or [folder for folder in level if sum(map(_holds_images, _subfolders(folder))) > 1]
        if meant:
            return meant
        level = [inner for folder in level for inner in _subfolders(folder)]
    return []


def require_classes(root: Path, found: FoundImages) -> None:
    """Raise UserError if the path seems incomplete: only one class folder, or splits below the class folders."""
    folders = found.folders
    no_split = bool(found.images) and found.images[0].split is None
    deeper = deeper_folders(root) if len(folders) == 1 or no_split else []
    if no_split and len(folders) > 1:
        deeper = [folder for folder in deeper if _has_splits(folder)]
    if len(folders) == 1:
        what = f"{root} has images of only one class, '{folders[0]}'; two or more are needed."
    elif deeper:
        what = f"{root} has no class folders but whole data sets: {', '.join(str(d) for d in deeper[:3])}."
    else:
        return
    advice = f" Did you mean data.path={deeper[0]}?" if deeper else " Class folders must be directly in data.path or "
    advice += "" if deeper else "in its train/, val/ and test/."
    raise UserError(what + advice)


def content_hash(root: Path, files: Sequence[Path]) -> str:
    """SHA-256 of the relative paths and contents of the files, in order; of an unreadable file only the path."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        hashes = list(threads.map(_hash_if_readable, files, chunksize=64))
    listed = [(path.relative_to(root).as_posix(), digest) for path, digest in zip(files, hashes, strict=True)]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


class _Finder:
    """Collects images, and counts what it ignores."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: list[FoundImage] = []
        self.notes: list[str] = []
        self._other_kinds: Counter[str] = Counter()
        self._left_by_systems: Counter[str] = Counter()
        self._empty: list[str] = []

    def add(self, folder: Path, split: str | None) -> int:
        """Add the images of a folder's class folders; returns their number."""
        before = len(self.images)
        for class_folder in sorted(folder.iterdir()):
            if not class_folder.is_dir():
                continue
            if _passed_over(class_folder.name):
                self._left_by_systems[class_folder.name] += not class_folder.name.startswith(".")
                continue
            files = sorted(self._images_below(class_folder))
            self.images += [FoundImage(split, class_folder.name, path) for path in files]
            if not files:
                self._empty.append(class_folder.relative_to(self.root).as_posix())
        loose = sum(_is_image(item.name) for item in folder.iterdir() if not item.is_dir())
        if loose and len(self.images) > before:
            self.notes.append(f"Outside class folders, without a label: {loose:,} images in {folder}.")
        elif loose and split is not None:
            self.notes.append(f"{folder.name}/ has no class folders: its {loose:,} images have no label.")
        return len(self.images) - before

    def note_unread(self, folders: Sequence[Path]) -> None:
        """Note folders next to the split folders that are not read."""
        counts = {folder.name: sum(1 for _ in self._images_below(folder)) for folder in folders}
        listed = ", ".join(f"{name}/ ({count:,} images)" for name, count in counts.items() if count)
        if listed:
            self.notes.append(f"Next to the split folders, not read: {listed}.")

    def last_notes(self) -> list[str]:
        """Notes on what was ignored."""
        notes = []
        if self._empty:
            notes.append(f"Without images: {len(self._empty)} folders ({listed(self._empty, 5)}).")
        if names := [name for name, count in self._left_by_systems.items() if count]:
            notes.append(f"System folders, not read: {', '.join(f'{name}/' for name in names)}.")
        if self._other_kinds:
            kinds = ", ".join(f"{kind or 'no extension'} {count:,}" for kind, count in self._other_kinds.most_common(5))
            notes.append(f"Files of other kinds, not read: {kinds}.")
        return notes

    def _images_below(self, folder: Path) -> Iterator[Path]:
        seen: set[tuple[int, int]] = set()
        for place, names, files in os.walk(folder, followlinks=True, onerror=_unlisted):
            about = os.stat(place)
            if (about.st_dev, about.st_ino) in seen:  # a link that leads back up
                names.clear()
                continue
            seen.add((about.st_dev, about.st_ino))
            self._left_by_systems.update(name for name in names if name.lower() in LEFT_BY_SYSTEMS)
            names[:] = [name for name in names if not _passed_over(name)]
            for name in files:
                if _is_image(name):
                    yield Path(place, name)
                elif not name.startswith(".") and name.lower() not in ("thumbs.db", "desktop.ini"):
                    self._other_kinds[Path(name).suffix.lower()] += 1


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [item for item in sorted(folder.iterdir()) if item.is_dir() and not _passed_over(item.name)]
    except OSError as error:
        raise _unlistable(error) from error


def _has_splits(folder: Path) -> bool:
    splits = [inner for inner in _subfolders(folder) if inner.name.lower() in SPLIT_OF]
    return any(_holds_images(class_folder) for split in splits for class_folder in _subfolders(split))


def _holds_images(folder: Path) -> bool:
    return any(_is_image(item.name) and not item.is_dir() for item in folder.iterdir())


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def _unlisted(error: OSError) -> None:
    raise _unlistable(error) from error


def _unlistable(error: OSError) -> UserError:
    return UserError(
        f"data.path: the folder {error.filename} cannot be listed ({error.strerror}). Give yourself permission to read "
        "it, or move it away."
    )


def _hash_if_readable(path: Path) -> str:
    try:
        return file_hash(path) if path.is_file() else ""
    except OSError:
        return ""
