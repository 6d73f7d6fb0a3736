"""Concept scores and activations must be of the same images."""

from __future__ import annotations

from torch import Tensor

from emodissect.core.errors import UserError


def require_aligned(concept_scores: Tensor, images: int) -> None:
    """Raises UserError unless there are concept scores of as many images."""
    if len(concept_scores) != images:
        raise UserError(
            f"Concept scores of {len(concept_scores)} images, activations of {images}: both must be of the same images "
            "in the same order."
        )
