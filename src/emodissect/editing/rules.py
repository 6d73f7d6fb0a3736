"""Rules: turn chosen neurons into an operation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from torch import Tensor

from emodissect.core.errors import UserError, require_number
from emodissect.editing.operations import Operation, Scaling, per_neuron, require_factor, require_parameters


class Rule(ABC):
    """Turns chosen neurons into an operation, e.g. ``Scale(1.5)(labels["fc1"].similarity > 0)``.

    Attributes:
        name: its name in `edit=<name>`.
        uses_labels: whether it uses similarities, so that shuffled labels change the operation.
        needs_images: whether it must be fitted to images before use, see :meth:`fitted`.
    """

    name: ClassVar[str]
    uses_labels: ClassVar[bool] = False
    needs_images: ClassVar[bool] = False

    def fitted(self, kept: Any) -> Rule:
        """The rule fitted to a network and the images that the edit is chosen on (an `EditedLogits`)."""
        return self

    def __call__(self, selected: ArrayLike | Tensor, similarity: ArrayLike | Tensor | None = None) -> Operation:
        """The operation on the layer.

        Args:
            selected: True for each chosen neuron; a tensor, an array or a pandas column.
            similarity: each neuron's highest similarity, NaN for dead neurons; only for rules with `uses_labels`.

        Raises:
            UserError: the mask is not boolean, or similarities are required but missing.
        """
        chosen = mask(selected)
        if similarity is None:
            if self.uses_labels:
                raise UserError(
                    f"edit={self.name} needs similarities: call the rule as rule(selected, similarity), e.g. with "
                    "labels[layer].similarity."
                )
            return self.operation(chosen, torch.full((len(chosen),), torch.nan))
        known = per_neuron(similarity)
        if len(known) != len(chosen):
            raise UserError(f"The mask has {len(chosen)} neurons, but there are {len(known)} similarities.")
        return self.operation(chosen, known)

    @abstractmethod
    def operation(self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]) -> Operation:
        """As :meth:`__call__`, with tensors as arguments."""


def mask(selected: ArrayLike | Tensor) -> Bool[Tensor, " neuron"]:
    """A boolean mask of neurons from a tensor, an array, a pandas column or a list.

    Raises:
        UserError: the values are not boolean.
    """
    given = selected if isinstance(selected, Tensor) else np.asarray(selected)
    if given.dtype == object:  # pandas' nullable booleans
        given = given.astype(bool) if all(isinstance(value, bool) for value in given) else given
    if given.ndim != 1 or given.dtype not in (torch.bool, np.dtype(bool)):
        raise UserError(
            f"A selection must be one boolean per neuron, but this is {given.dtype} of shape "
            f"{tuple(given.shape)}. Compare it with a threshold first, e.g. similarity > 0."
        )
    return given.detach().cpu() if isinstance(given, Tensor) else torch.from_numpy(given.copy())


@dataclass(frozen=True)
class Scale(Rule):
    """Multiplies chosen neurons by `factor` and divides the rest by it: the published edit.

    Example:
        >>> Scale(2.0)([True, False]).values.tolist()
        [2.0, 0.5]
    """

    name: ClassVar[str] = "scale"
    factor: float = 1.5
    parameters: str = "weight"

    def __post_init__(self) -> None:
        _check(self.factor, self.parameters)

    def operation(self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]) -> Operation:
        return Scaling(_two_values(selected, self.factor, 1 / self.factor), self.parameters)


@dataclass(frozen=True)
class ScaleChosen(Rule):
    """Multiplies chosen neurons by `factor`; the rest are unchanged."""

    name: ClassVar[str] = "scale_chosen"
    factor: float = 1.5
    parameters: str = "weight"

    def __post_init__(self) -> None:
        _check(self.factor, self.parameters)

    def operation(self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]) -> Operation:
        return Scaling(_two_values(selected, self.factor, 1.0), self.parameters)


@dataclass(frozen=True)
class Proportional(Rule):
    """Multiplies chosen neurons by `factor` (similarity - min) / (max - min), with min and max over the layer.

    The rest, and chosen neurons without a similarity (dead), are unchanged. With selection=all this is the published
    rule.

    Raises:
        UserError: all similarities are equal, so the scale is undefined.
    """

    name: ClassVar[str] = "proportional"
    uses_labels: ClassVar[bool] = True
    factor: float = 1.5
    parameters: str = "weight"

    def __post_init__(self) -> None:
        _check(self.factor, self.parameters)

    def operation(self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]) -> Operation:
        known = similarity[~similarity.isnan()].double()
        if not len(known) or known.min() == known.max():
            raise UserError(
                "edit=proportional needs neurons with different similarities, but all are equal. Use edit=scale."
            )
        scale = self.factor * (similarity.double() - known.min()) / (known.max() - known.min())
        return Scaling(torch.where(selected & ~similarity.isnan(), scale, 1.0).float(), self.parameters)


@dataclass(frozen=True)
class Ablate(Rule):
    """Multiplies chosen neurons by 0; the rest are unchanged. With `parameters=weight` a neuron outputs its bias."""

    name: ClassVar[str] = "ablate"
    parameters: str = "weight"

    def __post_init__(self) -> None:
        require_parameters(self.parameters)

    def operation(self, selected: Bool[Tensor, " neuron"], similarity: Float[Tensor, " neuron"]) -> Operation:
        return Scaling(_two_values(selected, 0.0, 1.0), self.parameters)


def _check(factor: float, parameters: str) -> None:
    require_number("factor", factor)
    require_factor(factor)
    require_parameters(parameters)


def _two_values(selected: Bool[Tensor, " neuron"], chosen: float, rest: float) -> Float[Tensor, " neuron"]:
    return torch.where(selected, torch.tensor(chosen), torch.tensor(rest))
