"""A classifier's forward pass in separate steps, and the predictions for a whole loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emodissect.core.evaluation_mode import evaluating
from emodissect.core.progress import tracked
from emodissect.data.images import Batch
from emodissect.models.classifier import Classifier
from emodissect.models.network_input import unchanged
from emodissect.models.predictions import Predictions


@dataclass(frozen=True, eq=False)
class Inference:
    """A network with its pre- and postprocessing; called with uint8 images it returns logits.

    Attributes:
        preprocess: uint8 images -> the network's input; may give several views per image, ordered by image or by view.
        network: the module whose layers are edited.
        finish: the network's output -> logits in the data's class order, one row per image.
        ten_crop: uint8 images -> logits averaged over ten crops; None if the network does not use crops.
    """

    preprocess: Callable[[Tensor], Tensor]
    network: nn.Module
    finish: Callable[[Tensor], Tensor] = unchanged
    ten_crop: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Float[Tensor, "image class"]:
        return self.finish(self.network(self.preprocess(images)))

    @classmethod
    def of(cls, classifier: Classifier) -> Inference:
        """The steps of a classifier's forward pass, including ten crops and class order."""
        cropped = classifier.preprocess.how == "crop" and classifier.preprocess.views == "single"
        ten_crop = classifier.crop_logits if cropped else None
        return cls(classifier.inputs, classifier.network, classifier.finished, ten_crop)

    def image_by_image(self, images: Tensor) -> Inference:
        """The same with the views of an image in adjacent rows, so that rows can be split between any two images.

        Args:
            images: a few images, to detect the order of the views.

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


def predict(
    forward: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    device: str | torch.device = "cpu",
    progress: str | None = None,
) -> Predictions:
    """Logits of every image of a loader, sorted by id.

    Args:
        forward: uint8 images -> logits; a module is in eval mode meanwhile.
    """
    batches = []
    with evaluating(forward), torch.inference_mode():
        for batch in tracked(loader, progress):
            batches.append((batch.ids.cpu(), batch.labels.cpu(), forward(batch.images.to(device)).float().cpu()))
    # cloned outside inference mode, to get ordinary tensors
    return Predictions.joined((ids, labels, logits.clone()) for ids, labels, logits in batches)
