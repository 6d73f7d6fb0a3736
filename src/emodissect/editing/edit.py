"""An edit of one layer, applied to the weights and reverted exactly, or baked."""

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
    """What is done to the neurons of one layer.

    Args:
        layer: path of a convolution or linear layer.
        operation: what a rule gives, or simply a number for each neuron (tensor, array, pandas column) by which its
            row of weights is multiplied.

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
        """The parameters that change, and how; everything that could be wrong is looked at.

        Raises:
            UserError: as :func:`edited`.
        """
        target = Target(network, self.layer, example, getattr(self.operation, "next_layer", None))
        self.operation.check(target)
        return list(self.operation.on_weights(target))


@contextmanager
def edited(network: nn.Module, *edits: Edit) -> Iterator[nn.Module]:
    """The network with its weights edited; on leaving, also by an exception, every bit is as it was.

    Several edits, also of one layer, and nested contexts are applied one after the other. Everything is checked
    before anything is changed.

    Raises:
        UserError: unknown layer, a layer without rows of weights (BatchNorm, ReLU), values for another number of
            neurons or not finite, weights shared with another layer or computed by a parametrization, no single next
            layer where one is needed.
    """
    planned = [change for edit in edits for change in edit.changes(network)]
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for parameter, of in planned:
                kept.append((parameter, parameter.detach().clone()))
                parameter.copy_(of(parameter))
        yield network
    finally:
        with torch.no_grad():
            for parameter, original in reversed(kept):
                parameter.copy_(original)


def bake(network: nn.Module, *edits: Edit) -> dict[str, Tensor]:
    """A copy of the state dict with the edits in it; the network itself is left as it was."""
    with edited(network, *edits):
        return {name: value.detach().clone() for name, value in network.state_dict().items()}
