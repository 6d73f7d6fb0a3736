"""Extraction of images, labels and ids from batches of any form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.data.images import Batch

IMAGE_KEYS = ("image", "images", "pixel_values", "img", "x", "input", "inputs")
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class")
ID_KEYS = ("id", "ids", "image_id", "image_ids", "index")


def images_of(batch: Any) -> Any:
    """The images of a batch, or the image of an item: itself, the first of a tuple, or a known key of a dict.

    Raises:
        UserError: a dict without such a key, or an empty tuple.

    Example:
        >>> images_of((torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))).shape
        torch.Size([2, 1, 4, 4])
    """
    if isinstance(batch, Mapping):
        return _by_key(batch, IMAGE_KEYS, "images")
    if isinstance(batch, tuple | list):
        if not batch:
            raise UserError("An empty batch has no images.")
        return batch[0]
    return batch


def labels_of(batch: Any) -> Any:
    """The labels of a batch, or the label of an item; None if there are none.

    Example:
        >>> labels_of({"pixel_values": torch.zeros(1, 1, 4, 4), "labels": torch.tensor([3])})
        tensor([3])
    """
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABEL_KEYS if key in batch), None)
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 1:
        return batch[1]
    return None


def ids_of(batch: Any) -> Int64[Tensor, " image"] | None:
    """The image ids of a batch; None if it has none."""
    if isinstance(batch, Batch):
        return batch.ids
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in ID_KEYS if key in batch), None)
        return None if found is None else torch.as_tensor(found, dtype=torch.int64)
    return None


def placed_ids(batch: Any, images: int, seen: int, rank: int = 0, processes: int = 1) -> Int64[Tensor, " image"]:
    """The ids of a batch's images: its own, else their positions in the data set.

    Args:
        images: number of images in the batch.
        seen: number of images that this process has had before.
        rank, processes: of a distributed run, whose sampler distributes images round-robin.

    Example:
        >>> placed_ids((torch.zeros(2, 1), None), images=2, seen=3, rank=1, processes=2)
        tensor([7, 9])
    """
    ids = ids_of(batch)
    return torch.arange(seen, seen + images) * processes + rank if ids is None else ids.cpu()


def class_labels(labels: Any, images: int) -> Int64[Tensor, " image"]:
    """Labels as one class index per image: the argmax of one-hot rows or rows of probabilities.

    Raises:
        UserError: labels of another number or form.
    """
    found = torch.as_tensor(labels).detach().cpu()
    if found.ndim == 2 and found.shape[1] > 1:
        found = found.argmax(1)
    found = found.reshape(-1)
    if len(found) != images or found.dtype == torch.bool or bool((found.double() % 1 != 0).any()):
        raise UserError(
            f"{images} images came with labels of shape {tuple(torch.as_tensor(labels).shape)} and type "
            f"{torch.as_tensor(labels).dtype}; accepted: one class index per image, or one row of class scores."
        )
    return found.to(torch.int64)


def _by_key(batch: Mapping[Any, Any], keys: Sequence[str], what: str) -> Any:
    for key in keys:
        if key in batch:
            return batch[key]
    raise UserError(
        f"The batch is a dict with the keys {', '.join(map(str, batch))}, none of which is a known key for {what}. "
        f"Known: {', '.join(keys)}."
    )
