"""Drawn faces with known expressions: images, labels, and the presence of 25 concepts."""

from typing import TYPE_CHECKING, Any

from emodissect.demo.sketches.captions import captions
from emodissect.demo.sketches.faces import Drawn, draw_faces
from emodissect.demo.sketches.parameters import CLASS_NAMES, Expression
from emodissect.demo.sketches.presence import CONCEPT_CLASSES, CONCEPTS, presence

if TYPE_CHECKING:
    from emodissect.demo.sketches.source import Sketches

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


def __getattr__(name: str) -> Any:
    """Imports ``Sketches`` on first access, since it needs torch and Lightning, and drawing does not."""
    if name == "Sketches":
        from emodissect.demo.sketches.source import Sketches

        return Sketches
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
