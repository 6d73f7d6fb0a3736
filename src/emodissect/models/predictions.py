"""Predictions of a network: logits sorted by image id, and metrics computed from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.utilities import dim_zero_cat

from emodissect.core.tensor_files import save_tensors


class Predictions(NamedTuple):
    """Logits of a set of images, in the data's class order, ascending by id (see :meth:`placed`)."""

    ids: Int64[Tensor, " image"]
    labels: Int64[Tensor, " image"]
    logits: Float[Tensor, "image class"]

    @classmethod
    def placed(cls, ids: Tensor, labels: Tensor, logits: Tensor) -> Predictions:
        """Predictions from rows in any order: sorted by id, without duplicates (padding of distributed samplers)."""
        order = torch.argsort(ids, stable=True)
        first = torch.ones_like(ids, dtype=torch.bool)
        first[1:] = ids[order][1:] != ids[order][:-1]
        order = order[first]
        return cls(ids[order], labels[order], logits[order])

    @classmethod
    def joined(cls, parts: Iterable[Iterable[Tensor]]) -> Predictions:
        """Batches of ids, labels and logits, concatenated and sorted by id."""
        return cls.placed(*(torch.cat(part) for part in zip(*parts, strict=True)))

    @property
    def predicted(self) -> Int64[Tensor, " image"]:
        """The class of the highest logit."""
        return self.logits.argmax(1)

    @property
    def accuracy(self) -> float:
        return float((self.predicted == self.labels).double().mean())

    def confusion(self) -> Int64[Tensor, "true predicted"]:
        """Confusion matrix in images."""
        return confusion_matrix(self.predicted, self.labels, self.logits.shape[1])

    def recall(self) -> Float[Tensor, " class"]:
        """Per class, the share of its images that are recognised; NaN for a class without images."""
        return recalls(self.confusion())

    def measures(self) -> dict[str, float]:
        """top-1 accuracy, top-2 accuracy, macro F1, negative log-likelihood (nats), calibration error (15 bins, L1).

        An image counts for top-2 if fewer than two classes have a larger logit than its own.
        """
        own = self.logits.gather(1, self.labels[:, None])
        return {
            "accuracy": self.accuracy,
            "top2": float(((self.logits > own).sum(1) < 2).double().mean()),
            "macro_f1": float(macro_f1(self.confusion())),
            "nll": float(cross_entropy(self.logits.double(), self.labels)),
            "ece": float(calibration_error(self.logits, self.labels)),
        }

    def logged(self, class_names: Sequence[str]) -> dict[str, float]:
        """The metrics under their logged names: acc, acc_top2, f1, nll, ece, recall/<class> of classes with images."""
        accuracy, top2, f1, nll, ece = self.measures().values()
        recall = dict(zip(class_names, self.recall().tolist(), strict=True))
        own = {f"recall/{name}": share for name, share in recall.items() if share == share}
        return {"acc": accuracy, "acc_top2": top2, "f1": f1, "nll": nll, "ece": ece, **own}

    def confident_mistakes(self, most: int) -> Int64[Tensor, " row"]:
        """Rows of the wrong predictions with the highest probability, most confident first."""
        sure, guess = self.logits.softmax(1).max(1)
        wrong = (guess != self.labels).nonzero()[:, 0]
        return wrong[sure[wrong].argsort(descending=True)][:most]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        save_tensors({name: part.contiguous() for name, part in self._asdict().items()}, path)

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        return cls(**load_file(str(path)))


class EpochPredictions(Metric):
    """Collects predictions over an epoch and over ranks; images that a sampler duplicated count once.

    Keeping all logits and computing metrics once is exact, and cheaper than a dozen running metrics per step.
    """

    full_state_update = False
    ids: list[Tensor]
    labels: list[Tensor]
    logits: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in Predictions._fields:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, predictions: Predictions) -> None:
        """Add the predictions of a batch."""
        self.ids.append(predictions.ids)
        self.labels.append(predictions.labels)
        self.logits.append(predictions.logits.float())

    def compute(self) -> Predictions:
        """All predictions, sorted by id."""
        if len(self.ids) == 0:
            none = torch.zeros(0, dtype=torch.int64)
            return Predictions(none, none, torch.zeros(0, 0))
        return Predictions.placed(dim_zero_cat(self.ids), dim_zero_cat(self.labels), dim_zero_cat(self.logits))


def confusion_matrix(
    predicted: Int64[Tensor, "*cell image"], labels: Int64[Tensor, " image"], classes: int
) -> Int64[Tensor, "*cell true predicted"]:
    """Confusion matrix in images; one per cell if ``predicted`` has leading dimensions.

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
    """Per class, the share of its images that are recognised; NaN for a class without images."""
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


def calibration_error(logits: Float[Tensor, "image class"], labels: Int64[Tensor, " image"]) -> Float[Tensor, ""]:
    """ECE: the mean distance between confidence and accuracy over 15 bins (b/15, (b+1)/15], weighted by their images.

    torchmetrics puts a confidence of exactly 1 into a separate sixteenth bin, so it is lowered by one unit in the last
    place.

    Source: Guo et al. 2017.
    """
    probabilities = logits.float().softmax(dim=1)
    below_one = 1 - torch.finfo(probabilities.dtype).eps / 2
    return multiclass_calibration_error(
        probabilities.clamp(max=below_one), labels, logits.shape[1], n_bins=15, validate_args=False
    )
