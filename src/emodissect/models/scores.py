"""What is measured of a classifier: from the logits of an epoch to named numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix
from torchmetrics.utilities import dim_zero_cat


class Outputs(NamedTuple):
    """Logits of some images, in the data's class order, with what places and judges them."""

    ids: Int64[Tensor, " image"]
    labels: Int64[Tensor, " image"]
    logits: Float[Tensor, "image class"]


class Scores(NamedTuple):
    """Numbers of one set of images.

    Attributes:
        values: acc, acc_top2, f1 (macro), nll, ece (15 bins) and recall/<class>, as fractions.
        confusion: images of the row's class that were called the column's.
    """

    values: dict[str, Tensor]
    confusion: Int64[Tensor, "class predicted"]


def scores(logits: Float[Tensor, "image class"], labels: Int64[Tensor, " image"], class_names: Sequence[str]) -> Scores:
    """Top-1 and top-2 accuracy, macro F1, recall of each class, NLL, calibration error and confusion matrix.

    A class without images has no recall and is left out; macro F1 is the mean over the classes that occur, in the
    labels or the predictions. An image counts for top-2 if fewer than two classes have a larger logit than its own.
    ECE (Guo et al. 2017) is the mean distance between confidence and accuracy over 15 bins, weighted by their images.
    """
    logits = logits.float()
    classes = len(class_names)
    predicted = logits.argmax(dim=1)
    confusion = multiclass_confusion_matrix(predicted, labels, classes, validate_args=False)
    hits, actual, called = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    occurs = (actual + called) > 0
    f1 = (2 * hits / (actual + called).clamp(min=1))[occurs].mean()
    own = logits.gather(1, labels[:, None])
    values = {
        "acc": (predicted == labels).float().mean(),
        "acc_top2": ((logits > own).sum(dim=1) < 2).float().mean(),
        "f1": f1,
        "nll": F.cross_entropy(logits, labels),
        "ece": multiclass_calibration_error(logits.softmax(dim=1), labels, classes, n_bins=15, validate_args=False),
    }
    recall = hits / actual.clamp(min=1)
    values |= {f"recall/{name}": recall[row] for row, name in enumerate(class_names) if actual[row] > 0}
    return Scores(values, confusion)


class EpochOutputs(Metric):
    """Gathers outputs over an epoch and over processes; an image that a distributed sampler gave twice counts once.

    Keeping seven logits an image and scoring once is exact, and cheaper than a dozen running metrics a step.
    """

    full_state_update = False
    ids: list[Tensor]
    labels: list[Tensor]
    logits: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in Outputs._fields:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, outputs: Outputs) -> None:
        """Keeps the outputs of a batch."""
        self.ids.append(outputs.ids)
        self.labels.append(outputs.labels)
        self.logits.append(outputs.logits.float())

    def compute(self) -> Outputs:
        """All outputs, ascending by id, each image once."""
        if len(self.ids) == 0:
            none = torch.zeros(0, dtype=torch.int64)
            return Outputs(none, none, torch.zeros(0, 0))
        ids, labels, logits = dim_zero_cat(self.ids), dim_zero_cat(self.labels), dim_zero_cat(self.logits)
        ids, order = torch.sort(ids, stable=True)
        first = torch.ones_like(ids, dtype=torch.bool)
        first[1:] = ids[1:] != ids[:-1]
        order = order[first]
        return Outputs(ids[first], labels[order], logits[order])
