"""Shifts neurons' outputs by a constant: the operation and its rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emodissect.core.errors import UserError, require_number
from emodissect.editing.operations import Change, Operation, Target, by_neuron
from emodissect.editing.rules import Rule


@dataclass(frozen=True, eq=False)
class Shifting(Operation):
    """Adds a number to each neuron's output, through its bias."""

    neutral = 0.0

    def on_weights(self, target: Target) -> Sequence[Change]:
        return [Change(target.bias, lambda bias: bias + self.values.to(bias))] if target.bias is not None else []

    def on_output(self, output: Float[Tensor, "image neuron *position"], target: Target) -> Tensor:
        return output + by_neuron(self.values, output)

    def check(self, target: Target) -> None:
        super().check(target)
        if target.bias is None:
            raise UserError(
                f"Layer '{target.layer}' has no bias, so its output cannot be shifted. Choose another layer, "
                "or use edit=scale."
            )


@dataclass(frozen=True)
class Shift(Rule):
    """Adds `amount` to the output of chosen neurons; before a ReLU, negative amounts make neurons fire more rarely."""

    name: ClassVar[str] = "shift"
    amount: float = 0.1

    def __post_init__(self) -> None:
        require_number("edit.amount", self.amount)

    def operation(self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]) -> Operation:
        return Shifting(torch.where(selected, torch.tensor(float(self.amount)), torch.tensor(0.0)))
