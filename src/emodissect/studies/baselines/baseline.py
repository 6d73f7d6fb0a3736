"""What a cheap alternative to an edit is: it is fitted on images, and then gives logits of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from emodissect.editing.fast.edited_logits import EditedLogits

Predictor = Callable[[EditedLogits], Float[Tensor, "image class"]]
"""Logits of a set of images, in the order of their ids."""


class NotAvailable(Exception):  # noqa: N818
    """Why a network has no such alternative, in words for its row of the ladder."""


@runtime_checkable
class Baseline(Protocol):
    """A way to better predictions that needs no labels of neurons.

    Attributes:
        name: its word in `study.baselines=[...]`.
        words: what is done, as the verdict says it: "refitting the head".
        is_fitted: whether it learns from images; one that does not has a single row in the ladder.
    """

    name: ClassVar[str]
    words: ClassVar[str]
    is_fitted: ClassVar[bool]

    def fit(self, kept: EditedLogits) -> tuple[Predictor, str]:
        """Learns from images, and says what it settled on (a strength, say; may be empty).

        Args:
            kept: the network on the images: labels, logits (`before`), the layer's output, inputs of other layers.

        Raises:
            NotAvailable: this network has no such alternative.
        """
