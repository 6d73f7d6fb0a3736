"""Drawn faces whose expression is known: images, labels, and the presence of 25 concepts."""

from emodissect.data.sketches.captions import captions
from emodissect.data.sketches.parameters import CLASS_NAMES, Expression
from emodissect.data.sketches.presence import CONCEPT_CLASSES, CONCEPTS, presence
from emodissect.data.sketches.source import Drawn, Sketches, draw_faces

__all__ = [
    "CLASS_NAMES",
    "CONCEPTS",
    "CONCEPT_CLASSES",
    "Drawn",
    "Expression",
    "Sketches",
    "captions",
    "draw_faces",
    "presence",
]
