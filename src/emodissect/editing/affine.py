"""Neurons whose output is scaled and shifted, each by numbers of its own. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from emodissect.core.errors import UserError
from emodissect.editing.operations import Change, Operation, Target, by_neuron


@dataclass(frozen=True, eq=False)
class ScalingAndShifting(Operation):
    """Each neuron's output z becomes s z + t: its row of weights times s, its bias b becomes s b + t.

    Args:
        values: (s, t) by neuron.

    Source: SSF, Lian et al. 2022 (arXiv 2210.08823).
    """

    neutral = (1.0, 0.0)

    def on_weights(self, target: Target) -> Sequence[Change]:
        scale, shift = self.values.unbind(1)
        rows = scale.reshape(-1, *[1] * (target.weight.ndim - 1))
        changes = [Change(target.weight, lambda weight: weight * rows.to(weight))]
        if target.bias is not None:
            changes.append(Change(target.bias, lambda bias: bias * scale.to(bias) + shift.to(bias)))
        return changes

    def on_output(self, output: Float[Tensor, "image neuron *position"], target: Target) -> Tensor:
        scale, shift = self.values.unbind(1)
        return output * by_neuron(scale, output) + by_neuron(shift, output)

    def check(self, target: Target) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != 2:
            raise UserError(
                f"A scaling with a shift takes two numbers for each neuron (s, t); these values have the shape "
                f"{tuple(self.values.shape)}."
            )
        super().check(target)
        if target.bias is None and bool((self.values[:, 1] != 0).any()):
            raise UserError(
                f"Layer '{target.layer}' has no bias, so its output cannot be shifted. Learn the scale alone "
                "(edit.shift=false), or choose another layer."
            )
