"""Edited weights of a network, and what they do to the neurons of one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from emodissect.core.errors import UserError
from emodissect.editing.operations import Change, Operation, Scaling, ScalingAndShifting, Target
from emodissect.models.checkpoints import read_state_dict

_CLOSE = 1e-5  # relative: what float32 rounding of a product leaves


@dataclass(frozen=True, eq=False)
class OtherWeights(Operation):
    """All of a network's weights replaced by others, where they are not a scaling of the layer's neurons.

    Its neurons have no values, so there are no random neurons to compare it with; it is always evaluated in full.

    Args:
        values: zeros, one a neuron.
        path: a checkpoint of the same architecture; empty where a function made the weights.
        weights: the function's; they are not kept with a saved study.
    """

    neutral = 0.0
    of_neurons: ClassVar[bool] = False
    path: str = ""
    weights: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def on_weights(self, target: Target) -> Sequence[Change]:
        given = self.weights
        if given is None:
            if not self.path:
                raise UserError("A function made the weights of this edit, and a saved study does not hold them.")
            given = fitting_weights(read_state_dict(self.path), target.network, f"edit.path={self.path}")
        state = target.network.state_dict(keep_vars=True)
        return [Change(state[name], _constant(value)) for name, value in given.items()]

    def on_output(self, output: Float[Tensor, "image neuron *position"], target: Target) -> Tensor:
        raise TypeError("replacing all weights is not a change of the layer's output")

    @property
    def is_identity(self) -> bool:
        return False

    @property
    def size(self) -> float:
        return 1.0

    @property
    def kind(self) -> tuple[Any, ...]:
        return (type(self), self.path, id(self.weights))

    def plain(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "path": self.path}

    def permuted(self, order: Int64[Tensor, " neuron"]) -> Self:
        return self


def change_of_neurons(given: Mapping[str, Tensor], network: nn.Module, layer: str, source: str) -> Operation | None:
    """What edited weights do to a layer's neurons; None where they are not a scale and shift of them.

    Args:
        given: as :func:`fitting_weights` gives them.
        source: where they are from, as an error says it.

    Raises:
        UserError: they are the network's own.
    """
    own = network.state_dict()
    changed = {name for name, value in given.items() if not torch.equal(value, own[name].cpu())}
    if not changed:
        raise UserError(f"{source} gives the same weights as this network: nothing was edited.")
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    scale = row_scale(own[weight].cpu(), given[weight]) if changed <= {weight, bias} else None
    if scale is None:
        return None
    if bias not in changed:
        return Scaling(scale)
    if torch.allclose(given[bias], scale * own[bias].cpu(), rtol=_CLOSE, atol=1e-8):
        return Scaling(scale, "weight_and_bias")
    return ScalingAndShifting(torch.stack([scale, given[bias] - scale * own[bias].cpu()], 1))


def fitting_weights(given: Mapping[str, Tensor], network: nn.Module, source: str) -> dict[str, Tensor]:
    """Weights by the network's own names.

    Raises:
        UserError: a weight is missing or has another shape.
    """
    own = network.state_dict()
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    absent = [name for name in wanted if name not in given or given[name].shape != own[name].shape]
    if absent:
        raise UserError(
            f"{source} is of another network: {len(absent)} of {len(wanted)} weights are missing or have "
            f"another shape, the first '{absent[0]}'. An edited network of the same architecture is accepted."
        )
    return {name: given[name].detach().to(own[name].dtype).cpu() for name in wanted}


def row_scale(before: Tensor, after: Tensor) -> Float[Tensor, " neuron"] | None:
    """The number that each row was multiplied by; None where a row changed otherwise."""
    old, new = before.flatten(1).double(), after.flatten(1).double()
    length = (old**2).sum(1)
    scale = torch.where(length > 0, (old * new).sum(1) / length.clamp_min(1e-300), torch.ones_like(length))
    rest = (new - scale[:, None] * old).norm(dim=1)
    return None if bool((rest > _CLOSE * new.norm(dim=1).clamp_min(1e-12)).any()) else scale.float()


def of_chosen(found: Operation, selected: Tensor) -> Operation:
    """The operation on the chosen neurons alone; other weights are taken whole."""
    if not found.of_neurons:
        return found
    chosen = selected.reshape(-1, *[1] * (found.values.ndim - 1))
    return replace(found, values=torch.where(chosen, found.values, torch.tensor(found.neutral)))


def _constant(value: Tensor) -> Any:
    return lambda old: value.to(old)
