"""Concept scores, and the interface of the scorers that compute them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emodissect.concepts.concept_set import ConceptSet
from emodissect.core.cache import Cache
from emodissect.core.errors import UserError
from emodissect.core.tensor_files import save_tensors
from emodissect.data.images import ImageSet, rows_of


@dataclass(frozen=True)
class ConceptScores:
    """One score per image and concept; the scale depends on the scorer (cosine for CLIP, presence for annotations).

    Attributes:
        ids: the image id of each row.
        names: the concept of each column.
        values: the scores.
        source: how they were computed, as plain values, for the manifest.
    """

    ids: Int64[Tensor, " image"]
    names: tuple[str, ...]
    values: Float[Tensor, "image concept"]
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if tuple(self.values.shape) != (len(self.ids), len(self.names)):
            raise ValueError(
                f"{len(self.ids)} ids and {len(self.names)} names for scores of shape {tuple(self.values.shape)}"
            )

    def at(self, ids: Int64[Tensor, " wanted"]) -> Float[Tensor, "wanted concept"]:
        """The rows of the given images, in the order of ``ids``.

        Raises:
            UserError: an image has no scores.
        """
        if torch.equal(ids, self.ids):
            return self.values
        rows, known = rows_of(self.ids, ids)
        if not known.all():
            missing = ids[~known]
            raise UserError(
                f"{len(missing):,} of {len(ids):,} images have no concept scores, e.g. those with the ids "
                f"{missing[:5].tolist()}. The scores cover {len(self.ids):,} images; score the same probe set."
            )
        return self.values[rows]

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, with names and source in its header."""
        tensors = {"ids": self.ids.contiguous(), "values": self.values.contiguous()}
        header = {"names": json.dumps(self.names), "source": json.dumps(dict(self.source), default=str)}
        save_tensors(tensors, str(path), metadata=header)

    @classmethod
    def load(cls, path: str | Path) -> ConceptScores:
        """The inverse of :meth:`save`.

        Raises:
            UserError: the file contains no concept scores.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata()
                return cls(
                    file.get_tensor("ids"),
                    tuple(json.loads(header["names"])),
                    file.get_tensor("values"),
                    json.loads(header["source"]),
                )
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise UserError(f"{path} contains no concept scores ({error}). Recompute them with dissect.py.") from error


class Scorer(Protocol):
    """The interface of a scorer, which computes concept scores of images."""

    def score(self, images: ImageSet, concepts: ConceptSet, class_names: Sequence[str], cache: Cache) -> ConceptScores:
        """Scores of every image for every concept, in the order of the concept set."""

    def check(self, images: ImageSet, concepts: ConceptSet, class_names: Sequence[str]) -> None:
        """Raises UserError early if :meth:`score` would fail."""

    def fingerprint(self) -> dict[str, Any]:
        """Content of everything besides images and concepts that the scores depend on, for cache keys."""
