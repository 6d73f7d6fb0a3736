"""The interface of similarities: parameters in the constructor, tensors or a recorded layer in the call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from emodissect.core.errors import UserError


class Layer(Protocol):
    """The attributes of a recorded layer (``emodissect.recording.LayerActivations``) that similarities read."""

    @property
    def ids(self) -> Int64[Tensor, " image"]: ...  # ascending
    @property
    def top_ids(self) -> Int64[Tensor, "rank neuron"]: ...  # ties by the tickets of their ids
    @property
    def top_values(self) -> Float[Tensor, "rank neuron"]: ...
    @property
    def minimum(self) -> Float[Tensor, " neuron"]: ...
    @property
    def dead(self) -> Bool[Tensor, " neuron"]: ...
    @property
    def values(self) -> Float[Tensor, "image neuron"] | None: ...


class Similarity(ABC):
    """A similarity with its parameters. ``needs_values``: whether it needs all activations, not only the top images."""

    needs_values: ClassVar[bool]

    @abstractmethod
    def __call__(
        self,
        concept_scores: Float[Tensor, "image concept"],
        activations: Float[Tensor, "image neuron"],
        ids: Int64[Tensor, " image"] | None = None,
    ) -> Float[Tensor, "neuron concept"]:
        """Similarity of every neuron with every concept; ties of images are broken by their ids, or by their rows."""

    @abstractmethod
    def of_layer(self, concept_scores: Float[Tensor, "image concept"], layer: Layer) -> Float[Tensor, "neuron concept"]:
        """The same for a recorded layer; the scores' rows are in the order of ``layer.ids``."""

    @abstractmethod
    def null_best(
        self, concept_scores: Float[Tensor, "image concept"], layer: Layer, draws: int, seed: int, progress: str = ""
    ) -> Float[Tensor, "draw neuron"]:
        """Each neuron's best similarity over the concepts under the null; reproducible by the seed.

        ``progress`` is the label of a progress bar; empty for no bar.
        """


def require_aligned(concept_scores: Tensor, images: int) -> None:
    """Raise UserError unless the concept scores have this number of images."""
    if len(concept_scores) != images:
        raise UserError(
            f"Concept scores of {len(concept_scores)} images, activations of {images}: both must be of the same images "
            "in the same order."
        )
