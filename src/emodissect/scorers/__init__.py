"""Concept scores: how strongly each concept is in each image, told by CLIP or by annotations."""

from emodissect.scorers.annotations import AnnotationScorer
from emodissect.scorers.clip import ClipScorer
from emodissect.scorers.open_clip_model import OpenClip
from emodissect.scorers.scores import ConceptScores, Scorer

__all__ = ["AnnotationScorer", "ClipScorer", "ConceptScores", "OpenClip", "Scorer"]
