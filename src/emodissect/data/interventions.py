"""Faces with one property changed at a time, from image sources that can draw them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emodissect.data.images import ImageSet

UNMOVED = -1
"""Marks the unchanged face in ``Interventions.moved``."""


@dataclass(frozen=True)
class Interventions:
    """Faces, each unchanged and with every property set to several values while all else is fixed.

    Attributes:
        images: all images, with the annotation ``presence``.
        face: index of the face that an image shows.
        moved: index into ``names`` of the property that was set, or :data:`UNMOVED`.
        value: the value it was set to, from 0 (lowest) to 1 (highest); NaN for an unchanged face.
        names: of the properties.
    """

    images: ImageSet
    face: Int64[Tensor, " image"]
    moved: Int64[Tensor, " image"]
    value: Float[Tensor, " image"]
    names: tuple[str, ...]

    def changes(self, columns: Float[Tensor, "image column"]) -> Float[Tensor, "change column"]:
        """Each changed image's values minus those of the same face unchanged, for all changed images.

        >>> faces = ImageSet(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3).long(), torch.arange(3))
        >>> moves = torch.tensor([UNMOVED, 0, 0])
        >>> found = Interventions(faces, torch.zeros(3).long(), moves, torch.tensor([torch.nan, 0, 1]), ("smile",))
        >>> found.changes(torch.tensor([[2.0], [1.0], [5.0]])).tolist()
        [[-1.0], [3.0]]
        """
        still = self.moved == UNMOVED
        base = torch.empty(int(self.face.max()) + 1, dtype=torch.int64)
        base[self.face[still]] = still.nonzero()[:, 0]
        return columns[~still] - columns[base[self.face[~still]]]
