"""Find out what the neurons of a classifier respond to, change them, and say honestly whether it helped.

The public names are imported on first use, so that ``import emodissect`` takes no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emodissect.concepts.annotations import AnnotationScorer
    from emodissect.concepts.clip import ClipScorer
    from emodissect.concepts.concept_set import ConceptSet, concept_set, read_concepts
    from emodissect.concepts.open_clip_model import OpenClip
    from emodissect.core.errors import UserError
    from emodissect.data.image_source import image_set
    from emodissect.data.images import ImageSet
    from emodissect.dissection.dissect import dissect
    from emodissect.dissection.labels import Dissection
    from emodissect.editing.edit import Edit, bake, edited
    from emodissect.editing.rules import Ablate, Proportional, Scale, ScaleChosen
    from emodissect.editing.selection import (
        AllNeurons,
        Fdr,
        Inverse,
        LabelledWith,
        NeuronAccuracy,
        RandomNeurons,
        Tau,
        WeightNorm,
    )
    from emodissect.editing.shift import Shift

_WHERE = {
    "emodissect.concepts.annotations": ("AnnotationScorer",),
    "emodissect.concepts.clip": ("ClipScorer",),
    "emodissect.concepts.concept_set": ("ConceptSet", "concept_set", "read_concepts"),
    "emodissect.concepts.open_clip_model": ("OpenClip",),
    "emodissect.core.errors": ("UserError",),
    "emodissect.data.image_source": ("image_set",),
    "emodissect.data.images": ("ImageSet",),
    "emodissect.dissection.dissect": ("dissect",),
    "emodissect.dissection.labels": ("Dissection",),
    "emodissect.editing.edit": ("Edit", "bake", "edited"),
    "emodissect.editing.rules": ("Ablate", "Proportional", "Scale", "ScaleChosen"),
    "emodissect.editing.selection": (
        *("AllNeurons", "Fdr", "Inverse", "LabelledWith", "NeuronAccuracy", "RandomNeurons", "Tau", "WeightNorm"),
    ),
    "emodissect.editing.shift": ("Shift",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
