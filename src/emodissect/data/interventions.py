"""The same faces with one property changed at a time, offered by image sources that can draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emodissect.data.images import ImageSet

UNMOVED = -1
"""In ``Interventions.moved``: the face as it is."""


@dataclass(frozen=True)
class Interventions:
    """Faces, each as it is and with every property set to each of some values, everything else fixed.

    Attributes:
        images: of all of them, with the annotation ``presence``.
        face: which face an image shows.
        moved: the property that was set, a number into ``names``, or :data:`UNMOVED`.
        value: what it was set to, as a share of its range, 0 the lowest and 1 the highest; NaN of an unmoved face.
        names: of the properties.
    """

    images: ImageSet
    face: Int64[Tensor, " image"]
    moved: Int64[Tensor, " image"]
    value: Float[Tensor, " image"]
    names: tuple[str, ...]

    def changes(self, columns: Float[Tensor, "image column"]) -> Float[Tensor, "change column"]:
        """Each moved image's values less those of the same face unmoved; unmoved faces are left out.

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
