"""Which output of a network belongs to which class of the data, by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from emodissect.core.errors import UserError, nearest
from emodissect.core.spelling import class_key


def output_columns(class_names: Sequence[str], class_order: Sequence[str] | None) -> Int64[Tensor, " class"]:
    """For each class of the data, the network's output that stands for it.

    Names are compared without case, spaces and punctuation, and the usual forms of an emotion count as one
    (anger = angry, happiness = happy, ...). A network may know more classes than the data; those are left out.

    Args:
        class_names: the data's classes, in its order.
        class_order: the network's classes in the order of its outputs; None says that it is the data's.

    Raises:
        UserError: a class of the data that the network does not have, or one named twice.
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
