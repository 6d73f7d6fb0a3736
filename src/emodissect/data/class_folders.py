"""Folders of images by class: which file belongs to which split and class."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from emodissect.core.cache import file_hash

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "publictest"),
    "test": ("test", "testing", "privatetest"),
}


@dataclass(frozen=True)
class FoundImage:
    """An image file: its split (None where the folder has no splits), the name of its class folder, its path."""

    split: str | None
    folder: str
    path: Path


def find_images(root: Path) -> list[FoundImage]:
    """All image files below ``root/<split>/<class>`` or ``root/<class>``, in an order that never changes.

    Splits come in the order train, val, test, then by class folder, then by path, compared by characters. Hidden files
    and files of other kinds are passed over.
    """
    folders = {folder.name.lower(): folder for folder in sorted(root.iterdir()) if folder.is_dir()}
    found: list[FoundImage] = []
    for split, names in SPLIT_FOLDERS.items():
        for name in names:
            if name in folders:
                found += _below(folders[name], split)
    return found or _below(root, None)


def class_folder_names(root: Path) -> list[str]:
    """The names of the class folders that hold images, by the alphabet without regard to capitals."""
    return sorted({image.folder for image in find_images(root)}, key=lambda name: (name.lower(), name))


def content_hash(root: Path, files: Sequence[Path]) -> str:
    """SHA-256 over the relative paths and contents of the files, in their order."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        hashes = list(threads.map(file_hash, files, chunksize=64))
    listed = [(path.relative_to(root).as_posix(), digest) for path, digest in zip(files, hashes, strict=True)]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def stratified_parts(
    labels: Int64[Tensor, " image"], shares: Sequence[float], seed: int
) -> list[Int64[Tensor, " part"]]:
    """Rows of each part, ascending: every class is cut in the given shares, to the nearest image, in a seeded order."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(shares)
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in labels.unique():
        rows = torch.nonzero(labels == label).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        ends = [round(sum(shares[: part + 1]) / total * len(rows)) for part in range(len(shares))]
        for part, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            parts[part].append(rows[start:end])
    return [torch.cat(rows).sort().values if rows else torch.empty(0, dtype=torch.int64) for rows in parts]


def _below(folder: Path, split: str | None) -> list[FoundImage]:
    return [
        FoundImage(split, class_folder.name, path)
        for class_folder in sorted(folder.iterdir())
        if class_folder.is_dir() and not class_folder.name.startswith(".")
        for path in sorted(class_folder.rglob("*"))
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".")
    ]
