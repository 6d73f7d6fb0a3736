"""FER+: votes of ten annotators on each image of FER2013 (Barsoum et al. 2016, arXiv:1608.01041)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.data.audit import NOT_A_FACE
from emodissect.data.images import Annotations, ImageSet

VOTED_ON = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
# FER2013's classes, and FER+'s further answers -> column of VOTED_ON
CLASS_COLUMNS = {"Angry": 4, "Disgust": 5, "Fear": 6, "Happy": 1, "Sad": 3, "Surprise": 2, "Neutral": 0}
OTHER_COLUMNS = {"contempt": 7, "unknown": 8, NOT_A_FACE: 9}


def read_votes(path: Path, usage: UInt8[np.ndarray, " image"]) -> UInt8[np.ndarray, "image ten"]:
    """The votes of ``fer2013new.csv``, whose rows are in the order of ``fer2013.csv``.

    Args:
        usage: the split of each row of FER2013 (0 Training, 1 PublicTest, 2 PrivateTest); must match the file's.

    Raises:
        UserError: a missing file or column, another number of rows, votes that are not numbers, rows that do not match
            the images.
    """
    where = "It is at github.com/microsoft/FERPlus. data.ferplus=null continues without it."
    if not path.is_file():
        raise UserError(f"The FER+ votes {path} do not exist. {where}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="replace")
    except (OSError, ValueError) as error:
        raise UserError(f"The FER+ votes {path} cannot be read: {error}. {where}") from error
    table.columns = table.columns.str.strip()
    missing = [name for name in ("Usage", *VOTED_ON) if name not in table.columns]
    if missing:
        raise UserError(
            f"{path} lacks the FER+ columns {', '.join(missing)}; it has {', '.join(table.columns)}. {where}"
        )
    if len(table) != len(usage):
        raise UserError(
            f"{path} has votes on {len(table):,} images, the data set has {len(usage):,}: FER+ votes are matched by "
            f"row, so both must "
            f"be complete. {where}"
        )
    votes = table[list(VOTED_ON)].apply(pd.to_numeric, errors="coerce")
    wrong = np.flatnonzero(~(votes.ge(0) & votes.le(255) & votes.mod(1).eq(0)).all(axis=1))
    if len(wrong):
        raise UserError(f"{path}, line {wrong[0] + 2}: a vote is not an integer from 0 to 255. {where}")
    known = table["Usage"].str.strip().map({"Training": 0, "PublicTest": 1, "PrivateTest": 2}).to_numpy()
    apart = np.flatnonzero(known != usage)
    if len(apart):
        raise UserError(
            f"{path}, line {apart[0] + 2}: its Usage differs from row {apart[0]} of the data set: the votes would be "
            f"assigned to other images. Give FER2013 in the order of fer2013.csv. {where}"
        )
    return votes.to_numpy(dtype=np.uint8, copy=True)


def vote_annotations(
    votes: Shaped[Tensor, "image ten"], classes: Mapping[str, int] = CLASS_COLUMNS
) -> dict[str, Annotations]:
    """The votes as annotations: each answer's share of all votes on the image.

    ``votes`` has the classes (``classes``: name -> column of ``VOTED_ON``); ``votes_other`` has those of ``contempt``,
    ``unknown`` and ``not a face`` that are not classes. For FER2013's classes a row of both sums to 1 (0 without
    votes).
    """
    shares = votes.float() / votes.sum(dim=1, keepdim=True).clamp(min=1)
    others = {name: column for name, column in OTHER_COLUMNS.items() if column not in classes.values()}
    return {
        kind: Annotations(tuple(columns), shares[:, list(columns.values())])
        for kind, columns in (("votes", classes), ("votes_other", others))
    }


def majority(
    votes: UInt8[Tensor, "image ten"], labels: Int64[Tensor, " image"]
) -> tuple[Int64[Tensor, " image"], Bool[Tensor, " image"]]:
    """The class with the most votes, and whether an image has one.

    A tie goes to the FER2013 label if it is among the tied, else to the first in FER2013's order. An image on which
    contempt, unknown or not-a-face has more votes than every class (or that has no votes) has no such class.
    """
    classes = votes[:, list(CLASS_COLUMNS.values())].to(torch.int64)
    best = classes.amax(dim=1)
    agrees = classes.gather(1, labels.unsqueeze(1)).squeeze(1) == best
    others = votes[:, list(OTHER_COLUMNS.values())].to(torch.int64).amax(dim=1)
    return torch.where(agrees, labels, classes.argmax(dim=1)), (best >= others) & (best > 0)


def soft_labels(image_set: ImageSet, class_names: Sequence[str]) -> Float[Tensor, "image class"]:
    """A distribution over the classes for each image: its FER+ votes for them, normalized to sum to 1.

    Rows are in the order of ``image_set.ids``. Votes for contempt, unknown and not-a-face are ignored; an image without
    a vote for any class has all its weight on its label.

    Raises:
        UserError: the images come without votes, or the votes lack one of the classes.
    """
    if "votes" not in image_set.annotations:
        raise UserError(
            "Soft labels need FER+ votes, and these images have none. Give data.ferplus=<fer2013new.csv>, or an .npz "
            "with ferplus_votes."
        )
    given = image_set.annotations["votes"]
    missing = [name for name in class_names if name not in given.names]
    if missing:
        raise UserError(f"There are no votes for {', '.join(missing)}; there are for {', '.join(given.names)}.")
    votes = given.values[:, [given.names.index(name) for name in class_names]]
    total = votes.sum(dim=1, keepdim=True)
    on_label = torch.nn.functional.one_hot(image_set.labels, len(class_names)).to(votes.dtype)
    return torch.where(total > 0, votes / total.clamp(min=torch.finfo(votes.dtype).tiny), on_label)
