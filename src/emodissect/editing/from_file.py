"""Edits that others made: a scale for each neuron, or edited weights, from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from emodissect.core.errors import UserError
from emodissect.editing.affine import ScalingAndShifting
from emodissect.editing.operations import Change, Operation, Scaling, Target
from emodissect.editing.rules import Rule
from emodissect.models.checkpoints import read_state_dict

_TABLES = (".csv", ".txt")
_CLOSE = 1e-5  # relative: what float32 rounding of a product leaves


@dataclass(frozen=True, eq=False)
class OtherWeights(Operation):
    """All of a network's weights replaced by those of a file, where they are no scaling of the layer's neurons.

    Its neurons have no values, so there are no random neurons to compare it with; it is always evaluated in full.

    Args:
        values: zeros, one a neuron.
        path: a checkpoint of the same architecture.
    """

    neutral = 0.0
    of_neurons: ClassVar[bool] = False
    path: str = ""

    def on_weights(self, target: Target) -> Sequence[Change]:
        state = target.network.state_dict(keep_vars=True)
        given = fitting_state(self.path, target.network)
        return [Change(state[name], _constant(value)) for name, value in given.items()]

    def on_output(self, output: Float[Tensor, "image neuron *position"], target: Target) -> Tensor:
        raise TypeError("other weights are no change of the layer's output")

    @property
    def is_identity(self) -> bool:
        return False

    @property
    def size(self) -> float:
        return 1.0

    def permuted(self, order: Int64[Tensor, " neuron"]) -> Self:
        return self


@dataclass(frozen=True)
class FromCheckpoint(Rule):
    """An edit from a file: numbers of neurons, or edited weights of the same network.

    Numbers (`.csv` with a column `scale` in the order of the neurons, or one number a line) multiply the neurons' rows
    of weights. Of a checkpoint the change is found out: where only the layer's rows are scaled (and its biases
    shifted), it is that edit of neurons; else all weights are replaced, without controls of neurons.

    Args:
        path: the file.
    """

    name: ClassVar[str] = "from_checkpoint"
    needs_images: ClassVar[bool] = True
    path: str
    found: Operation | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise UserError(
                f"edit.path={self.path} does not exist. Give a checkpoint of the same network, or a .csv with a scale "
                "for each neuron."
            )

    def fitted(self, kept: Any) -> FromCheckpoint:
        return replace(self, found=operation_in(self.path, kept.inference.network, kept.layer))

    def operation(self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]) -> Operation:
        if self.found is None:
            raise UserError("edit=from_checkpoint reads the network first: call rule.fitted(EditedLogits(...)).")
        if not self.found.of_neurons:
            return self.found
        neutral = torch.tensor(self.found.neutral)
        chosen = selected.reshape(-1, *[1] * (self.found.values.ndim - 1))
        return replace(self.found, values=torch.where(chosen, self.found.values, neutral))


def operation_in(path: str | Path, network: nn.Module, layer: str) -> Operation:
    """What a file does to a layer's neurons.

    Raises:
        UserError: it cannot be read, is of another network, or changes nothing.
    """
    target = Target(network, layer)
    if Path(path).suffix.lower() in _TABLES:
        return Scaling(_numbers(path, target))
    given = fitting_state(path, network)
    own = network.state_dict()
    changed = {name for name, value in given.items() if not torch.equal(value, own[name].cpu())}
    if not changed:
        raise UserError(f"edit.path={path} holds the very weights of this network: nothing was edited.")
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    scale = row_scale(own[weight].cpu(), given[weight]) if changed <= {weight, bias} else None
    if scale is None:
        return OtherWeights(torch.zeros(target.neurons), path=str(path))
    if bias not in changed:
        return Scaling(scale)
    if torch.allclose(given[bias], scale * own[bias].cpu(), rtol=_CLOSE, atol=1e-8):
        return Scaling(scale, "weight_and_bias")
    return ScalingAndShifting(torch.stack([scale, given[bias] - scale * own[bias].cpu()], 1))


def fitting_state(path: str | Path, network: nn.Module) -> dict[str, Tensor]:
    """A file's weights by the network's own names.

    Raises:
        UserError: a weight is missing or has another shape.
    """
    given, own = read_state_dict(path), network.state_dict()
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    absent = [name for name in wanted if name not in given or given[name].shape != own[name].shape]
    if absent:
        raise UserError(
            f"edit.path={path} is of another network: {len(absent)} of {len(wanted)} weights are missing or have "
            f"another shape, the first '{absent[0]}'. An edited network of the same architecture is accepted."
        )
    return {name: given[name].to(own[name].dtype).cpu() for name in wanted}


def row_scale(before: Tensor, after: Tensor) -> Float[Tensor, " neuron"] | None:
    """The number that each row was multiplied by; None where a row changed otherwise."""
    old, new = before.flatten(1).double(), after.flatten(1).double()
    length = (old**2).sum(1)
    scale = torch.where(length > 0, (old * new).sum(1) / length.clamp_min(1e-300), torch.ones_like(length))
    rest = (new - scale[:, None] * old).norm(dim=1)
    return None if bool((rest > _CLOSE * new.norm(dim=1).clamp_min(1e-12)).any()) else scale.float()


def _numbers(path: str | Path, target: Target) -> Float[Tensor, " neuron"]:
    try:
        table = pd.read_csv(path)
        if "scale" not in table:
            table = pd.read_csv(path, header=None, names=["scale"])
        numbers = table["scale"].to_numpy(dtype=np.float64, copy=True)
    except (ValueError, OSError) as error:
        raise UserError(
            f"edit.path={path} holds no scales ({error}): a column 'scale', or one number a line, is accepted."
        ) from error
    if len(numbers) != target.neurons:
        raise UserError(
            f"edit.path={path} holds {len(numbers)} numbers, and layer '{target.layer}' has {target.neurons} neurons."
        )
    return torch.from_numpy(numbers).float()


def _constant(value: Tensor) -> Any:
    return lambda old: value.to(old)
