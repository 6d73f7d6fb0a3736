"""Audit of a data set: blank, corrupted, duplicate and mislabelled images, and leaks between splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch import Tensor

from emodissect.data.images import ImageSet, Splits, pixel_hashes
from emodissect.data.near_duplicates import difference_hashes, near_pairs

NOT_A_FACE = "not a face"
FAULTS = (
    *("blank", "near_constant", "not_a_face", "duplicate", "duplicate_in_split", "leaked", "conflicting"),
    *("near_duplicate", "near_leaked"),
)

# split -> splits for evaluation that its images must not also be in
_EVALUATED_ON = {"train": ("val", "test"), "val": ("test",), "test": ()}


@dataclass(frozen=True)
class AuditReport:
    """The faults found, one row per faulty image.

    Attributes:
        table: columns ``id, split, label``; the faults as booleans: ``blank`` (all pixels equal), ``near_constant``
            (standard deviation above 0 and under 5 grey levels), ``not_a_face`` (at least half of the annotators say
            so), ``duplicate`` (the same pixels appear earlier, in the order train, val, test), ``duplicate_in_split``
            (earlier in the same split), ``leaked`` (the same pixels are in another split), ``conflicting`` (copies
            have different labels), ``near_duplicate`` (a near-duplicate appears earlier: a frame of the same video,
            another compression or brightness), ``near_leaked`` (a near-duplicate is in another split); then
            ``copies``, ``first_id``, ``near_id`` (the first near-duplicate, -1 if there is none), and ``in_splits``:
            the splits that have the pixels, joined by ``+``.
        counts: numbers of images with each fault, and of distinct images in several splits or with conflicting labels.
    """

    table: pd.DataFrame
    counts: dict[str, int]

    def to_drop(self, split: str) -> Int64[Tensor, " image"]:
        """Ids to exclude from a training or probe set made of ``split``, ascending.

        Blank and near-constant images, those that are not a face, copies of an earlier image of the same split, and
        images that are also in a later split: val or test for ``train``, test for ``val``.
        """
        leaked = self._stands_in(_EVALUATED_ON[split])
        wrong = self.table[["blank", "near_constant", "not_a_face", "duplicate_in_split"]].any(axis=1)
        return self._ids(split, leaked | wrong)

    def leaked_into(self, split: str, source: str = "train") -> Int64[Tensor, " image"]:
        """Ids of the images of ``split`` whose pixels are also in ``source``, ascending."""
        return self._ids(split, self._stands_in((source,)))

    def _stands_in(self, splits: Sequence[str]) -> pd.Series:
        return self.table["in_splits"].map(lambda names: bool({*names.split("+")} & {*splits})).astype(bool)

    def _ids(self, split: str, chosen: pd.Series) -> Int64[Tensor, " image"]:
        found = self.table.loc[chosen & (self.table["split"] == split), "id"]
        return torch.as_tensor(np.sort(found.to_numpy(dtype=np.int64)))

    def summary(self) -> str:
        """The counts in one sentence."""
        c = self.counts
        return (
            f"Audit of {c['images']:,} images: {c['blank']:,} blank, {c['near_constant']:,} near-constant, "
            f"{c['not_a_face']:,} not a face, {c['duplicate']:,} exact duplicates of an earlier image, "
            f"{c['images_across_splits']:,} distinct images in more than one split, "
            f"{c['images_with_conflicting_labels']:,} distinct images with conflicting labels; "
            f"{c['near_duplicate']:,} near-duplicates of an earlier image, {c['near_leaked']:,} of one in another "
            "split."
        )


def audit_splits(splits: Splits, near_constant_std: float = 5.0) -> AuditReport:
    """Find faults in all three splits.

    Args:
        near_constant_std: standard deviation in grey levels below which an image is near-constant.
    """
    named = {"train": splits.train, "val": splits.val, "test": splits.test}
    table = pd.concat([_facts(name, images, near_constant_std) for name, images in named.items()], ignore_index=True)
    table["pixels"], _ = pd.factorize(table["pixels"])
    _add_near_duplicates(table, list(named.values()))
    same = table.groupby("pixels", sort=False)
    table["copies"] = same["id"].transform("size")
    table["first_id"] = same["id"].transform("first")
    table["duplicate"] = table.duplicated("pixels")
    table["duplicate_in_split"] = table.duplicated(["pixels", "split"])
    stands_in = pd.DataFrame(
        {name: table["pixels"].isin(table.loc[table["split"] == name, "pixels"]) for name in named}
    )
    combined = {tuple(row): "+".join(np.array(list(named))[row]) for row in np.unique(stands_in.to_numpy(), axis=0)}
    table["in_splits"] = [combined[row] for row in stands_in.itertuples(index=False, name=None)]
    table["leaked"] = stands_in.sum(axis=1) > 1
    table["conflicting"] = same["label"].transform("min") < same["label"].transform("max")

    distinct = table.drop_duplicates("pixels")
    counts = {"images": len(table), **{fault: int(table[fault].sum()) for fault in FAULTS}}
    counts["images_across_splits"] = int(distinct["leaked"].sum())
    counts["images_with_conflicting_labels"] = int(distinct["conflicting"].sum())
    faulty = table[list(FAULTS)].any(axis=1) | (table["copies"] > 1)
    columns = ["id", "split", "label", *FAULTS, "copies", "first_id", "near_id", "in_splits"]
    return AuditReport(table.loc[faulty, columns].reset_index(drop=True), counts)


def _facts(split: str, images: ImageSet, near_constant_std: float) -> pd.DataFrame:
    pixels, blank, spread = [], [], []
    for start in range(0, len(images), 1024):  # in chunks: wider types for the whole set would take many times its size
        read = images.images[start : start + 1024]
        pixels += pixel_hashes(read)
        part = read.flatten(1).numpy()
        blank += (part.min(axis=1) >= part.max(axis=1)).tolist()
        spread += part.std(axis=1, dtype=np.float32).tolist()
    constant = np.array(blank, dtype=bool)
    return pd.DataFrame(
        {
            "id": images.ids.numpy(),
            "split": split,
            "label": images.labels.numpy(),
            "pixels": pixels,
            "blank": constant,
            "near_constant": ~constant & (np.array(spread) < near_constant_std),
            "not_a_face": _not_a_face(images),
        }
    )


def _add_near_duplicates(table: pd.DataFrame, parts: list[ImageSet]) -> None:
    """Add the columns of near-duplicates; of exact duplicates, only the first is compared."""
    found = [difference_hashes(part) for part in parts]
    first_of_pixels = ~table.duplicated("pixels").to_numpy()
    varied = ~(table["blank"] | table["near_constant"]).to_numpy()
    hashes, thumbnails = (np.concatenate([part[place] for part in found]) for place in (0, 1))
    pairs = near_pairs(hashes, thumbnails, first_of_pixels & varied)
    ids, pixels, splits = (table[name].to_numpy() for name in ("id", "pixels", "split"))
    nearest: dict[int, int] = {}
    near_splits: dict[int, set[str]] = {}
    standing = table.groupby("pixels")["split"].agg(set).to_dict() if len(pairs) else {}
    for earlier, later in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
        nearest.setdefault(int(pixels[later]), int(ids[earlier]))
        for one, other in ((earlier, later), (later, earlier)):
            near_splits.setdefault(int(pixels[one]), set()).update(standing[pixels[other]])
    table["near_id"] = [nearest.get(int(pixel), -1) for pixel in pixels]
    table["near_duplicate"] = table["near_id"] >= 0
    table["near_leaked"] = [
        bool(near_splits.get(int(pixel), set()) - {split}) for pixel, split in zip(pixels, splits, strict=True)
    ]


def _not_a_face(images: ImageSet) -> np.ndarray:
    """Mask of images on which at least half of the annotators saw no face, if any annotation has such a column."""
    said = np.zeros(len(images), dtype=bool)
    for given in images.annotations.values():
        if NOT_A_FACE in given.names:
            said |= given.values[:, given.names.index(NOT_A_FACE)].numpy() >= 0.5
    return said
