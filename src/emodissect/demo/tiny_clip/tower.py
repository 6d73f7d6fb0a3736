"""The tiny CLIP's image tower: a plain convolutional network for 48 x 48 faces, which open_clip finds through timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.models import register_model
from torch import Tensor, nn

IMAGE_SIZE = 48


class FaceTower(nn.Module):
    """Stages of [convolution 3x3 -> BatchNorm -> ReLU], halved between stages, read out place by place.

    The last map is flattened, not averaged: where something is in a face says what it is. The first convolution has
    stride 2, which makes the tower about twice as cheap and keeps what the drawings show.
    """

    def __init__(self, widths: Sequence[int] = (24, 48, 96, 192), depths: Sequence[int] = (2, 2, 2, 1)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for place in range(depth):
                stride = 2 if stage == place == 0 else 1
                layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
                before = width
        self.layers = nn.Sequential(*layers)
        side = IMAGE_SIZE // 2 ** len(widths)
        self.num_features = widths[-1] * side * side
        self.default_cfg: dict[str, Any] = {"pool_size": (side, side)}

    def reset_classifier(self, num_classes: int, global_pool: str = "") -> None:
        """Nothing to take away: the tower has no classifier. Called by open_clip's timm adapter."""

    def forward(self, images: Float[Tensor, "image 3 48 48"]) -> Float[Tensor, "image feature"]:
        return torch.flatten(self.layers(images), 1)


@register_model
def face_tower(pretrained: bool = False, **ignored: Any) -> FaceTower:
    """The tower by its name in ``tiny-face-clip.json``; its weights come with the CLIP's."""
    return FaceTower()
