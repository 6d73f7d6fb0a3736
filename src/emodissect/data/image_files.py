"""Labelled image files: decoded once, cached, and split without separating groups."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emodissect.core.errors import UserError, listed, nearest
from emodissect.core.fingerprint import source_hash
from emodissect.core.spelling import class_key
from emodissect.data.class_folders import FoundImage, content_hash
from emodissect.data.datamodule import SPLITS, FaceDataModule
from emodissect.data.decoding import FITS, decode, read_images
from emodissect.data.images import Annotations, ImageSet, Splits
from emodissect.data.parts import grouped_parts, stratified_parts
from emodissect.data.stored_images import ImageWriter, StoredImages

log = logging.getLogger(__name__)

DEFAULT_SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


class ImageFiles(FaceDataModule):
    """Image files of any size, decoded once to uint8 of one size and cached. Subclasses find the files.

    Splits that the source lacks are made from the existing ones, class by class in a seeded order, with a log message:
    without splits, all three are made; with train and test, val is half of test (or a share of train, `val_from`); with
    train and val, test is half of val; with only train, all three are made from it. Image ids are positions in the
    order of the files.

    Args:
        root: folder that the files' names are relative to.
        images: the files.
        class_names: in the order of the labels; spellings of one emotion are equivalent.
        size: side in pixels.
        channels: 1 for grey, 3 for RGB.
        fit: ``crop`` keeps the aspect ratio and crops the centre; ``stretch`` changes it.
        shares: of train, val and test, if all three are made from one.
        split_seed: seed of these splits.
        split_by: a regular expression on a file's name; files with the same match (of its first group, if it has one)
            are of one subject or sequence and stay in one split. None splits file by file.
        val_from: what a missing val is split off: ``test`` or ``train``.
        skip_unreadable: skip files that cannot be decoded; otherwise they raise an error that lists them.
        value_range: value of white in grey files of 16 or more bits; None: the maximum of their type.
        in_memory_gib: larger data sets stay on disk and are read batch by batch.
        loading: arguments of :class:`FaceDataModule`.

    Raises:
        UserError: a class or a split without images, files that cannot be read, an unknown option.
    """

    def __init__(
        self,
        *,
        root: Path,
        images: Sequence[FoundImage],
        class_names: Sequence[str],
        size: int = 48,
        channels: int = 1,
        fit: str = "crop",
        shares: Mapping[str, float] = DEFAULT_SHARES,
        split_seed: int = 0,
        split_by: str | None = None,
        val_from: str = "test",
        skip_unreadable: bool = False,
        value_range: float | None = None,
        in_memory_gib: float = 1.0,
        **loading: Any,
    ) -> None:
        super().__init__(class_names=class_names, **loading)
        if channels not in (1, 3):
            raise UserError(f"data.channels={channels}: must be 1 (grey) or 3 (RGB).")
        if size < 1:
            raise UserError(f"data.size={size}: must be an integer >= 1, the side in pixels.")
        if value_range is not None and not value_range > 0:
            raise UserError(f"data.value_range={value_range}: give the value of white, above 0, or null.")
        if fit not in FITS:
            raise UserError(f"data.fit={fit} is unknown. {nearest(fit, FITS)}")
        if val_from not in ("test", "train"):
            raise UserError(f"data.val_from={val_from} is unknown. {nearest(val_from, ('test', 'train'))}")
        if set(shares) != set(DEFAULT_SHARES) or min(shares.values()) <= 0:
            raise UserError(f"data.shares={dict(shares)}: a share above 0 is needed for each of train, val and test.")
        self.root = root
        self.found = tuple(images)
        self.files = tuple(_relative(image.path, root) for image in self.found)
        self.labels = torch.tensor([_label_of(self.class_names, root)[class_key(i.class_name)] for i in self.found])
        self.groups = _groups(self.found, self.files, split_by)
        self.size = size
        self.channels = channels
        self.fit = fit
        self.shares = [shares[name] for name in DEFAULT_SHARES]
        self.split_seed = split_seed
        self.split_by = split_by
        self.val_from = val_from
        self.skip_unreadable = skip_unreadable
        self.value_range = value_range
        self.in_memory = in_memory_gib * 2**30

    def read(self) -> Splits:
        """The three splits, from the cache if the same files were read before."""
        paths = [image.path for image in self.found]
        key = {
            "read_by": source_hash(decode),
            "content": content_hash(self.root, paths),
            "size": self.size,
            "channels": self.channels,
            "fit": self.fit,
            "skip_unreadable": self.skip_unreadable,
            "value_range": self.value_range,
        }
        stored, readable = self.cache.value("image_files", key, partial(self._write, paths), _read)
        rows = torch.nonzero(readable).flatten()
        if len(rows) < len(paths):
            left_out = self.origin(torch.nonzero(~readable).flatten())
            log.warning(
                "data.skip_unreadable: %d of %d files are skipped: %s.",
                *(len(left_out), len(paths), listed(left_out, 3)),
            )
        large = stored.shape.numel() > self.in_memory
        if large:
            log.info("Images stay on disk: %s, %.1f GiB.", stored, stored.shape.numel() / 2**30)
        whole = ImageSet(stored if large else stored[:], self.labels, torch.arange(len(paths)), self.annotations())
        whole = whole.subset(rows)
        self._require_classes(whole.labels)
        parts = self._parts(rows, whole.labels)
        for name, part in zip(DEFAULT_SHARES, parts, strict=True):
            if not len(part):
                raise UserError(
                    f"{self.root}: its {len(whole):,} images are too few for three splits: none is left for {name}. "
                    "Give more images, or larger data.shares of the smaller splits."
                )
        train, val, test = (whole.subset(part) for part in parts)
        return Splits(train, val, test, self.class_names)

    def annotations(self) -> dict[str, Annotations]:
        """Further annotations of the files, one row per file; none by default."""
        return {}

    def origin(self, ids: Tensor) -> list[str]:
        """The path of each image relative to the folder."""
        return [self.files[i] for i in ids.tolist()]

    def _write(self, paths: Sequence[Path], folder: Path) -> None:
        shape = (self.channels, self.size, self.size)
        needed, free = len(paths) * int(np.prod(shape)), shutil.disk_usage(folder).free
        if needed > 0.95 * free:
            raise UserError(
                f"{len(paths):,} images of {self.channels} x {self.size} x {self.size} take {needed / 2**30:.1f} GiB; "
                f"{free / 2**30:.1f} GiB are free on the cache's disk, {self.cache.root}. Give a smaller "
                "data.size, data.channels=1, or another paths.cache_dir."
            )
        readable = np.ones(len(paths), dtype=bool)
        images = read_images(paths, self.size, self.channels, self.fit, self.value_range, self.skip_unreadable)
        with ImageWriter(folder / "images.npy", shape, len(paths)) as writer:
            for row, image in enumerate(images):
                writer.add(image)
                readable[row] = image is not None
        np.save(folder / "readable.npy", readable)
        (folder / "files.json").write_text(json.dumps([str(path) for path in paths]), encoding="utf-8")

    def _parts(self, rows: Tensor, labels: Tensor) -> list[Tensor]:
        """Indices into ``rows`` of train, val and test; missing splits are made from the existing ones."""
        found = [self.found[row] for row in rows.tolist()]
        groups = None if self.groups is None else [self.groups[row] for row in rows.tolist()]
        given = {
            name: torch.tensor([row for row, image in enumerate(found) if image.split == name], dtype=torch.int64)
            for name in SPLITS
        }
        missing = [name for name in SPLITS if not len(given[name])]

        def cut(of: Tensor, shares: Sequence[float]) -> list[Tensor]:
            if groups is None:
                return [of[part] for part in stratified_parts(labels[of], shares, self.split_seed)]
            own = [groups[row] for row in of.tolist()]
            return [of[part] for part in grouped_parts(labels[of], own, shares, self.split_seed)]

        train, val, test = given.values()
        if not missing:
            parts = [train, val, test]
        elif missing == ["val"] and self.val_from == "train":
            kept, val = cut(train, (self.shares[0], self.shares[1]))
            parts, how = [kept, val, test], "it was split off train"
        elif missing == ["val"] or missing == ["test"]:
            source = "test" if missing == ["val"] else "val"
            parts, how = [train, *cut(given[source], (0.5, 0.5))], f"its {source} images were halved"
        elif missing in (["val", "test"], list(SPLITS)):
            parts, how = cut(torch.arange(len(found)), self.shares), "all images were split"
        else:
            raise UserError(
                f"{self.root} has no training images. Name the folder train/, or give only class folders "
                "(docs/data.md)."
            )
        if missing:
            sizes = ", ".join(f"{len(part):,} {name}" for name, part in zip(SPLITS, parts, strict=True))
            whole = "" if groups is None else f", {len(set(groups)):,} groups kept together"
            log.info(
                "%s has no %s: %s, class by class%s, seed %d: %s.",
                *(self.root, " and no ".join(missing), how, whole, self.split_seed, sizes),
            )
        if groups is not None:
            self._report_leaks(parts, groups)
        return parts

    def _report_leaks(self, parts: Sequence[Tensor], groups: Sequence[str]) -> None:
        """Warn of groups that are in several of the source's own splits."""
        sides = [{groups[row] for row in part.tolist()} for part in parts]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            if shared := sides[one] & sides[other]:
                log.warning(
                    "%d of %d groups of data.split_by=%s are in both %s and %s, e.g. %s, so both may have "
                    "near-duplicates of the same images. These splits are the source's own.",
                    *(len(shared), len(set(groups)), self.split_by, SPLITS[one], SPLITS[other], min(shared)),
                )

    def _require_classes(self, labels: Tensor) -> None:
        counts = torch.bincount(labels, minlength=len(self.class_names))
        empty = [name for name, count in zip(self.class_names, counts.tolist(), strict=True) if not count]
        if empty:
            given = sorted({image.class_name for image in self.found})
            raise UserError(f"{self.root} has no image of '{empty[0]}'. {nearest(empty[0], given)}")


def _read(folder: Path) -> tuple[StoredImages, Tensor]:
    return StoredImages(folder / "images.npy"), torch.from_numpy(np.load(folder / "readable.npy"))


def matched_classes(source: Path, given: Sequence[str], class_names: Sequence[str]) -> None:
    """Raise UserError if an image's class is not in ``class_names``, or a name appears twice."""
    known = _label_of(class_names, source)
    for name in given:
        if class_key(name) not in known:
            raise UserError(
                f"{source} has a class '{name}', which is not in data.class_names. {nearest(name, class_names)} "
                "Use data.class_names=null for the classes' own names."
            )


def _label_of(class_names: Sequence[str], source: Path) -> dict[str, int]:
    labels = {class_key(name): label for label, name in enumerate(class_names)}
    if len(labels) != len(class_names):
        raise UserError(f"data.class_names={list(class_names)} of {source}: a name appears twice.")
    return labels


def _groups(found: Sequence[FoundImage], files: Sequence[str], split_by: str | None) -> list[str] | None:
    """The group of each file: the source's, else the match of the expression in its name."""
    if split_by is None:
        return None
    if all(image.group is not None for image in found):
        return [str(image.group) for image in found]
    try:
        pattern = re.compile(split_by)
    except re.error as error:
        raise UserError(f"data.split_by={split_by} is not a regular expression: {error}.") from error
    matches = [pattern.search(name) for name in files]
    unmatched = [name for name, match in zip(files, matches, strict=True) if match is None]
    if unmatched:
        raise UserError(
            f"data.split_by={split_by} matches {len(files) - len(unmatched):,} of {len(files):,} file names. It does "
            f"not match {', '.join(unmatched[:3])}. Give an expression that finds the subject or sequence in every "
            r"name, e.g. 'S\d+' or '([^/_]+)_[^/]*$'."
        )
    return [match[match.re.groups and 1] or match[0] for match in matches if match is not None]


def _relative(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:  # a list may name files anywhere
        return path.as_posix()
