"""The three verbs."""

from emodissect.tasks.dissecting import dissect
from emodissect.tasks.editing import edit
from emodissect.tasks.training import train

__all__ = ["dissect", "edit", "train"]
