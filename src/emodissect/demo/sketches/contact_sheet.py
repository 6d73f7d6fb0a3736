"""Contact sheets of the drawn faces: one a class, one a concept. Look at them after every change of the drawing.

``python -m emodissect.demo.sketches.contact_sheet [folder] [faces drawn]``
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from emodissect.demo.sketches.appearance import Appearance
from emodissect.demo.sketches.drawing import draw_face
from emodissect.demo.sketches.faces import Drawn, draw_faces
from emodissect.demo.sketches.parameters import CLASS_NAMES, PATTERNS
from emodissect.demo.sketches.presence import CONCEPTS

_ENLARGED = 2


def contact_sheet(images: NDArray[np.uint8], columns: int = 16, rows: int = 4) -> NDArray[np.uint8]:
    """The first ``rows * columns`` images in a grid, enlarged; empty places stay black."""
    grid = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    shown = images[: len(grid)]
    grid[: len(shown)] = shown
    height, width = images.shape[1:]
    sheet = grid.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    return cv2.resize(sheet, None, fx=_ENLARGED, fy=_ENLARGED, interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def write_contact_sheets(drawn: Drawn, folder: Path) -> list[Path]:
    """A sheet of faces for each class, one for each concept, and one of the patterns at full intensity.

    A concept's sheet shows two rows of faces that have it (presence >= 0.5) above two rows of the same classes that
    lack it (presence < 0.1), so that the eye compares the concept and not the emotion.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sheets = {f"class_{label}_{name}": contact_sheet(drawn.images[drawn.labels == label])
              for label, name in enumerate(CLASS_NAMES)}  # fmt: skip
    for column, concept in enumerate(CONCEPTS):
        has = np.flatnonzero(drawn.presence[:, column] >= 0.5)[:32]
        lacks = _of_the_same_classes(drawn, np.flatnonzero(drawn.presence[:, column] < 0.1), has)
        upper, lower = (contact_sheet(drawn.images[rows], rows=2) for rows in (has, lacks))
        rule = np.full((6, upper.shape[1]), 255, np.uint8)
        sheets[f"concept_{column:02d}_{concept.replace(' ', '_')}"] = np.concatenate([upper, rule, lower])
    patterns = [draw_face(pattern.target, Appearance()) for name in CLASS_NAMES for pattern in PATTERNS[name]]
    sheets["patterns"] = contact_sheet(np.array(patterns), columns=7, rows=2)
    paths = []
    for name, sheet in sheets.items():
        paths.append(folder / f"{name}.png")
        cv2.imwrite(str(paths[-1]), sheet)
    return paths


def _of_the_same_classes(drawn: Drawn, rows: NDArray[np.int64], like: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows whose labels match those of ``like``, one for one where there are enough."""
    left = {label: [row for row in rows if drawn.labels[row] == label] for label in np.unique(drawn.labels)}
    return np.array([left[drawn.labels[row]].pop(0) for row in like if left[drawn.labels[row]]], dtype=np.int64)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "logs/contact_sheets")
    written = write_contact_sheets(draw_faces(range(int(sys.argv[2]) if len(sys.argv) > 2 else 1500)), target)
    print(f"{len(written)} contact sheets in {target.absolute()}")
