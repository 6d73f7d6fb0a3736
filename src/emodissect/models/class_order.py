"""Matching of a network's outputs to the data's classes, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from emodissect.core.errors import UserError, nearest
from emodissect.core.spelling import class_key


def output_columns(class_names: Sequence[str], class_order: Sequence[str] | None) -> Int64[Tensor, " class"]:
    """For each class of the data, the index of the network's output for it.

    Names are compared without case, spaces and punctuation, and common forms of an emotion are equivalent
    (anger = angry, happiness = happy, ...). Classes that only the network has are omitted.

    Args:
        class_order: the network's classes in the order of its outputs; None if that is the data's order.

    Raises:
        UserError: a class of the data that the network does not have, or a class that is named twice.
    """
    if class_order is None:
        return torch.arange(len(class_names))
    class_order = [str(name) for name in class_order]
    columns: dict[str, int] = {}
    for column, name in enumerate(class_order):
        if class_key(name) in columns:
            raise UserError(f"model.class_order names '{name}' twice: {', '.join(class_order)}.")
        columns[class_key(name)] = column
    missing = [name for name in class_names if class_key(name) not in columns]
    if missing:
        raise UserError(
            f"model.class_order has no output for the data's class '{missing[0]}' (the data's classes: "
            f"{', '.join(class_names)}). {nearest(missing[0], class_order)} Set model.class_order to the network's "
            "output order in the data's words, or to null where the orders agree."
        )
    return torch.tensor([columns[class_key(name)] for name in class_names])


class BetterOrder(NamedTuple):
    """A class order that fits a network's predictions far better than the given one.

    Attributes:
        accuracy: with the given order.
        best: accuracy with the order below, on the same images.
        class_order: the data's classes in the order of the network's outputs.
    """

    accuracy: float
    best: float
    class_order: list[str]


def better_order(
    logits: Float[Tensor, "image class"],
    labels: Int64[Tensor, " image"],
    class_names: Sequence[str],
    class_order: Sequence[str] | None = None,
    least_gain: float = 0.1,
    least_images: int = 50,
) -> BetterOrder | None:
    """The best assignment of outputs to classes, if it is far better than the given one; else None.

    The assignment maximizes the number of images on the diagonal of the confusion matrix (Hungarian method). Some order
    is always better by chance, but by far less than `least_gain` on at least `least_images` images.

    Args:
        logits: in the data's class order.
        class_order: the given order of the network's classes; None if it is the data's.
        least_images: with fewer images the result is None.

    >>> labels = torch.arange(90) % 3
    >>> swapped = torch.nn.functional.one_hot(labels, 3)[:, [1, 0, 2]].float()
    >>> better_order(swapped, labels, ("calm", "angry", "sad"))
    BetterOrder(accuracy=0.3333333333333333, best=1.0, class_order=['angry', 'calm', 'sad'])
    """
    if len(labels) < least_images:
        return None
    classes = len(class_names)
    predicted = logits.argmax(dim=1)
    counts = torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    true, called = (torch.from_numpy(rows) for rows in linear_sum_assignment(counts.cpu().numpy(), maximize=True))
    given, best = int(counts.diagonal().sum()) / len(labels), int(counts[true, called].sum()) / len(labels)
    if best - given < least_gain:
        return None
    columns = output_columns(class_names, class_order).tolist()
    order = list(class_names if class_order is None else class_order)
    for row, column in zip(true.tolist(), called.tolist(), strict=True):
        order[columns[column]] = class_names[row]
    return BetterOrder(given, best, order)
