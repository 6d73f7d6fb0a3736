"""Replaces all weights of a network, and recognises edited weights that only scale or shift a layer's neurons."""

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

_CLOSE = 1e-5  # relative tolerance for float32 rounding of a product


@dataclass(frozen=True, eq=False)
class OtherWeights(Operation):
    """Replaces all of a network's weights, for edits that are not a scaling of the layer's neurons.

    There are no per-neuron values, hence no random neurons to compare it with; it is always evaluated in full.

    Args:
        values: zeros, one per neuron.
        path: a checkpoint of the same architecture; empty where a function made the weights.
        weights: the weights made by a function; they are not stored with a saved study.
    """

    neutral = 0.0
    of_neurons: ClassVar[bool] = False
    path: str = ""
    weights: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def on_weights(self, target: Target) -> Sequence[Change]:
        given = self.weights
        if given is None:
            if not self.path:
                raise UserError("The weights of this edit were made by a function and are not stored with the study.")
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
    """The operation on a layer's neurons that turns the network's weights into the given ones.

    None where they are not a scale and shift of the neurons.

    Args:
        given: weights from :func:`fitting_weights`.
        source: where they come from, for error messages.

    Raises:
        UserError: they equal the network's own weights.
    """
    own = network.state_dict()
    changed = {name for name, value in given.items() if not torch.equal(value, own[name].cpu())}
    if not changed:
        raise UserError(f"{source} has the same weights as this network, so there is no edit.")
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
    """The weights of a state dict that the network has, by the network's names and in its dtypes.

    Raises:
        UserError: a weight is missing or has a different shape.
    """
    own = network.state_dict()
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    absent = [name for name in wanted if name not in given or given[name].shape != own[name].shape]
    if absent:
        raise UserError(
            f"{source} does not match this network: {len(absent)} of {len(wanted)} weights are missing or have a "
            f"different shape, e.g. '{absent[0]}'. It must be an edited network of the same architecture."
        )
    return {name: given[name].detach().to(own[name].dtype).cpu() for name in wanted}


def row_scale(before: Tensor, after: Tensor) -> Float[Tensor, " neuron"] | None:
    """The number that each row was multiplied by; None where a row changed in any other way."""
    old, new = before.flatten(1).double(), after.flatten(1).double()
    length = (old**2).sum(1)
    scale = torch.where(length > 0, (old * new).sum(1) / length.clamp_min(1e-300), torch.ones_like(length))
    rest = (new - scale[:, None] * old).norm(dim=1)
    return None if bool((rest > _CLOSE * new.norm(dim=1).clamp_min(1e-12)).any()) else scale.float()


def of_chosen(found: Operation, selected: Tensor) -> Operation:
    """The operation restricted to the chosen neurons; an :class:`OtherWeights` is returned unchanged."""
    if not found.of_neurons:
        return found
    chosen = selected.reshape(-1, *[1] * (found.values.ndim - 1))
    return replace(found, values=torch.where(chosen, found.values, torch.tensor(found.neutral)))


def _constant(value: Tensor) -> Any:
    return lambda old: value.to(old)
