"""A user's own images, in one folder per class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emodissect.core.cache import user_cache_dir
from emodissect.core.errors import UserError
from emodissect.data.archives import opened
from emodissect.data.class_folders import FoundImages, find_images, require_classes
from emodissect.data.image_files import ImageFiles, matched_classes

log = logging.getLogger(__name__)

FORMS = (
    "data.path accepts a folder with train/<class>/, val/<class>/ and test/<class>/, or only some of these, or only "
    "<class>/ folders, or a .zip or .tar.gz of one (docs/data.md)."
)


class ImageFolder(ImageFiles):
    """Images in class folders, with or without split folders above them.

    Args:
        path: the folder, or an archive of it.
        cache_dir: root of the cache; archives are unpacked there.
        data_dir: a relative ``path`` is also resolved in this folder.
        class_names: names of the class folders (case-insensitive) in the order of the labels; None: the folders'
            names, alphabetically.
        options: arguments of :class:`ImageFiles`.

    Raises:
        UserError: no such folder, no images, only one class, a folder that is not a class, an unknown option.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        cache_dir: str | Path,
        data_dir: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        root, found = _found(path, data_dir, cache_dir)
        self.notes = found.notes
        names = tuple(found.folders if class_names is None else class_names)
        matched_classes(root, found.folders, names)
        super().__init__(root=root, images=found.images, class_names=names, cache_dir=cache_dir, **options)
        for note in self.notes:
            log.warning("%s: %s", root, note)


def class_folders(path: str, data_dir: str | None = None, cache_dir: str | None = None) -> list[str]:
    """The names of a folder's class folders; ``${class_folders:path,data_dir,cache_dir}`` in YAML.

    Raises:
        UserError: no such folder, no images in class folders, or only one class.
    """
    return _found(path, data_dir, cache_dir or user_cache_dir())[1].folders


def _found(path: str | Path, data_dir: str | Path | None, cache_dir: str | Path) -> tuple[Path, FoundImages]:
    root = opened(path, data_dir, cache_dir, FORMS)
    found = find_images(root)
    if not found.images:
        raise UserError(f"{root} has no image files in class folders. {FORMS}")
    require_classes(root, found)
    return root, found
