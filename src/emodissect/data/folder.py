"""A user's own images, in one folder a class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emodissect.core.errors import UserError
from emodissect.data.class_folders import FoundImages, find_images, require_classes
from emodissect.data.image_files import ImageFiles, matched_classes

log = logging.getLogger(__name__)

FORMS = (
    "data.path takes a folder with train/<class>/, val/<class>/ and test/<class>/, or only some of these, or only "
    "<class>/ folders (docs/data.md)."
)


class ImageFolder(ImageFiles):
    """Images in class folders, with or without split folders above them.

    Args:
        path: the folder.
        data_dir: where a relative ``path`` is looked for as well.
        class_names: names of the class folders (capitals do not matter) in the order of the labels; None takes the
            folders' names, alphabetically.
        options: what every :class:`ImageFiles` takes.

    Raises:
        UserError: no such folder, no images, one class only, a folder that is no class, an unknown option.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        data_dir: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        if path is None:
            raise UserError(f"data.path is not given. {FORMS}")
        root, found = _found(path, data_dir)
        self.notes = found.notes
        names = tuple(found.folders if class_names is None else class_names)
        matched_classes(root, found.folders, names)
        super().__init__(root=root, images=found.images, class_names=names, **options)
        for note in self.notes:
            log.warning("%s: %s", root, note)


def class_folders(path: str, data_dir: str | None = None) -> list[str]:
    """The class names that the folder itself gives; what ``${class_folders:path,data_dir}`` in a YAML stands for.

    Raises:
        UserError: no such folder, no images in class folders below it, or one class only.
    """
    return _found(path, data_dir)[1].folders


def _found(path: str | Path, data_dir: str | Path | None) -> tuple[Path, FoundImages]:
    root = _root(Path(path).expanduser(), data_dir)
    found = find_images(root)
    if not found.images:
        raise UserError(f"{root} holds no image files in class folders. {FORMS}")
    require_classes(root, found)
    return root, found


def _root(given: Path, data_dir: str | Path | None) -> Path:
    places = [given.absolute(), *([Path(data_dir).expanduser().absolute() / given] if data_dir is not None else [])]
    for place in places:
        if place.is_dir():
            return place
    looked = " nor ".join(str(place) for place in dict.fromkeys(places))
    raise UserError(f"data.path: there is no folder {looked}. {FORMS}")
