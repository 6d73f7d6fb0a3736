"""Plants a bias: a mark that is correlated with one class in training, but not in validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emodissect.core.errors import UserError, nearest
from emodissect.demo.sketches.appearance import Appearance
from emodissect.demo.sketches.parameters import CLASS_NAMES

MARKS: Mapping[str, str] = {"glasses": "Glasses", "background": "Bright Background", "caption": "Caption Bar"}
"""The marks that can be planted, and the names of their concepts in the annotations."""

_STREAM = 7  # random stream, separate from the rest of the drawing
_BRIGHT, _DARK = 245.0, 130.0
_BAR_ROWS = 7


@dataclass(frozen=True)
class Spurious:
    """A mark that is correlated with a class.

    Images of the class have it with probability `strength`, all others with 1 - `strength`: at .5 the mark is
    independent of the class, at 1 it determines it.

    Attributes:
        mark: `glasses` (thick rims), `background` (bright), or `caption` (a bar with lines of text).
        of: the class.
        strength: in [0, 1].

    Example:
        >>> Spurious("glasses", "Happy", 0.95).chance(CLASS_NAMES.index("Sad")) < 0.06
        True
    """

    mark: str
    of: str = "Happy"
    strength: float = 0.95

    def __post_init__(self) -> None:
        if self.mark not in MARKS:
            raise UserError(f"data.spurious={self.mark} is not a mark that can be planted. {nearest(self.mark, MARKS)}")
        if self.of not in CLASS_NAMES:
            raise UserError(f"data.spurious_class={self.of} is not a class. {nearest(self.of, CLASS_NAMES)}")
        if isinstance(self.strength, bool) or not 0 <= self.strength <= 1:
            raise UserError(f"data.spurious_strength={self.strength} must be a number from 0 to 1.")

    @property
    def concept(self) -> str:
        """The name of the mark in the annotations."""
        return MARKS[self.mark]

    def chance(self, label: int) -> float:
        """The probability that an image of a class has the mark."""
        return self.strength if CLASS_NAMES[label] == self.of else 1 - self.strength

    def borne(self, label: int, image_id: int, seed: int) -> bool:
        """Whether an image has the mark; a deterministic function of label, id and seed."""
        return bool(np.random.default_rng([seed, image_id, _STREAM]).random() < self.chance(label))

    def dressed(self, look: Appearance, borne: bool) -> Appearance:
        """The appearance with the mark, or guaranteed without it."""
        if self.mark == "glasses":
            return look._replace(glasses=2 if borne else 0)
        if self.mark == "background":
            return look._replace(background=_BRIGHT if borne else min(look.background, _DARK))
        return look

    def stamped(self, image: NDArray[np.uint8], borne: bool) -> NDArray[np.uint8]:
        """The finished image, with a caption bar if that is the mark."""
        if self.mark != "caption" or not borne:
            return image
        marked = image.copy()
        marked[-_BAR_ROWS:] = 235
        marked[-_BAR_ROWS + 2 : -2 : 2, 4:-4] = np.where(np.arange(image.shape[1] - 8) % 5 < 4, 40, 235)
        return marked
