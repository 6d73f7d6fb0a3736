"""The study's VGG for 40 x 40 grey faces, at any width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emodissect.core.errors import UserError
from emodissect.models.network_input import require_input

torch.fx.wrap("require_input")  # one opaque call in a traced graph

_CHANNELS = {"1": 64, "2": 128, "3": 256, "4": 512}
_HIDDEN = 4096
_DEFAULT_WIDTH = 0.25


class VGG(nn.Module):
    """Four stages of two convolutions, then three linear layers, by the study's submodule names.

    Stage s in 1..4, half h in a, b: `conv{s}{h}` (3x3, pad 1) -> `bn{s}{h}` -> `relu{s}{h}`; after each stage
    `pool{s}` (max, 2). Then `lin1`, `lin2`, each -> `drop_lin*` -> `relu_lin*`, and `lin3` gives the logits.
    Channels 64, 128, 256, 512 and hidden width 4096, all times `width`: 29,890,759 parameters at width 1.
    Only conv, bn and lin have state, so state dicts of the released model fit width 1 key by key. No operation is
    in place, so tensors seen by hooks are not modified.

    Args:
        width: factor of channels and hidden widths; None means 0.25 (for a checkpoint, call `arguments_of` first).

    Source: Khaireddin & Chen, "Facial Emotion Recognition: State of the Art Performance on FER2013", 2021.
    """

    size = 40

    def __init__(
        self, num_classes: int = 7, width: float | None = None, dropout: float = 0.2, channels: int = 1
    ) -> None:
        super().__init__()
        width = _DEFAULT_WIDTH if width is None else float(width)
        if not 0.01 <= width <= 4:
            raise UserError(f"model.width={width:g} is not a width of this VGG: 0.01 to 4 (1 is the published size).")
        self.width, self.num_classes, self.channels = width, num_classes, channels
        before = channels
        for stage, full in _CHANNELS.items():
            maps = _scaled(full, width)
            for half in "ab":
                self.add_module(f"conv{stage}{half}", nn.Conv2d(before, maps, 3, padding=1))
                self.add_module(f"bn{stage}{half}", nn.BatchNorm2d(maps))
                self.add_module(f"relu{stage}{half}", nn.ReLU())
                before = maps
            self.add_module(f"pool{stage}", nn.MaxPool2d(2))
        hidden = _scaled(_HIDDEN, width)
        self.lin1 = nn.Linear(before * 2 * 2, hidden)
        self.drop_lin1, self.relu_lin1 = nn.Dropout(dropout), nn.ReLU()
        self.lin2 = nn.Linear(hidden, hidden)
        self.drop_lin2, self.relu_lin2 = nn.Dropout(dropout), nn.ReLU()
        self.lin3 = nn.Linear(hidden, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.lin3.weight, std=0.01)  # so that the first loss is about log(classes)

    def forward(self, images: Float[Tensor, "image channel 40 40"]) -> Float[Tensor, "image class"]:
        """Logits of the images.

        Raises:
            UserError: images of another size or number of channels.
        """
        x = require_input(images, "VGG", self.channels, self.size)
        for stage in _CHANNELS:
            for half in "ab":
                for part in ("conv", "bn", "relu"):
                    x = getattr(self, f"{part}{stage}{half}")(x)
            x = getattr(self, f"pool{stage}")(x)
        x = torch.flatten(x, 1)
        x = self.relu_lin1(self.drop_lin1(self.lin1(x)))
        x = self.relu_lin2(self.drop_lin2(self.lin2(x)))
        return self.lin3(x)

    @staticmethod
    def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Constructor arguments that fit a state dict, or {} if it is not a state dict of this VGG."""
        wanted = ("conv1a.weight", "conv4b.weight", "lin1.weight", "lin2.weight", "lin3.weight")
        if any(name not in state for name in wanted) or state["conv1a.weight"].ndim != 4:
            return {}
        width = state["lin1.weight"].shape[0] / _HIDDEN
        if state["conv4b.weight"].shape[0] != _scaled(_CHANNELS["4"], width):
            return {}
        return {
            "width": width,
            "num_classes": int(state["lin3.weight"].shape[0]),
            "channels": int(state["conv1a.weight"].shape[1]),
        }


def _scaled(full: int, width: float) -> int:
    return max(1, round(full * width))
