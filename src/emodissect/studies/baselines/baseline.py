"""The interface of a cheap alternative to an edit: fitted on some images, it predicts logits of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from emodissect.editing.fast.edited_logits import EditedLogits

Predictor = Callable[[EditedLogits], Float[Tensor, "image class"]]
"""Logits of a set of images, in the order of their ids."""


class NotAvailable(Exception):  # noqa: N818
    """Raised where an alternative does not apply to a network; the message is the note in its row of the ladder."""


@runtime_checkable
class Baseline(Protocol):
    """A way to improve predictions that needs no neuron labels.

    Attributes:
        name: its name in `study.baselines=[...]`.
        words: its description in the verdict, e.g. "refitting the head".
        is_fitted: whether it is fitted to images; one that is not has a single row in the ladder.
    """

    name: ClassVar[str]
    words: ClassVar[str]
    is_fitted: ClassVar[bool]

    def fit(self, kept: EditedLogits) -> tuple[Predictor, str]:
        """Fit to images; returns the predictor and a note on the chosen hyperparameters (may be empty).

        Args:
            kept: the network on the images: labels, logits (`before`), the layer's output, inputs of other layers.

        Raises:
            NotAvailable: the alternative does not apply to this network.
        """
