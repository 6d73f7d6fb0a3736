"""What an edit does to a layer's neurons: a scale each, put on weights and taken back to the last bit. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from emodissect.core.errors import UserError, nearest, require_number
from emodissect.editing.editable import columns_scale, editable_layer, next_layer_of

PARAMETERS = ("weight", "weight_and_bias", "outgoing")


@dataclass(frozen=True, eq=False)
class Edit:
    """A scale per neuron of one layer.

    Attributes:
        layer: path of a convolution or linear layer.
        scale: what each neuron's weights are multiplied by.
        parameters: `weight` (the neuron's row), `weight_and_bias`, or `outgoing` (its columns in the next layer).
        next_layer: for `outgoing`, the layer that reads this one; None finds it.
    """

    layer: str
    scale: Float[Tensor, " neuron"]
    parameters: str = "weight"
    next_layer: str | None = None

    def __post_init__(self) -> None:
        if self.parameters not in PARAMETERS:
            raise UserError(f"edit.parameters={self.parameters} is not known. {nearest(self.parameters, PARAMETERS)}")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Turns chosen neurons into a scale. Called as `rule(selected, similarity)`."""

    name: ClassVar[str]
    uses_labels: ClassVar[bool] = False
    parameters: str = "weight"

    def __post_init__(self) -> None:
        if self.parameters not in PARAMETERS:
            raise UserError(f"edit.parameters={self.parameters} is not known. {nearest(self.parameters, PARAMETERS)}")
        factor = getattr(self, "factor", 1.0)
        require_number("factor", factor)
        if not (math.isfinite(factor) and factor > 0):
            raise UserError(
                f"factor={factor:g} scales nothing sensibly: give a number above 0, or use edit=ablate for 0."
            )

    def __call__(
        self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]
    ) -> Float[Tensor, " neuron"]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Scale(Rule):
    """Chosen neurons x `factor`, the rest / `factor`: the study's edit."""

    name: ClassVar[str] = "scale"
    factor: float = 1.5

    def __call__(
        self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]
    ) -> Float[Tensor, " neuron"]:
        return _two_values(selected, self.factor, 1 / self.factor)


@dataclass(frozen=True, kw_only=True)
class ScaleChosen(Rule):
    """Chosen neurons x `factor`, the rest as they are."""

    name: ClassVar[str] = "scale_chosen"
    factor: float = 1.5

    def __call__(
        self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]
    ) -> Float[Tensor, " neuron"]:
        return _two_values(selected, self.factor, 1.0)


@dataclass(frozen=True, kw_only=True)
class Proportional(Rule):
    """Chosen neurons x `factor` (similarity - min) / (max - min), min and max over the layer; the rest as they are.

    A chosen neuron without similarity (dead) is left as it is. With selection=all this is the study's rule.

    Raises:
        UserError: all similarities are equal, so nothing can be in proportion to them.
    """

    name: ClassVar[str] = "proportional"
    uses_labels: ClassVar[bool] = True
    factor: float = 1.5

    def __call__(
        self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]
    ) -> Float[Tensor, " neuron"]:
        known = similarity[~similarity.isnan()].double()
        if not len(known) or known.min() == known.max():
            raise UserError(
                "edit=proportional needs neurons of different similarity; here all have the same. Use edit=scale."
            )
        scale = self.factor * (similarity.double() - known.min()) / (known.max() - known.min())
        return torch.where(selected & ~similarity.isnan(), scale, 1.0).float()


@dataclass(frozen=True, kw_only=True)
class Ablate(Rule):
    """Chosen neurons x 0, the rest as they are. With `parameters=weight` a neuron keeps its bias, a constant."""

    name: ClassVar[str] = "ablate"

    def __call__(
        self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]
    ) -> Float[Tensor, " neuron"]:
        return _two_values(selected, 0.0, 1.0)


@contextmanager
def edited(network: nn.Module, *edits: Edit) -> Iterator[nn.Module]:
    """The network with its weights edited; on leaving, also by an exception, every bit is as it was.

    Rows of `weight` (and `bias`) are multiplied by the neuron's scale; for `outgoing`, the columns of the next layer
    that read the neuron, repeated over the positions of a flattened map. Several edits, also of one layer, and nested
    contexts are applied one after the other. Everything is checked before anything is changed.

    Raises:
        UserError: unknown layer, a layer without rows of weights (BatchNorm, ReLU), a scale of another length or not
            finite, weights shared with another layer or computed by a parametrization, no single next layer.
    """
    planned = [change for edit in edits for change in _changes(network, edit)]
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for parameter, factor in planned:
                kept.append((parameter, parameter.detach().clone()))
                parameter.mul_(factor.to(parameter))
        yield network
    finally:
        with torch.no_grad():
            for parameter, original in reversed(kept):
                parameter.copy_(original)


def bake(network: nn.Module, *edits: Edit) -> dict[str, Tensor]:
    """A copy of the state dict with the edits in it; the network itself is left as it was."""
    with edited(network, *edits):
        return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _changes(network: nn.Module, edit: Edit) -> list[tuple[nn.Parameter, Tensor]]:
    module = editable_layer(network, edit.layer)
    weight = module._parameters["weight"]
    assert weight is not None
    if edit.scale.shape != weight.shape[:1]:
        raise UserError(f"Layer '{edit.layer}' has {len(weight)} neurons; the scale is {tuple(edit.scale.shape)} long.")
    if not bool(edit.scale.isfinite().all()):
        raise UserError(
            f"The scale for layer '{edit.layer}' holds NaN or infinity. Every neuron needs a finite number."
        )
    if edit.parameters == "outgoing":
        name = edit.next_layer or next_layer_of(network, edit.layer)
        reader = editable_layer(network, name)
        read_weight = reader._parameters["weight"]
        assert read_weight is not None
        columns = columns_scale(reader, edit.scale, edit.layer, name)
        return [(read_weight, columns.reshape(1, -1, *[1] * (read_weight.ndim - 2)))]
    changes = [(weight, edit.scale.reshape(-1, *[1] * (weight.ndim - 1)))]
    bias = module._parameters.get("bias")
    if edit.parameters == "weight_and_bias" and bias is not None:
        changes.append((bias, edit.scale))
    return changes


def _two_values(selected: Bool[Tensor, " neuron"], chosen: float, rest: float) -> Float[Tensor, " neuron"]:
    return torch.where(selected, torch.tensor(chosen), torch.tensor(rest))
