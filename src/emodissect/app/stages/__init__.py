"""The three verbs."""

from emodissect.app.stages.classifier import train
from emodissect.app.stages.dissection import dissect
from emodissect.app.stages.editing import edit

__all__ = ["dissect", "edit", "train"]
