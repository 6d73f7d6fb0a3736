"""Selections: choose the neurons of a layer to edit, as a boolean mask.

Every selection is called as `selection(neurons, module)`: the layer's rows of the neuron labels, sorted by neuron, and
the layer's module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from emodissect.core.errors import UserError, nearest, require_number


@runtime_checkable
class Selection(Protocol):
    """The interface of a selection of neurons.

    A selection that uses images instead of labels has `needs_images` and `fitted`, see :func:`fitted`.

    Attributes:
        name: its name in `selection=<name>`.
        uses_labels: whether it uses the neuron labels; if not, shuffling the labels changes nothing.
    """

    name: ClassVar[str]

    @property
    def uses_labels(self) -> bool: ...

    def __call__(self, neurons: pd.DataFrame, module: nn.Module) -> Bool[Tensor, " neuron"]: ...


def needs_images(choice: object) -> bool:
    """Whether a selection or a rule must be fitted to images before use."""
    return bool(getattr(choice, "needs_images", False))


def fitted(choice: Any, kept: Any) -> Any:
    """A selection or a rule fitted to a network and the images that the edit is chosen on (an `EditedLogits`)."""
    return choice.fitted(kept) if needs_images(choice) else choice


@dataclass(frozen=True)
class _FromLabels:
    @property
    def uses_labels(self) -> bool:
        return True


@dataclass(frozen=True)
class _WithoutLabels:
    @property
    def uses_labels(self) -> bool:
        return False


@dataclass(frozen=True)
class Tau(_FromLabels):
    """Neurons whose highest similarity is above `tau`, the published selection; never dead neurons (similarity NaN)."""

    name: ClassVar[str] = "tau"
    tau: float = 0.0

    def __post_init__(self) -> None:
        require_number("tau", self.tau)

    def __call__(self, neurons: pd.DataFrame, module: nn.Module) -> Bool[Tensor, " neuron"]:
        return _alive(neurons) & torch.from_numpy(_numbers(neurons, "similarity") > self.tau)


@dataclass(frozen=True)
class Fdr(_FromLabels):
    """Neurons with a significant label: q_value < `level` (Benjamini-Hochberg). Never a dead neuron."""

    name: ClassVar[str] = "fdr"
    level: float = 0.05

    def __post_init__(self) -> None:
        require_number("selection.level", self.level)
        if not 0 < self.level <= 1:
            raise UserError(
                f"selection.level={self.level:g} is not a false discovery rate; it must be in (0, 1], e.g. 0.05."
            )

    def __call__(self, neurons: pd.DataFrame, module: nn.Module) -> Bool[Tensor, " neuron"]:
        return _alive(neurons) & torch.from_numpy(_numbers(neurons, "q_value") < self.level)


@dataclass(frozen=True)
class NeuronAccuracy(_FromLabels):
    """Neurons whose accuracy over their top 10 images is above `level`. Never a dead neuron."""

    name: ClassVar[str] = "accuracy"
    level: float = 0.5

    def __post_init__(self) -> None:
        require_number("selection.level", self.level)

    def __call__(self, neurons: pd.DataFrame, module: nn.Module) -> Bool[Tensor, " neuron"]:
        return _alive(neurons) & torch.from_numpy(_numbers(neurons, "accuracy") > self.level)


@dataclass(frozen=True)
class LabelledWith(_FromLabels):
    """Neurons labelled with one of `concepts`. Never a dead neuron.

    Raises:
        UserError: a concept is neither a label nor a runner-up of any neuron.
    """

    name: ClassVar[str] = "concept"
    concepts: Sequence[str] = ()

    def __post_init__(self) -> None:
        concepts = (self.concepts,) if isinstance(self.concepts, str) else tuple(self.concepts)
        if not concepts:
            raise UserError("selection=concept needs the concepts: selection.concepts=[Tears] or [Tears,Frown].")
        object.__setattr__(self, "concepts", concepts)

    def __call__(self, neurons: pd.DataFrame, module: nn.Module) -> Bool[Tensor, " neuron"]:
        _column(neurons, "concept")
        labels = neurons["concept"].astype(object).where(neurons["concept"].notna(), "").astype(str)
        known = set(labels) - {""}
        if "runners_up" in neurons:
            known.update(str(name) for names in neurons["runners_up"] if names is not None for name in names)
        for concept in self.concepts:
            if concept not in known:
                raise UserError(
                    f"selection.concepts contains '{concept}', which labels no neuron of this layer, not even as a "
                    f"runner-up. {nearest(concept, sorted(known))}"
                )
        return _alive(neurons) & torch.from_numpy(labels.isin(self.concepts).to_numpy(dtype=bool, copy=True))


@dataclass(frozen=True)
class WeightNorm(_WithoutLabels):
    """Neurons whose sum of |weights| is above the layer's mean."""

    name: ClassVar[str] = "weight_norm"

    def __call__(self, neurons: pd.DataFrame, module: nn.Module) -> Bool[Tensor, " neuron"]:
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or len(weight) != len(neurons):
            raise UserError(
                f"selection=weight_norm needs a layer with one row of weights per neuron; "
                f"{type(module).__name__} has none. Choose a convolution or a linear layer."
            )
        sums = weight.detach().flatten(1).abs().double().sum(1).cpu()
        return sums > sums.mean()


@dataclass(frozen=True)
class AllNeurons(_WithoutLabels):
    """Every neuron."""

    name: ClassVar[str] = "all"

    def __call__(self, neurons: pd.DataFrame, module: nn.Module) -> Bool[Tensor, " neuron"]:
        return torch.ones(len(neurons), dtype=torch.bool)


@dataclass(frozen=True)
class RandomNeurons(_WithoutLabels):
    """Neurons drawn without replacement: as many as `like` selects, or a fraction `share` of the layer (rounded).

    Raises:
        UserError: both or neither of `like` and `share` are given, or the share is not in [0, 1].
    """

    name: ClassVar[str] = "random"
    like: Selection | None = None
    share: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.like is None) == (self.share is None):
            raise UserError(
                "selection=random takes its count from another selection or as a fraction of the layer: set one of "
                "selection.like and selection.share, and the other to null."
            )
        if self.share is not None:
            require_number("selection.share", self.share)
        if self.share is not None and not 0 <= self.share <= 1:
            raise UserError(f"selection.share={self.share:g} must be a fraction of the layer, in [0, 1].")

    @property
    def needs_images(self) -> bool:
        return needs_images(self.like)

    def fitted(self, kept: Any) -> RandomNeurons:
        return replace(self, like=fitted(self.like, kept))

    def __call__(self, neurons: pd.DataFrame, module: nn.Module) -> Bool[Tensor, " neuron"]:
        if self.like is not None:
            count = int(self.like(neurons, module).sum())
        else:
            count = round((self.share or 0.0) * len(neurons))
        drawn = np.random.default_rng(self.seed).permutation(len(neurons))[:count]
        selected = torch.zeros(len(neurons), dtype=torch.bool)
        selected[torch.from_numpy(drawn)] = True
        return selected


@dataclass(frozen=True)
class Inverse:
    """All neurons that `of` does not select, including dead ones."""

    name: ClassVar[str] = "inverse"
    of: Selection

    @property
    def uses_labels(self) -> bool:
        return self.of.uses_labels

    @property
    def needs_images(self) -> bool:
        return needs_images(self.of)

    def fitted(self, kept: Any) -> Inverse:
        return replace(self, of=fitted(self.of, kept))

    def __call__(self, neurons: pd.DataFrame, module: nn.Module) -> Bool[Tensor, " neuron"]:
        return ~self.of(neurons, module)


def similarities(neurons: pd.DataFrame) -> Float[Tensor, " neuron"]:
    """Each neuron's highest similarity, NaN for dead neurons; input to proportional edits."""
    values = torch.from_numpy(_numbers(neurons, "similarity"))
    return torch.where(_alive(neurons), values, torch.nan)


def exchanged(neurons: pd.DataFrame, generator: np.random.Generator) -> Int64[Tensor, " neuron"]:
    """A random permutation of the living neurons; dead ones stay in place.

    Random draws must not edit dead neurons, which have no effect, so that labels get no credit for avoiding them.
    """
    order = torch.arange(len(neurons))
    living = _alive(neurons).nonzero().flatten()
    order[living] = living[torch.from_numpy(generator.permutation(len(living)))]
    return order


def _alive(neurons: pd.DataFrame) -> Bool[Tensor, " neuron"]:
    alive = ~np.isnan(_numbers(neurons, "similarity")) if "similarity" in neurons else np.ones(len(neurons), dtype=bool)
    if "dead" in neurons:
        alive &= ~neurons["dead"].to_numpy(dtype=bool)
    return torch.from_numpy(alive)


def _numbers(neurons: pd.DataFrame, column: str) -> np.ndarray:
    _column(neurons, column)
    return neurons[column].to_numpy(dtype=np.float64, copy=True)


def _column(neurons: pd.DataFrame, column: str) -> None:
    if column not in neurons:
        raise UserError(
            f"The neuron labels have no column '{column}', which this selection needs. "
            f"{nearest(column, map(str, neurons.columns))} Dissect the layer again."
        )
