"""Edits of a layer's weights: applied temporarily and restored exactly, or baked into a state dict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from emodissect.editing.operations import Change, Operation, Scaling, Target


@dataclass(frozen=True, eq=False, init=False)
class Edit:
    """A layer and the operation on its neurons.

    Args:
        layer: path of a convolution or linear layer.
        operation: the result of a rule, or a number per neuron (tensor, array, pandas column) that multiplies the
            neuron's row of weights.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3))
        >>> edit = Edit("0", [2.0, 1.0, 0.0])
        >>> with edited(network, edit):
        ...     bool((network[0].weight[2] == 0).all())
        True
    """

    layer: str
    operation: Operation

    def __init__(self, layer: str, operation: Operation | ArrayLike | Tensor) -> None:
        object.__setattr__(self, "layer", layer)
        given = operation if isinstance(operation, Operation) else Scaling(operation)  # type: ignore[arg-type]
        object.__setattr__(self, "operation", given)

    def changes(self, network: nn.Module, example: Tensor | None = None) -> list[Change]:
        """The parameters that change, and how, after checking that the edit fits the network.

        Raises:
            UserError: as :func:`edited`.
        """
        target = Target(network, self.layer, example, getattr(self.operation, "next_layer", None))
        self.operation.check(target)
        return list(self.operation.on_weights(target))


@contextmanager
def edited(network: nn.Module, *edits: Edit) -> Iterator[nn.Module]:
    """Context manager that edits the network's weights and restores every bit on exit, also after an exception.

    Several edits, even of the same layer, and nested contexts are applied one after the other. All edits are checked
    before any weight is changed.

    Raises:
        UserError: unknown layer, a layer without rows of weights (BatchNorm, ReLU), a wrong number of values or
            non-finite ones, weights shared with another layer or computed by a parametrization, no unique next layer
            where one is needed.
    """
    planned = [change for edit in edits for change in edit.changes(network)]
    originals: list[tuple[nn.Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for parameter, of in planned:
                originals.append((parameter, parameter.detach().clone()))
                parameter.copy_(of(parameter))
        yield network
    finally:
        with torch.no_grad():
            for parameter, original in reversed(originals):
                parameter.copy_(original)


def bake(network: nn.Module, *edits: Edit) -> dict[str, Tensor]:
    """A copy of the state dict with the edits applied; the network itself is unchanged."""
    with edited(network, *edits):
        return {name: value.detach().clone() for name, value in network.state_dict().items()}
