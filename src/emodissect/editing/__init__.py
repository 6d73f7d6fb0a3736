"""Selections, rules, and edits of weights that are restored bit for bit."""

from emodissect.editing.edit import Edit, bake, edited
from emodissect.editing.operations import Operation, Scaling
from emodissect.editing.rules import Ablate, Proportional, Rule, Scale, ScaleChosen
from emodissect.editing.shift import Shift

__all__ = [
    "Ablate",
    "Edit",
    "Operation",
    "Proportional",
    "Rule",
    "Scale",
    "ScaleChosen",
    "Scaling",
    "Shift",
    "bake",
    "edited",
]
