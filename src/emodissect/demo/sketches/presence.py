"""Ground truth of drawn faces: how strongly each of the 25 facial-expression concepts is present."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from emodissect.demo.sketches.parameters import PARAMETERS, Expression

CONCEPT_CLASSES: Mapping[str, tuple[str, ...]] = {
    "Furrowed Brows": ("angry",),
    "Raised Brows": ("surprise",),
    "Lowered Brows": ("angry",),
    "Drooping Brows": ("sad",),
    "Relaxed Brows": ("neutral",),
    "Wide Open Eyes": ("surprise",),
    "Narrowed Eyes": ("angry",),
    "Twinkling or Crinkled Eyes": ("happy",),
    "Tearful Eyes": ("sad",),
    "Closed Eyes": ("sad", "neutral", "fear"),
    "Relaxed Eyes": ("neutral",),
    "Tense Mouth and Jaw": ("angry", "disgust"),
    "Relaxed Mouth and Jaw": ("happy", "neutral", "sad"),
    "Smile": ("happy",),
    "Frown": ("sad",),
    "Downturned Mouth": ("sad",),
    "Slightly Open Mouth": ("surprise",),
    "Wide Open Mouth": ("surprise",),
    "Slight Chin Raise": ("surprise", "neutral"),
    "Slightly Dropped Jaw": ("surprise",),
    "Flared Nostrils": ("angry", "disgust"),
    "Tightened Facial Muscles": ("angry", "fear", "disgust"),
    "Compressed Lips": ("angry", "disgust"),
    "Elevated Upper Eyelids": ("surprise",),
    "Relaxed Facial Muscles": ("happy", "neutral"),
}
"""The concepts in order, each with the classes that the published study counts as correct for it."""

CONCEPTS: tuple[str, ...] = tuple(CONCEPT_CLASSES)

Values = NDArray[np.float64]


def presence(expressions: Sequence[Expression] | Values) -> Values:
    """Presence of every concept, ``(image, concept)`` in [0, 1]; from about 0.5, a person would name the concept.

    Each is a ramp (0 below, 1 above, linear in between) of the parameters that draw it, or a minimum ("and") or maximum
    ("or") of ramps.

    Args:
        expressions: parameters, ``(image, parameter)`` in the order of :data:`PARAMETERS`.
    """
    matrix = np.asarray(expressions, dtype=np.float64).reshape(-1, len(PARAMETERS))
    face = Expression(*matrix.T)  # each parameter is a column over the images
    down, up = np.maximum(0, -face.mouth_curve), np.maximum(0, face.mouth_curve)
    opening = np.asarray(face.lid_opening)
    awake = _up(opening, 0.04, 0.12)
    press = face.lip_press * np.maximum(0, 1 - 2.5 * np.asarray(face.mouth_opening))
    bared = np.asarray(face.mouth_width) * _up(face.mouth_opening, 0.0, 0.1)  # a stretched mouth that shows teeth
    mouth_tension = np.maximum.reduce([press, np.asarray(face.clench), 0.8 * bared * (up < 0.3)])
    brow_tension = np.maximum(np.asarray(face.brow_furrow), np.maximum(0, -np.asarray(face.brow_height)))
    parts = np.sort(
        [brow_tension, face.lid_tension, mouth_tension, np.maximum(face.nostrils, face.nose_wrinkle)], axis=0
    )
    tension = parts[-2:].mean(0)
    still = np.maximum.reduce([np.abs(face.brow_height), np.abs(face.brow_slant), np.asarray(face.brow_furrow)])
    columns = {
        "Furrowed Brows": _up(face.brow_furrow, 0.15, 0.7),
        "Raised Brows": _up(face.brow_height, 0.1, 0.7),
        "Lowered Brows": _up(-np.asarray(face.brow_height), 0.08, 0.6),
        "Drooping Brows": _up(face.brow_slant, 0.15, 0.7),
        "Relaxed Brows": _down(still, 0.15, 0.5),
        "Wide Open Eyes": _up(opening + 0.3 * np.asarray(face.upper_lid), 0.65, 1.0),
        "Narrowed Eyes": np.minimum(_down(opening, 0.24, 0.46), awake),
        "Twinkling or Crinkled Eyes": _up(face.cheeks, 0.15, 0.7),
        "Tearful Eyes": _up(face.tears, 0.15, 0.6),
        "Closed Eyes": 1 - awake,
        "Relaxed Eyes": np.minimum.reduce(
            [_up(opening, 0.3, 0.44), _down(opening + 0.5 * np.asarray(face.upper_lid), 0.56, 0.74),
             _down(face.lid_tension, 0.15, 0.5), _down(face.tears, 0.1, 0.4), _down(face.cheeks, 0.2, 0.6)]
        ),
        "Tense Mouth and Jaw": _up(mouth_tension, 0.15, 0.7),
        "Relaxed Mouth and Jaw": np.minimum.reduce(
            [_down(mouth_tension, 0.1, 0.45), _down(face.mouth_opening, 0.2, 0.5), _down(down, 0.2, 0.6),
             _down(face.upper_lip, 0.15, 0.5), _down(face.chin, 0.25, 0.7), _down(face.jaw, 0.3, 0.7),
             _down(up, 0.5, 1.0)]
        ),
        "Smile": _up(up, 0.1, 0.6),
        "Frown": np.minimum(_up(down, 0.1, 0.5), _up(still * (np.asarray(face.brow_height) < 0.5), 0.15, 0.6)),
        "Downturned Mouth": _up(down, 0.1, 0.6),
        "Slightly Open Mouth": np.minimum(_up(face.mouth_opening, 0.06, 0.2), _down(face.mouth_opening, 0.34, 0.6)),
        "Wide Open Mouth": _up(face.mouth_opening, 0.34, 0.6),
        "Slight Chin Raise": _up(face.chin, 0.15, 0.6),
        "Slightly Dropped Jaw": np.minimum(_up(face.jaw, 0.1, 0.35), 1 - 0.6 * _up(face.jaw, 0.6, 0.9)),
        "Flared Nostrils": _up(face.nostrils, 0.15, 0.65),
        "Tightened Facial Muscles": _up(tension, 0.15, 0.65),
        "Compressed Lips": _up(press, 0.15, 0.65),
        "Elevated Upper Eyelids": np.minimum(_up(face.upper_lid, 0.15, 0.65), awake),
        "Relaxed Facial Muscles": np.minimum.reduce(
            [_down(tension, 0.12, 0.42), _down(still, 0.3, 0.7), _down(face.upper_lip, 0.2, 0.6),
             _down(down, 0.2, 0.6), _down(np.asarray(face.upper_lid), 0.2, 0.6), _down(face.mouth_opening, 0.35, 0.8)]
        ),
    }  # fmt: skip
    return np.stack([columns[name] for name in CONCEPTS], axis=1)


def _up(value: Values | float, low: float, high: float) -> Values:
    """0 up to ``low``, 1 from ``high``, linear in between."""
    return np.clip((np.asarray(value, dtype=np.float64) - low) / (high - low), 0.0, 1.0)


def _down(value: Values | float, low: float, high: float) -> Values:
    """1 up to ``low``, 0 from ``high``, linear in between."""
    return 1.0 - _up(value, low, high)
