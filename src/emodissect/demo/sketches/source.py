"""The data module of drawn faces: drawn once from a seed, then cached."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from emodissect.core.errors import UserError, nearest
from emodissect.core.fingerprint import source_hash
from emodissect.core.tensor_files import save_tensors
from emodissect.data.datamodule import SPLITS, FaceDataModule
from emodissect.data.images import Annotations, ImageSet, Splits
from emodissect.data.interventions import Interventions
from emodissect.demo.sketches.faces import draw_faces_in_processes
from emodissect.demo.sketches.interventions import move_faces
from emodissect.demo.sketches.parameters import CLASS_NAMES, PARAMETERS, Difficulty
from emodissect.demo.sketches.presence import CONCEPTS
from emodissect.demo.sketches.sheet import SIZE
from emodissect.demo.sketches.spurious import Spurious

log = logging.getLogger(__name__)

BLOCK = 1_000_000
"""The ids of a split start at its index times this, so that its images do not depend on the sizes of other splits."""

MOVED_FACES = 40
"""Number of faces for interventions."""


class Sketches(FaceDataModule):
    """Drawn 48 x 48 grey faces of FER2013's seven classes, with ground truth of 25 concepts in ``presence``.

    Args:
        train, val, test: number of images in each split.
        seed: random seed of the drawing, not of the training.
        difficulty: overrides of :class:`~emodissect.demo.sketches.parameters.Difficulty`, by name.
        spurious: a mark (`glasses`, `background`, `caption`) that is correlated with a class in training, but not in
            validation and test; its presence is an additional annotation (`Glasses`, `Bright Background`,
            `Caption Bar`).
        spurious_class: the class.
        spurious_strength: probability of the mark in images of the class; in others it is 1 - strength.
        class_names, size, channels: fixed values, present so that a config can refer to them.
        loading: arguments of :class:`~emodissect.data.datamodule.FaceDataModule`.

    Raises:
        UserError: a split of less than one image or more than a million, class names other than FER2013's, a different
            size or number of channels, or an unknown difficulty.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str] = CLASS_NAMES,
        train: int = 7000,
        val: int = 1500,
        test: int = 1500,
        seed: int = 0,
        difficulty: Mapping[str, Any] | None = None,
        spurious: str | None = None,
        spurious_class: str = "Happy",
        spurious_strength: float = 0.95,
        size: int = SIZE,
        channels: int = 1,
        **loading: Any,
    ) -> None:
        super().__init__(class_names=class_names, **loading)
        self.counts = dict(zip(SPLITS, (train, val, test), strict=True))
        for name, count in self.counts.items():
            if not 1 <= count <= BLOCK:
                raise UserError(f"data.{name}={count}: a split of drawn faces must have 1 to {BLOCK:,} images.")
        if tuple(class_names) != CLASS_NAMES:
            raise UserError(
                f"data.class_names={list(class_names)}: drawn faces show {', '.join(CLASS_NAMES)}, in this order. "
                "For other classes use data=image_folder."
            )
        if (size, channels) != (SIZE, 1):
            raise UserError(
                f"data.size={size}, data.channels={channels}: drawn faces are always {SIZE} x {SIZE} and grey. To "
                "change the network's input, set model.preprocess."
            )
        self.seed = int(seed)
        given = dict(difficulty or {})
        if unknown := [name for name in given if name not in asdict(Difficulty())]:
            raise UserError(f"data.difficulty.{unknown[0]} is unknown. {nearest(unknown[0], asdict(Difficulty()))}")
        if "intensity" in given:
            shape = tuple(given["intensity"])
            if len(shape) != 2 or not all(isinstance(part, int | float) and part > 0 for part in shape):
                raise UserError(f"data.difficulty.intensity={list(shape)} must be two numbers above 0, e.g. [2.2,1.4].")
            given["intensity"] = shape  # a plain tuple, for cache keys and worker processes
        self.difficulty = Difficulty(**given)
        self.spurious = None if spurious is None else Spurious(spurious, spurious_class, spurious_strength)

    def read(self) -> Splits:
        """The splits, from the cache or newly drawn."""
        train, val, test = (self._split(name) for name in SPLITS)
        return Splits(train, val, test, CLASS_NAMES)

    def interventions(self, seed: int = 0) -> Interventions:
        """40 faces outside all splits, each with every expression parameter set to five values over its range."""
        key = {
            "faces": MOVED_FACES,
            "seed": [self.seed, seed],
            "difficulty": asdict(self.difficulty),
            "drawn_by": source_hash(move_faces),
        }

        def write(folder: Path) -> None:
            first = len(SPLITS) * BLOCK + seed * MOVED_FACES
            moved = move_faces(MOVED_FACES, first=first, seed=self.seed, difficulty=self.difficulty)
            tensors = {name: torch.from_numpy(values) for name, values in moved._asdict().items()}
            save_tensors(tensors, folder / "moved.safetensors")

        held = self.cache.value("moved_sketches", key, write, lambda folder: load_file(folder / "moved.safetensors"))
        ids = len(SPLITS) * BLOCK + torch.arange(len(held["face"]))
        presence = {"presence": Annotations(CONCEPTS, held["presence"].float())}
        images = ImageSet(held["images"].unsqueeze(1), held["labels"], ids, presence)
        return Interventions(images, held["face"], held["moved"], held["value"].float(), PARAMETERS)

    def _split(self, name: str) -> ImageSet:
        count, first = self.counts[name], SPLITS.index(name) * BLOCK
        # In validation and test, the mark is independent of the class.
        planted = self.spurious
        spurious = planted if planted is None or name == "train" else replace(planted, strength=0.5)
        key = {
            "images": count,
            "first": first,
            "seed": self.seed,
            "difficulty": asdict(self.difficulty),
            "spurious": None if spurious is None else asdict(spurious),
            "drawn_by": source_hash(draw_faces_in_processes),
        }

        def write(folder: Path) -> None:
            began = time.perf_counter()
            drawn = draw_faces_in_processes(range(first, first + count), self.seed, self.difficulty, spurious=spurious)
            log.info("Drew %d faces for %s in %.1f s.", count, name, time.perf_counter() - began)
            save_tensors(
                {
                    "images": torch.from_numpy(drawn.images).unsqueeze(1),
                    "labels": torch.from_numpy(drawn.labels),
                    "ids": torch.arange(first, first + count),
                    "presence": torch.from_numpy(drawn.presence).float(),
                },
                folder / "faces.safetensors",
            )

        held = self.cache.value("sketches", key, write, _read)
        names = CONCEPTS if spurious is None else (*CONCEPTS, spurious.concept)
        return ImageSet(held["images"], held["labels"], held["ids"], {"presence": Annotations(names, held["presence"])})


def _read(folder: Path) -> dict[str, Tensor]:
    held = load_file(folder / "faces.safetensors")
    return {name: held[name] for name in ("images", "labels", "ids", "presence")}
