"""Published face data sets in their distributed layouts: RAF-DB, AffectNet, FER+ as folders."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.core.spelling import class_key
from emodissect.data.archives import opened
from emodissect.data.class_folders import FoundImage, find_images
from emodissect.data.ferplus import VOTED_ON, vote_annotations
from emodissect.data.image_files import ImageFiles
from emodissect.data.image_list import read_list
from emodissect.data.images import Annotations

log = logging.getLogger(__name__)

RAF_DB = ("Surprise", "Fear", "Disgust", "Happy", "Sad", "Angry", "Neutral")  # labels 1 to 7
AFFECT_NET = ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Angry", "Contempt")  # labels 0 to 7
FER_PLUS = ("Neutral", "Happy", "Surprise", "Sad", "Angry", "Disgust", "Fear", "Contempt")  # columns of votes

_AFFECT_NET_REST = {"8": "none", "9": "uncertain", "10": "no face"}
_FER_PLUS_FOLDERS = {"train": "FER2013Train", "val": "FER2013Valid", "test": "FER2013Test"}


class PublishedSet(ImageFiles):
    """A published data set in its distributed layout; subclasses find its images.

    Args:
        path: the folder, or an archive of it.
        cache_dir: root of the cache.
        data_dir: a relative ``path`` is also resolved in this folder.
        class_names: the classes to read, in the order of the labels; None for all.
        options: arguments of :class:`ImageFiles`.

    Raises:
        UserError: another layout.
    """

    classes: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        *,
        path: str | Path,
        cache_dir: str | Path,
        data_dir: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        more = "Name the folder of the data set, or an archive of it (docs/data.md)."
        root, names = opened(path, data_dir, cache_dir, more), class_names if class_names is not None else self.classes
        images = self.images_of(root, names)
        super().__init__(root=root, images=images, class_names=names, cache_dir=cache_dir, **options)

    @abstractmethod
    def images_of(self, root: Path, class_names: Sequence[str]) -> list[FoundImage]:
        """The images of these classes. Raises UserError for another layout."""


class RafDb(PublishedSet):
    """RAF-DB, basic emotions (Li et al. 2017): 12,271 training and 3,068 test faces in seven classes.

    Accepted: the official ``basic/`` (``EmoLabel/list_patition_label.txt`` next to ``Image/aligned`` or
    ``Image/original``), and folders ``train/1`` to ``train/7`` and ``test/1`` to ``test/7``. There is no validation
    split: it is split off train (``val_from``), so that the test split stays the published one.
    """

    classes = RAF_DB

    def images_of(self, root: Path, class_names: Sequence[str]) -> list[FoundImage]:
        lists = sorted(root.rglob("list_pa*tition_label.txt"))  # as it is spelt there
        if lists:
            images = _raf_db_list(lists[0])
        else:
            found = find_images(root).images or ()
            images = [FoundImage(i.split, _numbered(i.class_name, RAF_DB, 1), i.path) for i in found]
        if not images or any(image.split is None for image in images):
            raise UserError(
                f"{root} is not RAF-DB as it is distributed: EmoLabel/list_patition_label.txt next to Image/, or "
                "train/1 to train/7 and test/1 to test/7. For another layout use data=image_folder or data=image_list."
            )
        return _of_classes(images, class_names)


class AffectNet(PublishedSet):
    """AffectNet (Mollahosseini et al. 2017): faces from the web in eight classes.

    Accepted: the lists ``training.csv`` and ``validation.csv`` with their images; folders ``train_set`` and ``val_set``
    with ``images/`` and ``annotations/<name>_exp.npy``. The test split was never published: the published validation
    images are the test split here, as in the literature, and validation is split off train (``val_from``). Images
    labelled none, uncertain or no face are excluded and counted. Images are not cropped by ``face_x`` etc.
    """

    classes = AFFECT_NET

    def images_of(self, root: Path, class_names: Sequence[str]) -> list[FoundImage]:
        images = _affect_net_lists(root) or _affect_net_annotations(root)
        if not images:
            raise UserError(
                f"{root} is not AffectNet as it is distributed: training.csv and validation.csv next to the images, or "
                "train_set/ and val_set/ with images/ and annotations/. For class folders use data=image_folder."
            )
        rest = [image for image in images if image.class_name in _AFFECT_NET_REST.values()]
        if rest:
            log.info("%d of %d images are labelled none, uncertain or no face: excluded.", len(rest), len(images))
        images = [image for image in images if image.class_name not in _AFFECT_NET_REST.values()]
        return _of_classes(images, class_names)


class FerPlusFolders(PublishedSet):
    """FER+ as written by its authors' script: ``FER2013Train``, ``FER2013Valid``, ``FER2013Test`` with ``label.csv``.

    An image's label is the class with the most of its ten votes, in a tie the first in class order. Images on which
    unknown or not-a-face has more votes than every class are excluded and counted. The votes are annotations.
    """

    classes = FER_PLUS

    def images_of(self, root: Path, class_names: Sequence[str]) -> list[FoundImage]:
        holding = [place for place in (root, root / "data") if (place / "FER2013Train" / "label.csv").is_file()]
        if not holding:
            raise UserError(
                f"{root} is not FER+ as written by its script: FER2013Train/label.csv, FER2013Valid/label.csv and "
                "FER2013Test/label.csv. For fer2013new.csv with FER2013 use data=fer2013 data.ferplus=<file>."
            )
        rows = [row for split, name in _FER_PLUS_FOLDERS.items() for row in _ferplus_votes(holding[0] / name, split)]
        columns = [[class_key(name) for name in FER_PLUS].index(class_key(name)) for name in class_names]
        images, votes, left_out = [], [], 0
        for split, file, counts in rows:
            best = max(range(len(columns)), key=lambda place: counts[columns[place]])
            rest = max(counts[column] for column in range(len(counts)) if column not in columns)
            if counts[columns[best]] == 0 or counts[columns[best]] < rest:
                left_out += 1
                continue
            images.append(FoundImage(split, class_names[best], file))
            votes.append(counts)
        if left_out:
            log.info("%d of %d images have no class with the most votes: excluded.", left_out, len(rows))
        self.votes: Tensor = torch.tensor(votes, dtype=torch.float32)
        self._columns = columns
        return images

    def annotations(self) -> dict[str, Annotations]:
        """The share of votes for each class and each other answer, for every image."""
        return vote_annotations(self.votes, dict(zip(self.class_names, self._columns, strict=True)))


def _of_classes(images: Sequence[FoundImage], class_names: Sequence[str]) -> list[FoundImage]:
    wanted = {class_key(name) for name in class_names}
    kept = [image for image in images if class_key(image.class_name) in wanted]
    if len(kept) < len(images):
        left_out = len(images) - len(kept)
        log.info("%d of %d images have a class that is not in data.class_names: excluded.", left_out, len(images))
    return kept


def _numbered(label: str, names: Sequence[str], first: int) -> str:
    """The class name of a numeric label; other labels unchanged."""
    place = int(label) - first if label.isdecimal() else -1
    return names[place] if 0 <= place < len(names) else label


def _raf_db_list(file: Path) -> list[FoundImage]:
    table = read_list(file, {"path": None, "label": None, "split": None})
    base = file.parent.parent / "Image"
    folders = [(base / "aligned", "_aligned"), (base / "original", "")]
    folder, ending = next((entry for entry in folders if entry[0].is_dir()), folders[0])
    images = []
    for name, label in zip(table["path"], table["label"], strict=True):
        place = Path(name)
        split = "train" if name.startswith("train") else "test"
        images.append(FoundImage(split, _numbered(label, RAF_DB, 1), folder / f"{place.stem}{ending}{place.suffix}"))
    return images


def _affect_net_lists(root: Path) -> list[FoundImage]:
    images: list[FoundImage] = []
    for split, names in (("train", ("training.csv",)), ("test", ("validation.csv",))):
        file = next((found for name in names for found in sorted(root.rglob(name))), None)
        if file is None:
            return []
        table = read_list(file, {"path": None, "label": None, "split": None})
        first = str(table["path"].iloc[0]).replace("\\", "/")
        below = [folder for folder in (file.parent, root, *_folders_below(root)) if (folder / first).is_file()]
        base = below[0] if below else file.parent
        for name, label in zip(table["path"], table["label"], strict=True):
            known = _AFFECT_NET_REST.get(label) or _numbered(label, AFFECT_NET, 0)
            images.append(FoundImage(split, known, base / str(name).replace("\\", "/")))
    return images


def _affect_net_annotations(root: Path) -> list[FoundImage]:
    images: list[FoundImage] = []
    for split, names in (("train", ("train_set",)), ("test", ("val_set", "valid_set"))):
        folder = next((found for name in names for found in sorted(root.rglob(name)) if found.is_dir()), None)
        if folder is None:
            return []
        for file in sorted((folder / "images").iterdir()):
            label = folder / "annotations" / f"{file.stem}_exp.npy"
            try:
                number = str(int(np.load(label, allow_pickle=False)))
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f"{label} cannot be read: {error}. Every image needs its _exp.npy.") from error
            images.append(FoundImage(split, _AFFECT_NET_REST.get(number) or _numbered(number, AFFECT_NET, 0), file))
    return images


def _folders_below(root: Path) -> list[Path]:
    """Two levels of folders that may contain the images of a list."""
    first = [item for item in sorted(root.iterdir()) if item.is_dir()]
    return [*first, *(inner for item in first for inner in sorted(item.iterdir()) if inner.is_dir())]


def _ferplus_votes(folder: Path, split: str) -> list[tuple[str, Path, list[int]]]:
    """Each image's votes, in the order of ``ferplus.VOTED_ON``; a row of the file is: name, box, ten votes."""
    file = folder / "label.csv"
    if not file.is_file():
        raise UserError(f"{file} does not exist: FER+ has a label.csv in each of its three folders.")
    table = read_list(file, {"path": None, "label": None, "split": None}, further=None)
    votes = [name for name in table.columns if str(name).startswith("column ")]
    if len(votes) != len(VOTED_ON):
        raise UserError(
            f"{file}: a row has {len(votes) + 2} columns; the image's name, its box and ten votes are needed."
        )
    rows = []
    for number, (name, *counts) in enumerate(zip(table["path"], *(table[vote] for vote in votes), strict=True), 1):
        if not all(count.isdecimal() for count in counts):
            raise UserError(f"{file}, row {number}: a vote is not an integer.")
        rows.append((split, folder / name, [int(count) for count in counts]))
    return rows
