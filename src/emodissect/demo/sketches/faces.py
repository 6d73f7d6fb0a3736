"""Draws many faces by id, in this process or in several.

Does not import torch, so that a drawing process starts in a fraction of a second.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emodissect.demo.sketches.appearance import draw_appearance
from emodissect.demo.sketches.drawing import draw_face
from emodissect.demo.sketches.parameters import PARAMETERS, Difficulty, draw_expression, draw_label
from emodissect.demo.sketches.presence import presence
from emodissect.demo.sketches.spurious import Spurious

log = logging.getLogger(__name__)

_WORTH_A_PROCESS = 500  # minimum number of faces per process; about a second of drawing


class Drawn(NamedTuple):
    """Drawn faces, as arrays.

    Attributes:
        images: uint8 ``(image, 48, 48)``.
        labels: int64 ``(image,)``.
        expressions: float64 ``(image, parameter)``, in the order of ``PARAMETERS``.
        presence: float64 ``(image, concept)`` in [0, 1], in the order of ``CONCEPTS``, followed by a planted mark.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    expressions: NDArray[np.float64]
    presence: NDArray[np.float64]


def draw_faces(
    ids: Sequence[int], seed: int = 0, difficulty: Difficulty | None = None, spurious: Spurious | None = None
) -> Drawn:
    """Draw faces by id; each depends only on its id and the seed.

    Args:
        spurious: a mark that some of them have; its presence is an additional column.
    """
    faces, labels, expressions, marks = [], [], [], []
    for image_id in ids:
        rng = np.random.default_rng([seed, image_id])
        label = draw_label(rng)
        expression = draw_expression(rng, label, difficulty or Difficulty())
        look = draw_appearance(rng)
        if spurious is None:
            faces.append(draw_face(expression, look))
        else:
            marks.append(spurious.borne(label, image_id, seed))
            faces.append(spurious.stamped(draw_face(expression, spurious.dressed(look, marks[-1])), marks[-1]))
        labels.append(label)
        expressions.append(expression)
    matrix = np.array(expressions, dtype=np.float64).reshape(-1, len(PARAMETERS))
    present = presence(matrix)
    if spurious is not None:
        present = np.column_stack([present, np.array(marks, dtype=np.float64)])
    return Drawn(np.array(faces, dtype=np.uint8).reshape(-1, 48, 48), np.array(labels, dtype=np.int64), matrix, present)


def draw_faces_in_processes(
    ids: Sequence[int],
    seed: int = 0,
    difficulty: Difficulty | None = None,
    processes: int | None = None,
    spurious: Spurious | None = None,
) -> Drawn:
    """The same faces as :func:`draw_faces`, drawn by n processes, each every n-th face (default: one per core).

    The workers are new Python processes that only import the drawing: no fork of a process with threads, no second
    import of the user's script. If a worker fails, its faces are drawn in this process.
    """
    wanted = processes or len(
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    count = max(1, min(wanted, 8, len(ids) // _WORTH_A_PROCESS))
    shares = [list(ids[first::count]) for first in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.npz" for number in range(count)]
        others = [
            _started(share, seed, difficulty, spurious, file) for share, file in zip(shares[1:], files[1:], strict=True)
        ]
        try:
            parts = [draw_faces(shares[0], seed, difficulty, spurious)]
            for other, share, file in zip(others, shares[1:], files[1:], strict=True):
                if other.wait() == 0:
                    with np.load(file) as drawn:
                        parts.append(Drawn(*(drawn[name] for name in Drawn._fields)))
                else:
                    log.warning("A drawing process failed (exit code %d); its faces are drawn here.", other.returncode)
                    parts.append(draw_faces(share, seed, difficulty, spurious))
        finally:
            for other in others:
                other.kill()
    order = np.argsort(np.concatenate([np.arange(len(ids))[first::count] for first in range(count)]))
    return Drawn(*(np.concatenate([part[field] for part in parts])[order] for field in range(len(Drawn._fields))))


def _started(
    ids: Sequence[int], seed: int, difficulty: Difficulty | None, spurious: Spurious | None, file: Path
) -> subprocess.Popen[bytes]:
    task = file.with_suffix(".json")
    mark = None if spurious is None else asdict(spurious)
    given = {"ids": list(ids), "seed": seed, "difficulty": asdict(difficulty or Difficulty()), "spurious": mark}
    task.write_text(json.dumps(given))
    paths = os.pathsep.join(part for part in sys.path if part)
    command = [sys.executable, "-c", f"from {__name__} import _draw_task; _draw_task()", str(task)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths})


def _draw_task() -> None:
    """Entry point of a worker: draws the faces listed in the file ``sys.argv[1]``, and saves them next to it."""
    file = Path(sys.argv[1])
    task = json.loads(file.read_text())
    spurious = Spurious(**task["spurious"]) if task["spurious"] else None
    drawn = draw_faces(task["ids"], task["seed"], Difficulty(**task["difficulty"]), spurious)
    np.savez(file.with_suffix(".npz"), **drawn._asdict())
