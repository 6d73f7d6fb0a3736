"""Reads an edit from a file: a scale per neuron, or edited weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from emodissect.core.errors import UserError
from emodissect.editing.operations import Operation, Scaling, Target
from emodissect.editing.other_weights import OtherWeights, change_of_neurons, fitting_weights, of_chosen
from emodissect.editing.rules import Rule
from emodissect.models.checkpoints import read_state_dict

_TABLES = (".csv", ".txt")


@dataclass(frozen=True)
class FromCheckpoint(Rule):
    """An edit from a file: a scale per neuron, or edited weights of the same network.

    Scales (`.csv` with a column `scale` in the order of the neurons, or one number per line) multiply the neurons'
    rows of weights. A checkpoint is compared with the network: where only the layer's rows are scaled (and its biases
    shifted), it becomes that edit of the neurons; otherwise all weights are replaced, without random-neuron controls.
    """

    name: ClassVar[str] = "from_checkpoint"
    needs_images: ClassVar[bool] = True
    path: str
    found: Operation | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise UserError(
                f"edit.path={self.path} does not exist. Give a checkpoint of the same network, or a .csv with one "
                "scale per neuron."
            )

    def fitted(self, kept: Any) -> FromCheckpoint:
        return replace(self, found=operation_in(self.path, kept.inference.network, kept.layer))

    def operation(self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]) -> Operation:
        if self.found is None:
            raise UserError("edit=from_checkpoint needs the network: call rule.fitted(EditedLogits(...)) first.")
        return of_chosen(self.found, selected)


def operation_in(path: str | Path, network: nn.Module, layer: str) -> Operation:
    """The operation on a layer's neurons that a file describes.

    Raises:
        UserError: the file cannot be read, belongs to another network, or changes nothing.
    """
    target = Target(network, layer)
    if Path(path).suffix.lower() in _TABLES:
        return Scaling(_numbers(path, target))
    given = fitting_weights(read_state_dict(path), network, f"edit.path={path}")
    found = change_of_neurons(given, network, layer, f"edit.path={path}")
    return found or OtherWeights(torch.zeros(target.neurons), path=str(path))


def _numbers(path: str | Path, target: Target) -> Float[Tensor, " neuron"]:
    try:
        table = pd.read_csv(path)
        if "scale" not in table:
            table = pd.read_csv(path, header=None, names=["scale"])
        numbers = table["scale"].to_numpy(dtype=np.float64, copy=True)
    except (ValueError, OSError) as error:
        raise UserError(
            f"edit.path={path} contains no scales ({error}); it needs a column 'scale', or one number per line."
        ) from error
    if len(numbers) != target.neurons:
        raise UserError(
            f"edit.path={path} has {len(numbers)} numbers, but layer '{target.layer}' has {target.neurons} neurons."
        )
    return torch.from_numpy(numbers).float()
