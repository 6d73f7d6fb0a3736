"""Parameters of a drawn face's expression, and their distribution for each emotion.

The emotions' parameters follow the facial action units (AU) of Ekman & Friesen, *Facial Action Coding System* (1978),
in the combinations given for each emotion by *Unmasking the Face* (1975) and EMFACS (Friesen & Ekman 1983).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.random import Generator


class Expression(NamedTuple):
    """The expression of a face: each parameter with its range and action units (AU).

    Attributes:
        brow_height: [-1, 1]; up by AU1+2, down by AU4.
        brow_slant: [-1, 1]; from inner ends down (AU4, as in anger) to inner ends up (AU1 alone, as in grief).
        brow_furrow: [0, 1]; brows drawn together with upright creases between them, AU4.
        lid_opening: [0, 1]; 0 closed (AU43), 0.5 at rest, 1 wide open.
        upper_lid: [0, 1]; upper lid raised so that white shows above the iris, AU5.
        lid_tension: [0, 1]; lower lid tightened and straightened, AU7.
        gaze_x: [-1, 1]; AU61 and AU62.
        gaze_y: [-1, 1]; down is positive, AU63 and AU64.
        tears: [0, 1]; drops under the eyes (no action unit).
        nostrils: [0, 1]; nostrils flared, AU38.
        nose_wrinkle: [0, 1]; creases across the bridge of the nose, AU9.
        cheeks: [0, 1]; cheeks raised, crow's feet beside the eyes, AU6.
        mouth_width: [-1, 1]; from narrowed (AU18) to stretched (AU20, AU12).
        mouth_curve: [-1, 1]; from corners down (AU15) to corners up (AU12).
        mouth_opening: [0, 1]; lips apart, AU25, then AU26 and AU27.
        upper_lip: [0, 1]; upper lip raised, with deepened folds beside the nose, AU10.
        lip_press: [0, 1]; lips tightened and pressed, AU23+24.
        chin: [0, 1]; chin boss pushed up, AU17.
        jaw: [0, 1]; jaw dropped, AU26.
        clench: [0, 1]; jaw clenched, with the muscle bulging at the corners, AU31.
    """

    brow_height: float = 0.0
    brow_slant: float = 0.0
    brow_furrow: float = 0.0
    lid_opening: float = 0.5
    upper_lid: float = 0.0
    lid_tension: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    tears: float = 0.0
    nostrils: float = 0.0
    nose_wrinkle: float = 0.0
    cheeks: float = 0.0
    mouth_width: float = 0.0
    mouth_curve: float = 0.0
    mouth_opening: float = 0.0
    upper_lip: float = 0.0
    lip_press: float = 0.0
    chin: float = 0.0
    jaw: float = 0.0
    clench: float = 0.0


PARAMETERS: tuple[str, ...] = Expression._fields
SIGNED = frozenset({"brow_height", "brow_slant", "gaze_x", "gaze_y", "mouth_width", "mouth_curve"})
_LOWEST = np.array([-1.0 if name in SIGNED else 0.0 for name in PARAMETERS])
_NEUTRAL = np.array(Expression())
_LIDS = PARAMETERS.index("lid_opening")
# Parameters in [0, 1] vary half as much as those in [-1, 1]; the gaze varies more, mostly sideways.
_LOOSENESS = np.array([{"gaze_x": 2.0, "gaze_y": 1.3}.get(name, 1.0 if name in SIGNED else 0.5) for name in PARAMETERS])


@dataclass(frozen=True)
class Pattern:
    """One of the ways to express an emotion.

    Attributes:
        weight: relative frequency among the patterns of its emotion.
        target: the expression at full intensity.
        sometimes: optional parameters: name -> (probability, value).
    """

    weight: float
    target: Expression
    sometimes: Mapping[str, tuple[float, float]] = field(default_factory=dict)


CLASS_NAMES = ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")
"""FER2013's classes in FER2013's order."""

CLASS_SHARES = (0.14, 0.08, 0.14, 0.22, 0.16, 0.12, 0.14)
"""Class frequencies similar to FER2013's, but less extreme (there, disgust has 1.5 %)."""

PATTERNS: Mapping[str, Sequence[Pattern]] = {
    # AU4+5+7+23 or 24, AU38, AU31: the glare with pressed lips; and AU4+7+10+25+26, the shout.
    "Angry": (
        Pattern(
            0.6,
            Expression(
                brow_height=-0.7, brow_slant=-0.75, brow_furrow=0.9, lid_opening=0.42, lid_tension=0.8, nostrils=0.6,
                mouth_width=-0.1, mouth_curve=-0.25, lip_press=0.95, clench=0.7,
            ),
            {"upper_lid": (0.35, 0.7), "chin": (0.3, 0.6), "lid_opening": (0.4, 0.22)},
        ),
        Pattern(
            0.4,
            Expression(
                brow_height=-0.7, brow_slant=-0.85, brow_furrow=0.85, lid_opening=0.4, lid_tension=0.75, nostrils=0.8,
                mouth_width=0.15, mouth_curve=-0.3, mouth_opening=0.5, upper_lip=0.35, jaw=0.35, clench=0.5,
            ),
            {"upper_lid": (0.4, 0.7), "nose_wrinkle": (0.25, 0.5)},
        ),
    ),
    # AU9+10+17 with lips closed; AU9+10+16+25(+26) with the mouth open.
    "Disgust": (
        Pattern(
            0.6,
            Expression(
                brow_height=-0.4, brow_slant=-0.25, brow_furrow=0.35, lid_opening=0.26, lid_tension=0.6, nostrils=0.65,
                nose_wrinkle=0.95, cheeks=0.25, mouth_curve=-0.45, upper_lip=0.9, lip_press=0.35, chin=0.75,
            ),
            {"clench": (0.3, 0.6), "lip_press": (0.3, 0.85)},
        ),
        Pattern(
            0.4,
            Expression(
                brow_height=-0.35, brow_slant=-0.2, brow_furrow=0.3, lid_opening=0.26, lid_tension=0.55, nostrils=0.7,
                nose_wrinkle=0.9, cheeks=0.25, mouth_width=0.1, mouth_curve=-0.4, mouth_opening=0.32, upper_lip=1.0,
                jaw=0.2,
            ),
            {"lid_opening": (0.15, 0.02), "clench": (0.2, 0.5)},
        ),
    ),
    # AU1+2+4+5+7+20+25(+26); AU43 where the face flinches.
    "Fear": (
        Pattern(
            0.82,
            Expression(
                brow_height=0.55, brow_slant=0.6, brow_furrow=0.6, lid_opening=0.85, upper_lid=0.85, lid_tension=0.55,
                nostrils=0.25, mouth_width=0.7, mouth_curve=-0.3, mouth_opening=0.35, jaw=0.3, clench=0.2,
            ),
            {"mouth_opening": (0.2, 0.65), "lip_press": (0.12, 0.5), "tears": (0.06, 0.7)},
        ),
        Pattern(
            0.18,
            Expression(
                brow_height=0.3, brow_slant=0.6, brow_furrow=0.7, lid_opening=0.0, lid_tension=0.7, mouth_width=0.75,
                mouth_curve=-0.3, mouth_opening=0.3, jaw=0.15, clench=0.45,
            ),
        ),
    ),
    # AU6+12, AU6+12+25, and laughter, AU6+12+25+26.
    "Happy": (
        Pattern(0.35, Expression(cheeks=0.7, lid_opening=0.4, mouth_width=0.45, mouth_curve=0.8)),
        Pattern(
            0.4,
            Expression(cheeks=0.85, lid_opening=0.36, mouth_width=0.6, mouth_curve=0.9, mouth_opening=0.35, jaw=0.15),
            {"upper_lip": (0.2, 0.3)},
        ),
        Pattern(
            0.25,
            Expression(cheeks=0.95, lid_opening=0.25, mouth_width=0.55, mouth_curve=0.95, mouth_opening=0.75, jaw=0.55),
            {"lid_opening": (0.25, 0.03), "tears": (0.05, 0.6), "brow_height": (0.3, 0.4)},
        ),
    ),
    # AU1+4+15(+17), the lids heavy and the gaze down; weeping with tears and AU43.
    "Sad": (
        Pattern(
            0.6,
            Expression(
                brow_height=0.0, brow_slant=0.8, brow_furrow=0.4, lid_opening=0.36, gaze_y=0.55, mouth_width=-0.1,
                mouth_curve=-0.75,
            ),
            {"chin": (0.35, 0.7), "tears": (0.3, 0.8), "lip_press": (0.12, 0.5)},
        ),
        Pattern(
            0.4,
            Expression(
                brow_height=-0.1, brow_slant=0.85, brow_furrow=0.55, lid_opening=0.2, tears=0.9, mouth_width=0.15,
                mouth_curve=-0.75, mouth_opening=0.12, lid_tension=0.3,
            ),
            {"lid_opening": (0.55, 0.0), "mouth_opening": (0.35, 0.4), "chin": (0.3, 0.7)},
        ),
    ),
    # AU1+2+5B+26, and AU27 where the jaw drops wide.
    "Surprise": (
        Pattern(
            0.5,
            Expression(
                brow_height=0.9, lid_opening=0.88, upper_lid=0.85, mouth_width=-0.25, mouth_opening=0.75, jaw=0.85,
            ),
        ),
        Pattern(
            0.5,
            Expression(
                brow_height=0.85, lid_opening=0.82, upper_lid=0.75, mouth_width=-0.2, mouth_opening=0.32, jaw=0.45,
            ),
            {"chin": (0.15, 0.6), "mouth_curve": (0.2, 0.3)},
        ),
    ),
    # No action unit; occasionally a blink, parted lips, or a slightly atypical resting face.
    "Neutral": (
        Pattern(
            1.0,
            Expression(),
            {
                "lid_opening": (0.1, 0.0), "mouth_opening": (0.1, 0.2), "chin": (0.15, 0.55),
                "mouth_curve": (0.15, 0.15), "lip_press": (0.06, 0.5), "jaw": (0.06, 0.3),
            },
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Difficulty:
    """How much the classes overlap.

    Attributes:
        intensity: (a, b) of the Beta distribution of the emotion's intensity, over [least, 1].
        least: minimum intensity.
        blended: share of images that are blended with a second emotion.
        blend: maximum weight of the second emotion.
        spread: standard deviation of a parameter in [-1, 1] around its pattern; half of it for one in [0, 1].
    """

    intensity: tuple[float, float] = (2.2, 1.4)
    least: float = 0.1
    blended: float = 0.4
    blend: float = 0.6
    spread: float = 0.18


def draw_label(rng: Generator, shares: Sequence[float] = CLASS_SHARES) -> int:
    """A class index, drawn with the class frequencies ``shares``."""
    cumulative = np.cumsum(shares)
    return int(min(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"), len(shares) - 1))


def draw_expression(rng: Generator, label: int, difficulty: Difficulty = Difficulty()) -> Expression:
    """A random expression of a class: ``neutral + intensity * (pattern - neutral)``, blended and jittered.

    Args:
        label: index into :data:`CLASS_NAMES`.
    """
    pattern = _pattern(rng, label)
    values = _NEUTRAL + _intensity(rng, difficulty) * (pattern - _NEUTRAL)
    if rng.random() < difficulty.blended:
        part, other = difficulty.blend * rng.random(), int(rng.integers(len(CLASS_NAMES)))
        second = _NEUTRAL + _intensity(rng, difficulty) * (_pattern(rng, other) - _NEUTRAL)
        values = (1 - part) * values + part * second
    values += rng.standard_normal(len(PARAMETERS)) * (difficulty.spread * _LOOSENESS)
    if pattern[_LIDS] < 0.05 and rng.random() < 0.75:  # lids usually close completely, even at low intensity
        values[_LIDS] = 0.0
    return Expression(*np.clip(values, _LOWEST, 1.0).tolist())


def _intensity(rng: Generator, difficulty: Difficulty) -> float:
    return difficulty.least + (1 - difficulty.least) * float(rng.beta(*difficulty.intensity))


def _pattern(rng: Generator, label: int) -> np.ndarray:
    patterns = PATTERNS[CLASS_NAMES[label]]
    weights = np.cumsum([pattern.weight for pattern in patterns])
    pattern = patterns[min(int(np.searchsorted(weights, rng.random() * weights[-1], side="right")), len(patterns) - 1)]
    values = pattern.target._asdict()
    for name, (probability, value) in pattern.sometimes.items():
        if rng.random() < probability:
            values[name] = value
    return np.array(list(values.values()))
