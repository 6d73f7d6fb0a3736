"""A user's own images, in one folder a class."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from emodissect.core.errors import UserError, nearest
from emodissect.core.fingerprint import source_hash
from emodissect.data.class_folders import FoundImage, content_hash, find_images, require_classes, stratified_parts
from emodissect.data.datamodule import FaceDataModule
from emodissect.data.decoding import FITS, read_images
from emodissect.data.images import ImageSet, Splits

log = logging.getLogger(__name__)

FORMS = (
    "data.path takes a folder with train/<class>/, val/<class>/ and test/<class>/, or only some of these, or only "
    "<class>/ folders (docs/data.md)."
)
DEFAULT_SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


class ImageFolder(FaceDataModule):
    """Images of any size in class folders, decoded once to uint8 of one size and kept in the cache.

    Splits that the folder lacks are cut out of those it has, class by class in a seeded order, and a log line says so:
    with classes alone all three; with train and test, val is half of test; with train and val, test is half of val;
    with train alone, all three are cut out of it. Image ids are places in the order split, class folder, path.

    Args:
        path: the folder.
        data_dir: where a relative ``path`` is looked for as well.
        class_names: names of the class folders (capitals do not matter) in the order of the labels; None takes the
            folders' names alphabetically.
        size: pixels a side.
        channels: 1 for grey, 3 for RGB.
        fit: ``crop`` keeps proportions and cuts the middle out; ``stretch`` changes them.
        shares: of train, val and test where all three are cut out of one.
        split_seed: of that cutting.
        skip_unreadable: leave files out that cannot be decoded; otherwise they are an error that names them.
        value_range: what is white in grey files of 16 or more bits; None takes the range of their type.
        loading: what every :class:`FaceDataModule` takes.

    Raises:
        UserError: no such folder, no images, a folder that is no class, a class or a split without images, files that
            cannot be read, an unknown option.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        data_dir: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        size: int = 48,
        channels: int = 1,
        fit: str = "crop",
        shares: Mapping[str, float] = DEFAULT_SHARES,
        split_seed: int = 0,
        skip_unreadable: bool = False,
        value_range: float | None = None,
        **loading: Any,
    ) -> None:
        if path is None:
            raise UserError(f"data.path is not given. {FORMS}")
        self.path = _root(Path(path).expanduser(), data_dir)
        found = find_images(self.path)
        self._found = found.images
        if not self._found:
            raise UserError(f"{self.path} holds no image files in class folders. {FORMS}")
        require_classes(self.path, found)
        self.notes = found.notes
        folders = found.folders
        names = tuple(folders if class_names is None else class_names)
        super().__init__(class_names=names, **loading)
        self._label_of = _matched(self.path, folders, names)
        if channels not in (1, 3):
            raise UserError(f"data.channels={channels}: images are kept grey (1) or RGB (3).")
        if size < 1:
            raise UserError(f"data.size={size}: an image has at least one pixel a side.")
        if value_range is not None and not value_range > 0:
            raise UserError(f"data.value_range={value_range}: give the value of white, above 0, or null.")
        if fit not in FITS:
            raise UserError(f"data.fit={fit} is unknown. {nearest(fit, FITS)}")
        if set(shares) != set(DEFAULT_SHARES) or min(shares.values()) <= 0:
            raise UserError(f"data.shares={dict(shares)}: a share above 0 of each of train, val and test is needed.")
        self.size = size
        self.channels = channels
        self.fit = fit
        self.shares = [shares[name] for name in DEFAULT_SHARES]
        self.split_seed = split_seed
        self.skip_unreadable = skip_unreadable
        self.value_range = value_range
        self.files = tuple(image.path.relative_to(self.path).as_posix() for image in self._found)

    def read(self) -> Splits:
        """The three splits, from the cache where the same files were read before."""
        paths = [image.path for image in self._found]
        key = {
            "read_by": source_hash(read_images),
            "content": content_hash(self.path, paths),
            "size": self.size,
            "channels": self.channels,
            "fit": self.fit,
            "skip_unreadable": self.skip_unreadable,
            "value_range": self.value_range,
        }
        write = partial(_write, paths, self.size, self.channels, self.fit, self.skip_unreadable, self.value_range)
        stored = self.cache.value("image_folder", key, write, _read)
        for note in self.notes:
            log.warning("%s: %s", self.path, note)
        labels = torch.tensor([self._label_of[image.folder.lower()] for image in self._found])
        rows = torch.nonzero(stored["readable"]).flatten()
        if len(rows) < len(paths):
            left_out = self.origin(torch.nonzero(~stored["readable"]).flatten())
            log.warning(
                "data.skip_unreadable: %d of %d files are left out: %s%s.",
                *(len(left_out), len(paths), ", ".join(left_out[:3]), ", …" if len(left_out) > 3 else ""),
            )
        whole = ImageSet(stored["images"][rows], labels[rows], rows)
        self._check_classes(whole.labels)
        parts = self._parts([self._found[row] for row in rows.tolist()], whole.labels)
        for name, part in zip(DEFAULT_SHARES, parts, strict=True):
            if not len(part):
                raise UserError(
                    f"{self.path}: its {len(whole):,} images are too few for three splits: none is left for {name}. "
                    "Give more images, or larger data.shares of the smaller splits."
                )
        train, val, test = (whole.subset(part) for part in parts)
        return Splits(train, val, test, self.class_names)

    def origin(self, ids: Tensor) -> list[str]:
        """The path of each image below the folder."""
        return [self.files[i] for i in ids.tolist()]

    def _parts(self, found: Sequence[FoundImage], labels: Tensor) -> list[Tensor]:
        """Rows of train, val and test; splits that the folder lacks are cut out of those that it has."""
        by_split = {
            name: torch.tensor([row for row, image in enumerate(found) if image.split == name], dtype=torch.int64)
            for name in DEFAULT_SHARES
        }
        missing = [name for name in DEFAULT_SHARES if not len(by_split[name])]
        if not missing:
            return list(by_split.values())
        if missing == ["val"] or missing == ["test"]:
            source = "test" if missing == ["val"] else "val"
            rows = by_split[source]
            val, test = stratified_parts(labels[rows], (0.5, 0.5), self.split_seed)
            parts, halved = [by_split["train"], rows[val], rows[test]], f"its {source} folder was halved"
        elif missing in (["val", "test"], list(DEFAULT_SHARES)):
            rows = torch.arange(len(found))
            parts = [rows[part] for part in stratified_parts(labels, self.shares, self.split_seed)]
            halved = "all images were split"
        else:
            raise UserError(f"{self.path} holds no images under train/. {FORMS}")
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in zip(DEFAULT_SHARES, parts, strict=True))
        log.info("%s has no %s: %s, class by class, seed %d: %s.", self.path, " and no ".join(missing), halved,
                 self.split_seed, sizes)  # fmt: skip
        return parts

    def _check_classes(self, labels: Tensor) -> None:
        counts = torch.bincount(labels, minlength=len(self.class_names))
        empty = [name for name, count in zip(self.class_names, counts.tolist(), strict=True) if not count]
        if empty:
            folders = sorted({image.folder for image in self._found})
            raise UserError(f"{self.path} holds no image of '{empty[0]}'. {nearest(empty[0], folders)}")


def class_folders(path: str, data_dir: str | None = None) -> list[str]:
    """The class names that the folder itself gives; what ``${class_folders:path,data_dir}`` in a YAML stands for.

    Raises:
        UserError: no such folder, or no images in class folders below it.
    """
    root = _root(Path(path).expanduser(), data_dir)
    found = find_images(root)
    if not found.images:
        raise UserError(f"{root} holds no image files in class folders. {FORMS}")
    require_classes(root, found)
    return found.folders


def _root(given: Path, data_dir: str | Path | None) -> Path:
    places = [given.absolute(), *([Path(data_dir).expanduser().absolute() / given] if data_dir is not None else [])]
    for place in places:
        if place.is_dir():
            return place
    looked = " nor ".join(str(place) for place in dict.fromkeys(places))
    raise UserError(f"data.path: there is no folder {looked}. {FORMS}")


def _matched(path: Path, folders: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """The label of each class folder, by its name in small letters."""
    if len({name.lower() for name in names}) != len(names):
        raise UserError(f"data.class_names={list(names)}: a name stands there twice.")
    lowered = {name.lower(): label for label, name in enumerate(names)}
    for folder in folders:
        if folder.lower() not in lowered:
            raise UserError(
                f"{path} has a folder '{folder}', which is none of data.class_names. {nearest(folder, names)} "
                "data.class_names=null takes the folders' names."
            )
    return lowered


def _write(
    paths: Sequence[Path],
    size: int,
    channels: int,
    fit: str,
    skip_unreadable: bool,
    value_range: float | None,
    folder: Path,
) -> None:
    images, readable = read_images(paths, size, channels, fit, skip_unreadable, value_range)
    save_file({"images": images, "readable": readable}, folder / "images.safetensors")
    (folder / "files.json").write_text(json.dumps([str(path) for path in paths]))


def _read(folder: Path) -> dict[str, Tensor]:
    held = load_file(folder / "images.safetensors")
    return {name: held[name] for name in ("images", "readable")}
