"""FER2013 (Goodfellow et al. 2013, arXiv:1307.0414): 35,887 grey faces of 48 x 48 pixels in seven classes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from emodissect.core.cache import file_hash
from emodissect.core.errors import UserError, nearest
from emodissect.core.fingerprint import source_hash
from emodissect.core.tensor_files import save_tensors
from emodissect.data.archives import is_archive, located, unpacked
from emodissect.data.class_folders import content_hash, find_images
from emodissect.data.datamodule import FaceDataModule
from emodissect.data.fer2013_files import CLASS_NAMES, SIDE, FerRows, read_csv, read_folders, read_npz
from emodissect.data.ferplus import majority, read_votes, vote_annotations
from emodissect.data.images import ImageSet, Splits

log = logging.getLogger(__name__)

# scheme -> usages that are train, val and test; the second scheme is that of Khaireddin & Chen 2021
SPLIT_SCHEMES = {
    "standard": ("Training", "PublicTest", "PrivateTest"),
    "khaireddin2021": ("Training", "PrivateTest", "PublicTest"),
}
_NAMES = ("fer2013.csv", "icml_face_data.csv", "fer2013.npz", "fer2013/fer2013.csv")
_USAGE = {"Training": 0, "PublicTest": 1, "PrivateTest": 2}
_SIZES = (28_709, 3_589, 3_589)
LABELS = ("fer2013", "ferplus_majority")
WHERE_TO_GET_IT = (
    "Get it from Kaggle: the competition 'challenges-in-representation-learning-facial-expression-recognition-"
    "challenge' (fer2013.csv in fer2013.tar.gz, or icml_face_data.csv) or the dataset 'msambare/fer2013' (folders). "
    "data.path accepts fer2013.csv, icml_face_data.csv, a folder with train/<class>/ and test/<class>/, an .npz with "
    "pixels, labels and usage, or a .zip, .tar.gz or .csv.gz of one of these (docs/data.md)."
)


class Fer2013(FaceDataModule):
    """FER2013 from any of the formats it is distributed in; read once, then cached.

    Image ids are row numbers of the CSV (for folders: in the order split, class folder, path). The class order is
    always FER2013's. FER+ votes, if given, are the annotations ``votes`` (columns named as the classes) and
    ``votes_other``.

    Args:
        path: a CSV, an ``.npz``, a folder of class folders, a folder with ``fer2013.csv``, or an archive.
        data_dir: a relative ``path`` is also resolved in this folder.
        splits: ``standard`` (val = PublicTest, test = PrivateTest) or ``khaireddin2021`` (the two swapped).
        labels: ``fer2013``, or ``ferplus_majority``: the class with the most FER+ votes; images on which contempt,
            unknown or not-a-face has more votes than any class are excluded from all splits.
        ferplus: ``fer2013new.csv`` of FER+, or None.
        split_seed: seed for halving the test images of a folder without validation images.
        class_names, size, channels: fixed to FER2013's; arguments only so that a config can refer to them.
        loading: arguments of :class:`FaceDataModule`.

    Raises:
        UserError: a missing file, an unknown option, a file that is not FER2013, a corrupt row.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        data_dir: str | Path | None = None,
        splits: str = "standard",
        labels: str = "fer2013",
        ferplus: str | Path | None = None,
        split_seed: int = 0,
        class_names: Sequence[str] = CLASS_NAMES,
        size: int = SIDE,
        channels: int = 1,
        **loading: Any,
    ) -> None:
        super().__init__(class_names=class_names, **loading)
        if tuple(class_names) != CLASS_NAMES:
            raise UserError(
                f"data.class_names={list(class_names)}: FER2013's classes are {list(CLASS_NAMES)}, in this order. A "
                "model with another order sets model.class_order."
            )
        if (size, channels) != (SIDE, 1):
            raise UserError(
                f"data.size={size}, data.channels={channels}: FER2013 is 48 x 48 grey. What the network takes is set "
                "in model.preprocess."
            )
        if splits not in SPLIT_SCHEMES:
            raise UserError(f"data.splits={splits} is unknown. {nearest(splits, SPLIT_SCHEMES)}")
        if labels not in LABELS:
            raise UserError(f"data.labels={labels} is unknown. {nearest(labels, LABELS)}")
        self.path = self._opened(located(path, data_dir, "data.path", WHERE_TO_GET_IT))
        more = "It is fer2013new.csv of github.com/microsoft/FERPlus; data.ferplus=null continues without it."
        self.ferplus = None if ferplus is None else self._opened(located(ferplus, data_dir, "data.ferplus", more))
        self.split_scheme = splits
        self.labels = labels
        self.split_seed = split_seed
        self.files: tuple[str, ...] = ()

    def read(self) -> Splits:
        """The three splits, from the cache if the same file was read before."""
        stored, about = self._stored()
        self.files = tuple(about["files"])
        if about["note"]:
            log.info("%s", about["note"])
            if self.split_scheme != "standard":
                raise UserError(
                    f"data.splits={self.split_scheme}: {self.path} does not distinguish PublicTest and PrivateTest, so "
                    "they cannot be swapped. Use fer2013.csv, or data.splits=standard."
                )
        images, labels, usage = stored["images"], stored["labels"].to(torch.int64), stored["usage"]
        self._compare_sizes(usage)
        self._demand_classes(labels)
        votes = self._votes(stored, usage.numpy())
        kept = torch.ones(len(labels), dtype=torch.bool)
        if self.labels == "ferplus_majority":
            if votes is None:
                raise UserError(
                    f"data.labels=ferplus_majority needs FER+ votes, and {self.path} has none. Give "
                    "data.ferplus=<fer2013new.csv>."
                )
            labels, kept = majority(votes, labels)
            log.info("FER+ majority labels: %d images without one of the seven classes excluded.", int((~kept).sum()))
        whole = ImageSet(images, labels, torch.arange(len(labels)), {} if votes is None else vote_annotations(votes))
        train, val, test = (
            whole.subset(torch.nonzero((usage == _USAGE[name]) & kept).flatten())
            for name in SPLIT_SCHEMES[self.split_scheme]
        )
        return Splits(train, val, test, CLASS_NAMES)

    def origin(self, ids: Tensor) -> list[str]:
        """The file of each image, for folders; its row otherwise."""
        _ = self.splits_as_read
        return [self.files[i] for i in ids.tolist()] if self.files else super().origin(ids)

    def _opened(self, path: Path) -> Path:
        """The data in a path: in an archive its only list, a known file, or its folders; in a folder a known file."""
        if not path.is_file() or not is_archive(path):
            return _file_in(path)
        folder = unpacked(path, self.cache)
        lists = [item for item in folder.rglob("*") if item.suffix.lower() in (".csv", ".npz")]
        return lists[0] if len(lists) == 1 else _file_in(folder)

    def _stored(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        key: dict[str, Any] = {"read_by": source_hash(FerRows)}
        if self.path.is_dir():
            files = [image.path for image in find_images(self.path).images]
            key |= {"content": content_hash(self.path, files), "split_seed": self.split_seed}
        else:
            key |= {"content": file_hash(self.path)}
        return self.cache.value("fer2013", key, partial(_write, self.path, self.split_seed), _read)

    def _votes(self, stored: dict[str, Tensor], usage: np.ndarray) -> Tensor | None:
        if self.ferplus is None:
            return stored.get("votes")
        if self.files:
            raise UserError(
                f"data.ferplus: FER+ votes are matched by the rows of fer2013.csv, and the folders of {self.path} "
                f"do not keep them. "
                "Use fer2013.csv, or data.ferplus=null."
            )
        return torch.from_numpy(read_votes(self.ferplus, usage))

    def _demand_classes(self, labels: Tensor) -> None:
        missing = [name for label, name in enumerate(CLASS_NAMES) if not bool((labels == label).any())]
        if missing:
            raise UserError(
                f"{self.path} has no image of {', '.join(missing)}; the download may be incomplete. For other "
                f"classes "
                "than FER2013's seven use data=image_folder."
            )

    def _compare_sizes(self, usage: Tensor) -> None:
        sizes = tuple(int((usage == part).sum()) for part in range(3))
        empty = [name for name, size in zip(_USAGE, sizes, strict=True) if not size]
        if empty:
            raise UserError(f"{self.path} has no {' and no '.join(empty)} images; the download may be incomplete.")
        if sizes != _SIZES:
            log.warning("%s has %s images; the complete FER2013 has %s.", self.path, sizes, _SIZES)


def _file_in(place: Path) -> Path:
    """A known file in a folder, if there is one; else the path itself."""
    return next((place / name for name in _NAMES if (place / name).is_file()), place)


def _write(path: Path, split_seed: int, folder: Path) -> None:
    note = ""
    if path.is_dir():
        rows, note = read_folders(path, split_seed)
    elif path.suffix.lower() == ".npz":
        rows = read_npz(path)
    elif path.suffix.lower() == ".csv":
        rows = read_csv(path)
    else:
        raise UserError(f"data.path={path}: the format is not recognised by its extension. {WHERE_TO_GET_IT}")
    save_tensors(_tensors(rows), folder / "images.safetensors")
    (folder / "about.json").write_text(json.dumps({"source": str(path), "note": note, "files": rows.files}))


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a cache entry; raises an error if it has another format."""
    held, about = load_file(folder / "images.safetensors"), json.loads((folder / "about.json").read_text())
    count = len(held["images"])
    if any(len(held[name]) != count for name in ("labels", "usage")) or {"note", "files"} - set(about):
        raise ValueError("unexpected fields")
    return held, about


def _tensors(rows: FerRows) -> dict[str, Tensor]:
    arrays = {"images": rows.pixels[:, None], "labels": rows.labels, "usage": rows.usage}
    arrays |= {} if rows.votes is None else {"votes": rows.votes}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
