"""What a network predicts, and what changed between two of its predictions on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_recall,
)

from emodissect.core.progress import tracked
from emodissect.core.statistics import delta_interval, mcnemar, wilson
from emodissect.data.images import Batch
from emodissect.models.classifier import Classifier


def _unchanged(logits: Tensor) -> Tensor:
    return logits


@dataclass(frozen=True, eq=False)
class Inference:
    """A network with what stands before and behind it; called with uint8 images it gives logits.

    Attributes:
        preprocess: uint8 images -> the network's input; it may make several views an image, image by image or
            view by view.
        network: the module whose layers are edited.
        finish: the network's output -> logits in the data's class order, one row an image.
    """

    preprocess: Callable[[Tensor], Tensor]
    network: nn.Module
    finish: Callable[[Tensor], Tensor] = _unchanged

    def __call__(self, images: Tensor) -> Float[Tensor, "image class"]:
        return self.finish(self.network(self.preprocess(images)))

    @classmethod
    def of(cls, classifier: Classifier) -> Inference:
        """The steps of a classifier's forward pass, ten crops and class order included."""
        return cls(classifier.inputs, classifier.network, classifier.finished)

    def image_by_image(self, images: Tensor) -> Inference:
        """The same with an image's views side by side, so that rows can be cut between any two images.

        Args:
            images: a few, on which the order of the views is found out.

        Raises:
            ValueError: the network's rows are neither image by image nor view by view.
        """
        count = len(images)
        rows, alone = self.preprocess(images), self.preprocess(images[:1])
        views = len(alone)
        whole = len(rows) == count * views
        if whole and (views == 1 or torch.allclose(rows[:views], alone, atol=1e-5)):
            return self
        if not whole or not torch.allclose(rows[::count], alone, atol=1e-5):
            raise ValueError(f"{count} images gave {len(rows)} rows, one alone {views}, in no order that can be undone")
        return Inference(
            lambda pixels: self.preprocess(pixels).unflatten(0, (views, -1)).transpose(0, 1).flatten(0, 1),
            self.network,
            lambda output: self.finish(output.unflatten(0, (-1, views)).transpose(0, 1).flatten(0, 1)),
        )


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of a set of images, ascending by id. Make it with :meth:`placed` where the order is not known."""

    ids: Int64[Tensor, " image"]
    labels: Int64[Tensor, " image"]
    logits: Float[Tensor, "image class"]

    @classmethod
    def placed(cls, ids: Tensor, labels: Tensor, logits: Tensor) -> Predictions:
        """Rows in any order, an id perhaps more than once (padding of distributed samplers): sorted, each id once."""
        order = torch.argsort(ids, stable=True)
        first = torch.ones(len(ids), dtype=torch.bool)
        first[1:] = ids[order][1:] != ids[order][:-1]
        order = order[first]
        return cls(ids[order], labels[order], logits[order])

    @property
    def predicted(self) -> Int64[Tensor, " image"]:
        """The class of the highest logit."""
        return self.logits.argmax(1)

    @property
    def accuracy(self) -> float:
        return float((self.predicted == self.labels).double().mean())

    def confusion(self) -> Int64[Tensor, "true predicted"]:
        """Number of images by true and predicted class."""
        return multiclass_confusion_matrix(self.logits, self.labels, self.logits.shape[1])

    def recall(self) -> Float[Tensor, " class"]:
        """Per class, the share of its images that are recognised; NaN for a class without images."""
        classes = self.logits.shape[1]
        recall = multiclass_recall(self.logits, self.labels, classes, average="none")
        return torch.where(torch.bincount(self.labels, minlength=classes) > 0, recall, torch.nan)

    def measures(self) -> dict[str, float]:
        """top-1 accuracy, top-2 accuracy, macro F1, negative log-likelihood (nats), calibration error (15 bins, L1)."""
        classes = self.logits.shape[1]
        two = min(2, classes)
        return {
            "accuracy": self.accuracy,
            "top2": float(multiclass_accuracy(self.logits, self.labels, classes, average="micro", top_k=two)),
            "macro_f1": float(multiclass_f1_score(self.logits, self.labels, classes, average="macro")),
            "nll": float(cross_entropy(self.logits.double(), self.labels)),
            "ece": float(multiclass_calibration_error(self.logits.softmax(1), self.labels, classes, n_bins=15)),
        }

    def save(self, path: str | Path) -> None:
        """Written as one safetensors file."""
        save_file({name: getattr(self, name).contiguous() for name in ("ids", "labels", "logits")}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        return cls(**load_file(str(path)))


def predict(
    forward: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    device: str | torch.device = "cpu",
    progress: str | None = None,
) -> Predictions:
    """Logits of every image of a loader, placed by id.

    Args:
        forward: uint8 images -> logits; a module is put in eval mode meanwhile.
        loader: gives batches in any order.
        progress: what a progress bar says; None shows none.
    """
    ids, labels, logits = [], [], []
    with evaluating(forward), torch.inference_mode():
        for batch in tracked(loader, progress):
            logits.append(forward(batch.images.to(device)).float().cpu())
            ids.append(batch.ids.cpu())
            labels.append(batch.labels.cpu())
    # Outside inference mode, so that what is kept are ordinary tensors.
    return Predictions.placed(torch.cat(ids), torch.cat(labels), torch.cat([part.clone() for part in logits]))


@dataclass(frozen=True)
class Comparison:
    """A network before and after an edit on the same images. Accuracies, recalls and deltas are in [0, 1].

    `delta_low`, `delta_high`: paired bootstrap interval; `accuracy_*_low/high`: Wilson; `p_value`: exact McNemar;
    `gained`, `lost`: images that became right, wrong; `changed`: images whose predicted class is another one.
    """

    images: int
    accuracy_before: float
    accuracy_before_low: float
    accuracy_before_high: float
    accuracy_after: float
    accuracy_after_low: float
    accuracy_after_high: float
    delta: float
    delta_low: float
    delta_high: float
    gained: int
    lost: int
    changed: int
    p_value: float
    top2_before: float
    top2_after: float
    macro_f1_before: float
    macro_f1_after: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    recall_before: tuple[float, ...]
    recall_after: tuple[float, ...]
    gained_ids: tuple[int, ...]
    lost_ids: tuple[int, ...]

    def row(self) -> dict[str, Any]:
        """Plain JSON values; an unknown recall (class without images) is null."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Comparison:
        """The inverse of :meth:`row`."""
        return cls(**{name: _kept(value) for name, value in row.items()})


def compare(
    before: Predictions, after: Predictions, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> Comparison:
    """What an edit did to the predictions.

    Args:
        before: of the unedited network.
        after: of the edited one, on the same images.
        draws: bootstrap samples behind the interval of the delta.
        level: coverage of every interval.

    Raises:
        ValueError: the two do not hold the same images with the same labels, or none.
    """
    if not torch.equal(before.ids, after.ids) or not torch.equal(before.labels, after.labels):
        raise ValueError("the predictions are of different images or labels")
    if not len(before.ids):
        raise ValueError("no images to compare on")
    right_before, right_after = before.predicted == before.labels, after.predicted == after.labels
    gained, lost = right_after & ~right_before, right_before & ~right_after
    images, gains, losses = len(before.ids), int(gained.sum()), int(lost.sum())
    was, now = before.measures(), after.measures()
    intervals = [wilson(int(right.sum()), images, level) for right in (right_before, right_after)]
    delta_low, delta_high = delta_interval(gains, losses, images, level, draws, seed)
    return Comparison(
        images=images,
        accuracy_before_low=intervals[0][0],
        accuracy_before_high=intervals[0][1],
        accuracy_after_low=intervals[1][0],
        accuracy_after_high=intervals[1][1],
        delta=(gains - losses) / images,
        delta_low=delta_low,
        delta_high=delta_high,
        gained=gains,
        lost=losses,
        changed=int((before.predicted != after.predicted).sum()),
        p_value=mcnemar(gains, losses),
        **{f"{name}_before": value for name, value in was.items()},
        **{f"{name}_after": value for name, value in now.items()},
        recall_before=tuple(before.recall().tolist()),
        recall_after=tuple(after.recall().tolist()),
        gained_ids=tuple(before.ids[gained].tolist()),
        lost_ids=tuple(before.ids[lost].tolist()),
    )


@contextmanager
def evaluating(forward: object) -> Iterator[None]:
    """A module, or the network of an :class:`Inference`, in eval mode; each part's mode is given back."""
    root = forward if isinstance(forward, nn.Module) else getattr(forward, "network", None)
    training = [module for module in root.modules() if module.training] if isinstance(root, nn.Module) else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _kept(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_kept(part) for part in value)
    return float("nan") if value is None else value
