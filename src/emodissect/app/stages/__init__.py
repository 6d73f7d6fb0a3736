"""The three verbs."""

from emodissect.app.stages.dissecting import dissect
from emodissect.app.stages.editing import edit
from emodissect.app.stages.training import train

__all__ = ["dissect", "edit", "train"]
