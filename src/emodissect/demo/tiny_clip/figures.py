"""Evaluates a CLIP on drawn faces: zero-shot accuracy, and AUROC of its scores for each concept's presence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from emodissect.concepts.clip_images import ClipImages
from emodissect.data.images import ImageSet


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot metrics of a CLIP.

    Attributes:
        accuracy: share of images whose class name has the highest cosine of all class names.
        auroc: by concept, the probability that an image with the concept (presence >= .5) scores above one without it;
            concepts that are present in all or none of the images are left out.
    """

    accuracy: float
    auroc: Mapping[str, float]

    @property
    def mean_auroc(self) -> float:
        """Mean AUROC over the concepts."""
        return sum(self.auroc.values()) / len(self.auroc)


def zero_shot(
    class_scores: Float[Tensor, "image class"],
    labels: Int64[Tensor, " image"],
    concept_scores: Float[Tensor, "image concept"],
    presence: Float[Tensor, "image concept"],
    concepts: Sequence[str],
) -> ZeroShot:
    """Computes the metrics from scores."""
    accuracy = float((class_scores.argmax(dim=1) == labels).float().mean())
    present = presence >= 0.5
    auroc = {
        name: _auroc(concept_scores[:, column], present[:, column])
        for column, name in enumerate(concepts)
        if 0 < int(present[:, column].sum()) < len(present)
    }
    return ZeroShot(accuracy, auroc)


def _auroc(scores: Tensor, present: Tensor) -> float:
    """Area under the ROC curve, as the Mann-Whitney U divided by the number of pairs."""
    above = mannwhitneyu(scores[present].numpy(), scores[~present].numpy()).statistic
    return float(above) / (int(present.sum()) * int((~present).sum()))


@torch.inference_mode()
def cosines(
    model: nn.Module,
    tokenize: Callable[[Sequence[str]], Tensor],
    preprocess: ClipImages,
    images: ImageSet,
    texts: Sequence[str],
    batch_size: int = 256,
) -> Float[Tensor, "image text"]:
    """Cosine similarities of images and texts for a network in training, without a cache."""
    device = next(model.parameters()).device
    encoded = model.encode_text(tokenize(texts).to(device), normalize=True)  # type: ignore[operator]
    rows = [
        model.encode_image(preprocess(pixels.to(device)), normalize=True) @ encoded.T  # type: ignore[operator]
        for pixels in images.images.split(batch_size)
    ]
    return torch.cat(rows).float().cpu()
