"""Edits by a user's own Python function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from emodissect.core.errors import UserError
from emodissect.editing.operations import Operation, Target
from emodissect.editing.other_weights import OtherWeights, change_of_neurons, fitting_weights, of_chosen
from emodissect.editing.rules import Rule


@dataclass(frozen=True)
class FromFunction(Rule):
    """An edit by a function that gets a copy of the network, and returns it edited or edits it in place.

    The result is compared with the network, as for a checkpoint
    (:class:`~emodissect.editing.from_file.FromCheckpoint`): where only the layer's rows are scaled, and its biases
    shifted, it becomes that edit of the neurons; otherwise all weights are replaced.

    Args:
        change: the function. It is called once for each edited layer.
        function: its name, which distinguishes several functions in the grid.
    """

    name: ClassVar[str] = "function"
    needs_images: ClassVar[bool] = True
    change: Callable[[nn.Module], nn.Module | None]
    function: str = ""
    found: Operation | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = self.function or getattr(self.change, "__name__", type(self.change).__name__)
        object.__setattr__(self, "function", named)

    def fitted(self, kept: Any) -> FromFunction:
        network = kept.inference.network
        working_copy = copy.deepcopy(network)
        returned = self.change(working_copy)
        changed = working_copy if returned is None else returned
        if not isinstance(changed, nn.Module):
            raise UserError(
                f"The function '{self.function}' returned a {type(changed).__name__}. It must return a network, or "
                "None if it edits its argument in place."
            )
        source = f"The function '{self.function}'"
        given = fitting_weights(changed.state_dict(), network, source)
        found = change_of_neurons(given, network, kept.layer, source)
        neurons = Target(network, kept.layer).neurons
        return replace(self, found=found or OtherWeights(torch.zeros(neurons), weights=given))

    def operation(self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]) -> Operation:
        if self.found is None:
            raise UserError("FromFunction needs the network: call rule.fitted(EditedLogits(...)) first.")
        return of_chosen(self.found, selected)
