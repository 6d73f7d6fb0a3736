"""What a network predicts: its logits, placed by image id."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import (
    multiclass_accuracy,
)

from emodissect.core.evaluation_mode import evaluating
from emodissect.core.progress import tracked
from emodissect.core.tensor_files import save_tensors
from emodissect.data.images import Batch
from emodissect.models.classifier import Classifier
from emodissect.models.scores import calibration_error, confusion_matrix, macro_f1, recalls


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
        ten_crop: uint8 images -> logits averaged over ten crops; None where the network is not made for crops.
    """

    preprocess: Callable[[Tensor], Tensor]
    network: nn.Module
    finish: Callable[[Tensor], Tensor] = _unchanged
    ten_crop: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Float[Tensor, "image class"]:
        return self.finish(self.network(self.preprocess(images)))

    @classmethod
    def of(cls, classifier: Classifier) -> Inference:
        """The steps of a classifier's forward pass, ten crops and class order included."""
        cropped = classifier.preprocess.how == "crop" and classifier.preprocess.views == "single"
        ten_crop = classifier.crop_logits if cropped else None
        return cls(classifier.inputs, classifier.network, classifier.finished, ten_crop)

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
            self.ten_crop,
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
        return confusion_matrix(self.predicted, self.labels, self.logits.shape[1])

    def recall(self) -> Float[Tensor, " class"]:
        """Per class, the share of its images that are recognised; NaN for a class without images."""
        return recalls(self.confusion())

    def measures(self) -> dict[str, float]:
        """top-1 accuracy, top-2 accuracy, macro F1, negative log-likelihood (nats), calibration error (15 bins, L1)."""
        classes = self.logits.shape[1]
        two = min(2, classes)
        return {
            "accuracy": self.accuracy,
            "top2": float(multiclass_accuracy(self.logits, self.labels, classes, average="micro", top_k=two)),
            "macro_f1": float(macro_f1(self.confusion())),
            "nll": float(cross_entropy(self.logits.double(), self.labels)),
            "ece": float(calibration_error(self.logits, self.labels)),
        }

    def save(self, path: str | Path) -> None:
        """Written as one safetensors file."""
        save_tensors({name: getattr(self, name).contiguous() for name in ("ids", "labels", "logits")}, str(path))

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
