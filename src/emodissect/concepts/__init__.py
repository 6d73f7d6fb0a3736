"""Concept scores: how strongly each concept is present in each image, from CLIP or from annotations."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from emodissect.concepts.annotations import AnnotationScorer
from emodissect.concepts.scores import ConceptScores, Scorer

if TYPE_CHECKING:
    from emodissect.concepts.clip import ClipScorer
    from emodissect.concepts.open_clip_model import OpenClip

__all__ = ["AnnotationScorer", "ClipScorer", "ConceptScores", "OpenClip", "Scorer"]

# imported lazily, since open_clip takes seconds to import
_WITH_OPEN_CLIP = {"ClipScorer": "emodissect.concepts.clip", "OpenClip": "emodissect.concepts.open_clip_model"}


def __getattr__(name: str) -> Any:
    if name in _WITH_OPEN_CLIP:
        return getattr(import_module(_WITH_OPEN_CLIP[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
