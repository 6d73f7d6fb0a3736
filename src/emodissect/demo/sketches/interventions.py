"""Interventions: faces in which one expression parameter changes, and nothing else (person, light, noise).

Does not import torch, like all drawing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emodissect.demo.sketches.appearance import draw_appearance
from emodissect.demo.sketches.drawing import draw_face
from emodissect.demo.sketches.parameters import PARAMETERS, SIGNED, Difficulty, draw_expression, draw_label
from emodissect.demo.sketches.presence import presence

UNMOVED = -1


class Moved(NamedTuple):
    """Unmoved and moved faces; the images of a face are consecutive, the unmoved one first.

    Attributes:
        images: uint8 ``(image, 48, 48)``.
        labels: int64 ``(image,)``, the class for which the unmoved face was drawn.
        face: int64 ``(image,)``, the index of the face.
        moved: int64 ``(image,)``, the index of the changed parameter in ``PARAMETERS``; -1 for unmoved faces.
        value: float64 ``(image,)``, the parameter's value as a fraction of its range; NaN for unmoved faces.
        presence: float64 ``(image, concept)``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    face: NDArray[np.int64]
    moved: NDArray[np.int64]
    value: NDArray[np.float64]
    presence: NDArray[np.float64]


def move_faces(
    faces: int = 40, values: int = 5, first: int = 0, seed: int = 0, difficulty: Difficulty | None = None
) -> Moved:
    """Draw faces, and each face again with every parameter set to ``values`` evenly spaced values over its range.

    Args:
        faces: number of faces; drawn like those of a data set, with ids from ``first``.
        values: number of values per parameter, at least 2.
        first: id of the first face; id and ``seed`` determine the drawing.
        seed, difficulty: as for a data set.
    """
    shares = np.linspace(0, 1, values)
    images, labels, rows = [], [], []
    expressions = []
    for face in range(faces):
        rng = np.random.default_rng([seed, first + face])
        label = draw_label(rng)
        expression = draw_expression(rng, label, difficulty or Difficulty())
        appearance = draw_appearance(rng)
        variants = [(UNMOVED, np.nan, expression)]
        for number, name in enumerate(PARAMETERS):
            for share in shares:
                set_to = float(2 * share - 1 if name in SIGNED else share)
                variants.append((number, float(share), expression._replace(**{name: set_to})))
        for number, share, variant in variants:
            images.append(draw_face(variant, appearance))
            expressions.append(variant)
            labels.append(label)
            rows.append((face, number, share))
    face_of, moved, value = (np.array(column) for column in zip(*rows, strict=True))
    return Moved(
        np.array(images, dtype=np.uint8),
        np.array(labels, dtype=np.int64),
        face_of.astype(np.int64),
        moved.astype(np.int64),
        value.astype(np.float64),
        presence(expressions),
    )
