"""What is measured of a classifier: from the logits of an epoch to named numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_calibration_error
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


def confusion_matrix(
    predicted: Int64[Tensor, "*cell image"], labels: Int64[Tensor, " image"], classes: int
) -> Int64[Tensor, "*cell true predicted"]:
    """Number of images by true and predicted class, of each cell where several are given.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    cells = predicted.shape[:-1]
    rows = predicted.reshape(-1, predicted.shape[-1])
    size = classes**2
    place = torch.arange(len(rows), device=rows.device)[:, None] * size + labels * classes + rows
    return torch.bincount(place.flatten(), minlength=len(rows) * size).reshape(*cells, classes, classes)


def recalls(confusion: Shaped[Tensor, "*cell true predicted"]) -> Float64[Tensor, "*cell class"]:
    """Per class, the share of its images that are recognized; NaN for a class without images."""
    counts = confusion.double()
    return counts.diagonal(dim1=-2, dim2=-1) / counts.sum(-1)


def macro_f1(confusion: Shaped[Tensor, "*cell true predicted"]) -> Float64[Tensor, "*cell"]:
    """Mean over the classes that occur, in the labels or the predictions, of F1 = 2 hits / (images + predictions).

    Example:
        >>> float(macro_f1(torch.tensor([[1, 1], [0, 1]])).round(decimals=3))
        0.667
    """
    counts = confusion.double()
    hits, either = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-2) + counts.sum(-1)
    return (2 * hits / either.clamp_min(1)).sum(-1) / (either > 0).sum(-1)


def scores(logits: Float[Tensor, "image class"], labels: Int64[Tensor, " image"], class_names: Sequence[str]) -> Scores:
    """Top-1 and top-2 accuracy, macro F1, recall of each class, NLL, calibration error and confusion matrix.

    A class without images has no recall and is left out; macro F1 is the mean over the classes that occur, in the
    labels or the predictions. An image counts for top-2 if fewer than two classes have a larger logit than its own.
    """
    logits = logits.float()
    classes = len(class_names)
    predicted = logits.argmax(dim=1)
    confusion = confusion_matrix(predicted, labels, classes)
    own = logits.gather(1, labels[:, None])
    values = {
        "acc": (predicted == labels).float().mean(),
        "acc_top2": ((logits > own).sum(dim=1) < 2).float().mean(),
        "f1": macro_f1(confusion).float(),
        "nll": F.cross_entropy(logits, labels),
        "ece": calibration_error(logits, labels),
    }
    recall = recalls(confusion).float()
    values |= {f"recall/{name}": recall[row] for row, name in enumerate(class_names) if not recall[row].isnan()}
    return Scores(values, confusion)


def calibration_error(logits: Float[Tensor, "image class"], labels: Int64[Tensor, " image"]) -> Float[Tensor, ""]:
    """ECE: the mean distance between confidence and accuracy over 15 bins (b/15, (b+1)/15], weighted by their images.

    torchmetrics gives a confidence of exactly 1 a sixteenth bin of its own, so it is lowered by one unit in the last
    place.

    Source: Guo et al. 2017.
    """
    probabilities = logits.float().softmax(dim=1)
    below_one = 1 - torch.finfo(probabilities.dtype).eps / 2
    return multiclass_calibration_error(
        probabilities.clamp(max=below_one), labels, logits.shape[1], n_bins=15, validate_args=False
    )


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
