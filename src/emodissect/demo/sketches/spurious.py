"""A mark that is tied to one class where a network learns and to none where it is tested: a planted bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emodissect.core.errors import UserError, nearest
from emodissect.demo.sketches.appearance import Appearance
from emodissect.demo.sketches.parameters import CLASS_NAMES

MARKS: Mapping[str, str] = {"glasses": "Glasses", "background": "Bright Background", "caption": "Caption Bar"}
"""What can be planted, and the concept that says so in an image's annotations."""

_STREAM = 7  # apart from what else is drawn of an image
_BRIGHT, _DARK = 245.0, 130.0
_BAR_ROWS = 7


@dataclass(frozen=True)
class Spurious:
    """A mark, and the chance that an image of each class has it.

    An image has it with probability `strength` where it is of the class, and 1 - `strength` where it is not: at .5
    the mark tells nothing, at 1 it tells all.

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
            raise UserError(f"data.spurious_strength={self.strength}: a number from 0 to 1 is accepted.")

    @property
    def concept(self) -> str:
        """Its name among the annotations."""
        return MARKS[self.mark]

    def chance(self, label: int) -> float:
        """The probability that an image of a class has the mark."""
        return self.strength if CLASS_NAMES[label] == self.of else 1 - self.strength

    def borne(self, label: int, image_id: int, seed: int) -> bool:
        """Whether an image has it; a function of its id and the seed."""
        return bool(np.random.default_rng([seed, image_id, _STREAM]).random() < self.chance(label))

    def dressed(self, look: Appearance, borne: bool) -> Appearance:
        """The appearance with the mark, or surely without."""
        if self.mark == "glasses":
            return look._replace(glasses=2 if borne else 0)
        if self.mark == "background":
            return look._replace(background=_BRIGHT if borne else min(look.background, _DARK))
        return look

    def stamped(self, image: NDArray[np.uint8], borne: bool) -> NDArray[np.uint8]:
        """The finished image, with a caption bar where that is the mark."""
        if self.mark != "caption" or not borne:
            return image
        marked = image.copy()
        marked[-_BAR_ROWS:] = 235
        marked[-_BAR_ROWS + 2 : -2 : 2, 4:-4] = np.where(np.arange(image.shape[1] - 8) % 5 < 4, 40, 235)
        return marked
