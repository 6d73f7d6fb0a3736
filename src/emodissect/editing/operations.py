"""Operations on a layer's neurons, each defined on the weights and, equivalently, on the layer's output."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import ArrayLike
from torch import Tensor, nn

from emodissect.core.errors import UserError, nearest
from emodissect.editing.editable import columns_scale, editable_layer, next_layer_of

PARAMETERS = ("weight", "weight_and_bias", "outgoing")


@dataclass(frozen=True)
class Target:
    """The layer that an operation acts on, in its network.

    Attributes:
        layer: path of a convolution or linear layer.
        example: an input batch, for networks whose control flow depends on its shape.
        next_layer: the layer that reads this one; None finds it automatically.
    """

    network: nn.Module
    layer: str
    example: Tensor | None = None
    next_layer: str | None = None

    @cached_property
    def module(self) -> nn.Module:
        """The layer itself. Raises UserError where its neurons are not rows of weights."""
        return editable_layer(self.network, self.layer)

    @property
    def weight(self) -> nn.Parameter:
        """The layer's weight, one row per neuron."""
        return self.module._parameters["weight"]  # type: ignore[return-value]

    @property
    def bias(self) -> nn.Parameter | None:
        """The layer's bias, one number per neuron; None where it has none."""
        return self.module._parameters.get("bias")

    @property
    def neurons(self) -> int:
        return len(self.weight)

    @cached_property
    def reader_name(self) -> str:
        """Path of the layer that reads this one. Raises UserError where it is not unique."""
        return self.next_layer or next_layer_of(self.network, self.layer, self.example)

    @property
    def reader(self) -> nn.Module:
        """The layer that reads this one."""
        return editable_layer(self.network, self.reader_name)


class Change(NamedTuple):
    """A parameter and a function that maps its value to the new one."""

    parameter: nn.Parameter
    of: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Operation(ABC):
    """A change to the neurons of one layer, parametrised by one or more numbers per neuron.

    A new operation implements :meth:`on_weights` and :meth:`on_output`; grids, controls, the fast path and files need
    nothing else. That the two are equivalent is checked on images before an operation is used.

    Attributes:
        values: the number of each neuron; further axes where a neuron has several.
        neutral: the value (or values) that change nothing.
        of_neurons: whether it changes each neuron separately; otherwise it is evaluated in full and has no controls.
        reads_next: whether it acts on the input of the next layer, not on the layer's own output.
    """

    values: Float[Tensor, neuron * number]
    neutral: ClassVar[float | tuple[float, ...]]
    of_neurons: ClassVar[bool] = True
    known: ClassVar[dict[str, type[Operation]]] = {}

    def __init_subclass__(cls, **further: Any) -> None:
        super().__init_subclass__(**further)
        Operation.known[cls.__name__] = cls

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", per_neuron(self.values))

    @abstractmethod
    def on_weights(self, target: Target) -> Sequence[Change]:
        """The parameters that change, and how."""

    @abstractmethod
    def on_output(self, output: Float[Tensor, "image neuron *position"], target: Target) -> Tensor:
        """The same change applied to the layer's output (or the next layer's input), as a new tensor."""

    @property
    def reads_next(self) -> bool:
        return False

    @property
    def is_identity(self) -> bool:
        """Whether no neuron is changed."""
        return bool((self.values == torch.tensor(self.neutral)).all())

    @property
    def size(self) -> float:
        """Size of the change: the mean distance from the neutral value. Breaks ties between equally good edits."""
        return float((self.values.double() - torch.tensor(self.neutral, dtype=torch.float64)).abs().mean())

    @property
    def kind(self) -> tuple[Any, ...]:
        """Key shared by operations that differ only in their values."""
        return (type(self), *(getattr(self, field.name) for field in fields(self) if field.name != "values"))

    def permuted(self, order: Int64[Tensor, " neuron"]) -> Self:
        """A copy with permuted values: neuron i gets those of neuron order[i]."""
        return replace(self, values=self.values[order])

    def uniform(self, value: float | tuple[float, ...]) -> Self:
        """A copy with one value (or tuple of values) for all neurons."""
        return replace(self, values=torch.tensor(value).expand(self.values.shape).clone())

    def bound(self, target: Target) -> Self:
        """A copy with everything filled in that depends on the network's graph, e.g. the next layer."""
        return self

    def plain(self) -> dict[str, Any]:
        """Its class name and all fields except the values, as JSON values."""
        further = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "values"}
        return {"name": type(self).__name__, **further}

    @staticmethod
    def from_plain(row: dict[str, Any], values: Tensor) -> Operation:
        """The inverse of :meth:`plain`.

        Raises:
            UserError: the class is unknown; the module that defines it was not imported.
        """
        name = str(row["name"])
        if name not in Operation.known:
            raise UserError(
                f"The operation '{name}' of the edit is unknown. {nearest(name, sorted(Operation.known))} Import the "
                "module that defines it first."
            )
        return Operation.known[name](values, **{key: value for key, value in row.items() if key != "name"})

    def check(self, target: Target) -> None:
        """Raises UserError where the values do not fit the layer."""
        if len(self.values) != target.neurons:
            raise UserError(
                f"Layer '{target.layer}' has {target.neurons} neurons, but the edit has values for {len(self.values)}."
            )
        if not bool(self.values.isfinite().all()):
            raise UserError(
                f"The edit of layer '{target.layer}' contains NaN or infinity. Every neuron needs a finite number."
            )


@dataclass(frozen=True, eq=False)
class Scaling(Operation):
    """Multiplies each neuron's weights by a number.

    With z = W x + b the layer's output and s the number: `weight` gives s (z - b) + b, `weight_and_bias` s z, and
    `outgoing` multiplies the neuron's columns in the next layer, repeated over the positions of a flattened map.

    Args:
        values: s per neuron.
        parameters: `weight`, `weight_and_bias` or `outgoing`.
        next_layer: for `outgoing`, the layer that reads this one; None finds it automatically.
    """

    neutral = 1.0
    parameters: str = "weight"
    next_layer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_parameters(self.parameters)

    @property
    def reads_next(self) -> bool:
        return self.parameters == "outgoing"

    @property
    def size(self) -> float:
        """Mean |log s|; an ablated neuron counts as scaled by 1e-6."""
        return float(self.values.double().abs().clamp_min(1e-6).log().abs().mean())

    def bound(self, target: Target) -> Self:
        return replace(self, next_layer=target.reader_name) if self.reads_next else self

    def on_weights(self, target: Target) -> list[Change]:
        if self.parameters == "outgoing":
            columns = columns_scale(target.reader, self.values, target.layer, target.reader_name)
            weight: nn.Parameter = target.reader._parameters["weight"]  # type: ignore[assignment]
            return [_times(weight, columns.reshape(1, -1, *[1] * (weight.ndim - 2)))]
        changes = [_times(target.weight, self.values.reshape(-1, *[1] * (target.weight.ndim - 1)))]
        if self.parameters == "weight_and_bias" and target.bias is not None:
            changes.append(_times(target.bias, self.values))
        return changes

    def on_output(self, output: Float[Tensor, "image neuron *position"], target: Target) -> Tensor:
        scale = by_neuron(self.values, output)
        if self.parameters == "weight" and target.bias is not None:
            return torch.addcmul((1 - scale) * by_neuron(target.bias, output), output, scale)
        return output * scale


@dataclass(frozen=True, eq=False)
class ScalingAndShifting(Operation):
    """Changes each neuron's output z to s z + t: its row of weights is multiplied by s, its bias b becomes s b + t.

    Args:
        values: (s, t) per neuron.

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
                f"A scaling with a shift takes two numbers per neuron (s, t), but the values have shape "
                f"{tuple(self.values.shape)}."
            )
        super().check(target)
        if target.bias is None and bool((self.values[:, 1] != 0).any()):
            raise UserError(
                f"Layer '{target.layer}' has no bias, so its output cannot be shifted. Learn only the scale "
                "(edit.shift=false), or choose another layer."
            )


def distinct(operations: Sequence[Operation]) -> tuple[list[Operation], list[int]]:
    """Unique operations, and the index of each given one among them; those that change nothing count as equal."""
    places: dict[Any, int] = {}
    found: list[Operation] = []
    where = []
    for each in operations:
        key = "unchanged" if each.is_identity else (each.kind, each.values.numpy().tobytes())
        if key not in places:
            places[key] = len(found)
            found.append(each)
        where.append(places[key])
    return found, where


def per_neuron(values: ArrayLike | Tensor) -> Float[Tensor, neuron * number]:
    """One number per neuron, as a float32 tensor, from a tensor, an array, a pandas column or a list.

    Raises:
        UserError: the values are not numeric, or are a single number.
    """
    try:
        numbers = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise UserError(f"The values of an edit must be one number per neuron ({error}).") from error
    if numbers.ndim == 0:
        raise UserError(f"{float(numbers):g} is a single number; an edit takes one per neuron of the layer.")
    return numbers.detach().float().cpu()


def by_neuron(numbers: Tensor, output: Float[Tensor, "image neuron *position"]) -> Tensor:
    """Per-neuron numbers, reshaped to broadcast over the layer's output."""
    return numbers.to(output).reshape(-1, *[1] * (output.ndim - 2))


def require_parameters(word: str) -> None:
    """Raises UserError for an unknown `edit.parameters`."""
    if word not in PARAMETERS:
        raise UserError(f"edit.parameters={word} is not known. {nearest(word, PARAMETERS)}")


def require_factor(factor: float) -> None:
    """Raises UserError for a factor that is not finite and above 0."""
    if not (math.isfinite(factor) and factor > 0):
        raise UserError(f"factor={factor:g} must be above 0; to set neurons to zero use edit=ablate.")


def _times(parameter: nn.Parameter, factor: Tensor) -> Change:
    return Change(parameter, lambda value: value * factor.to(value))
