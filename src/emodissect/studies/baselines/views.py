"""Test-time augmentation: averages the logits of several views of each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from emodissect.core.evaluation_mode import evaluating
from emodissect.data.images import image_loader
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.models.inference import predict
from emodissect.studies.baselines.baseline import NotAvailable, Predictor


@dataclass(frozen=True)
class MirrorView:
    """Logits averaged over an image and its mirror image."""

    name: ClassVar[str] = "mirror"
    words: ClassVar[str] = "averaging the mirror view"
    is_fitted: ClassVar[bool] = False

    def fit(self, kept: EditedLogits) -> tuple[Predictor, str]:
        if len(kept.outputs(torch.arange(1))) > 1:
            raise NotAvailable("the network already averages several views")
        return lambda other: (other.before.logits + _predicted(other, mirrored=True)) / 2, ""


@dataclass(frozen=True)
class TenCrops:
    """Logits averaged over ten crops, where the network takes crops of the images (`model.preprocess.how=crop`)."""

    name: ClassVar[str] = "ten_crop"
    words: ClassVar[str] = "averaging ten crops"
    is_fitted: ClassVar[bool] = False

    def fit(self, kept: EditedLogits) -> tuple[Predictor, str]:
        if kept.inference.ten_crop is None:
            raise NotAvailable("the network takes whole images, or already averages ten crops")
        return lambda other: _predicted(other, mirrored=False), ""


def _predicted(kept: EditedLogits, mirrored: bool) -> Float[Tensor, "image class"]:
    inference = kept.inference
    device = next(inference.network.parameters()).device
    forward = (lambda images: inference(images.flip(-1))) if mirrored else inference.ten_crop
    assert forward is not None
    with evaluating(inference):
        return predict(forward, image_loader(kept.images, 64), device).logits
