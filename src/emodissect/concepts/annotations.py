"""Concept scores from annotations: class labels, votes, drawn presence, or a user's table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emodissect.concepts.concept_set import ConceptSet
from emodissect.concepts.scores import ConceptScores
from emodissect.core.cache import Cache, file_hash
from emodissect.core.errors import UserError, listed, nearest
from emodissect.core.spelling import class_key, name_key
from emodissect.core.table_files import read_parquet
from emodissect.data.images import Annotations, ImageSet

log = logging.getLogger(__name__)

_SOURCES = ("labels", "votes", "presence")
_ID_COLUMNS = ("image_id", "id")


@dataclass(frozen=True)
class AnnotationScorer:
    """Scores from annotations.

    Attributes:
        source: where the scores come from:

            - ``labels``: 1 where the image's class is one of the concept's classes, else 0;
            - ``votes``: the share of an image's FER+ votes for the concept's classes;
            - ``presence``: how strongly the concept was drawn (``data=sketches``);
            - a path: a CSV or Parquet table with a column ``image_id`` (or ``id``) and one column per concept.
    """

    source: str = "labels"

    def __post_init__(self) -> None:
        if self.source in _SOURCES:
            return
        path = Path(self.source).expanduser()
        if path.suffix.lower() not in (".csv", ".parquet"):
            raise UserError(
                f"scorer.source={self.source} is neither a kind of annotation nor a .csv or .parquet table. "
                + nearest(self.source, _SOURCES)
            )
        if not path.is_file():
            raise UserError(f"The annotation table {path} does not exist (scorer.source={self.source}).")

    def score(
        self, images: ImageSet, concepts: ConceptSet, class_names: Sequence[str], cache: Cache | None = None
    ) -> ConceptScores:
        """Scores of every image for every concept; they are cheap, so they are not cached.

        Raises:
            UserError: the data has no such annotations, or a concept, class or image is missing from them.
        """
        if self.source == "labels":
            values = _from_labels(images, concepts, class_names)
        elif self.source == "votes":
            values = _from_votes(self._annotations(images), concepts, class_names)
        elif self.source == "presence":
            values = _columns(self._annotations(images), concepts, "the data's annotations 'presence'")
        else:
            values = _columns(self._table(images, concepts), concepts, f"the table {self.source}")
        return ConceptScores(images.ids, concepts.names, values, self.fingerprint())

    def check(self, images: ImageSet, concepts: ConceptSet, class_names: Sequence[str]) -> None:
        """Raises UserError as :meth:`score`, which is cheap enough to call for this check."""
        self.score(images, concepts, class_names)

    def fingerprint(self) -> dict[str, Any]:
        """The kind of annotation; for a table, its content."""
        if self.source in _SOURCES:
            return {"scorer": "annotations", "source": self.source}
        path = Path(self.source).expanduser()
        return {"scorer": "annotations", "source": path.name, "sha256": file_hash(path)}

    def _annotations(self, images: ImageSet) -> Annotations:
        if self.source not in images.annotations:
            where = {"votes": "data=fer2013 with FER+ votes", "presence": "data=sketches"}[self.source]
            raise UserError(
                f"scorer.source={self.source} needs annotations that this data does not have; they come with "
                f"{where}. It has: {', '.join(['labels', *images.annotations])}."
            )
        return images.annotations[self.source]

    def _table(self, images: ImageSet, concepts: ConceptSet) -> Annotations:
        path = Path(self.source).expanduser()
        try:
            frame = pd.read_csv(path) if path.suffix.lower() == ".csv" else read_parquet(path)
        except (ValueError, OSError) as error:  # pandas' parse errors are ValueErrors
            raise UserError(f"The annotation table {path} cannot be read: {error}") from error
        frame.columns = frame.columns.astype(str)
        id_column = next((name for name in _ID_COLUMNS if name in frame.columns), None)
        if id_column is None:
            raise UserError(
                f"The annotation table {path} has no column 'image_id'. Its columns: {', '.join(frame.columns[:12])}."
            )
        ids = pd.to_numeric(frame[id_column], errors="coerce").to_numpy(dtype="float64")
        whole = np.isfinite(ids) & (ids == np.round(ids)) & (np.abs(ids) < 2**53)
        if not whole.all() or len(np.unique(ids)) < len(ids):
            fault = "contains an image twice" if whole.all() else f"has no integer in row {int(whole.argmin()) + 1}"
            raise UserError(f"The column '{id_column}' of the annotation table {path} {fault}.")
        wanted = {name_key(name) for name in concepts.names}
        kept = [name for name in frame.columns if name != id_column and name_key(name) in wanted]
        rest = [name for name in frame.columns if name != id_column and name not in kept]
        numbers = frame[kept].apply(pd.to_numeric, errors="coerce")
        values = torch.from_numpy(numbers.to_numpy(dtype="float32", copy=True))
        if not (finite := values.isfinite()).all():
            row, column = (~finite).nonzero()[0].tolist()
            raise UserError(
                f"The annotation table {path} has no finite number in row {row + 1} of the column '{kept[column]}'. "
                "Every image needs a score for every concept."
            )
        rows = ConceptScores(torch.from_numpy(ids.astype("int64")), tuple(kept), values)
        # The names of the other columns are kept for "did you mean" suggestions.
        at_images = torch.cat([rows.at(images.ids), torch.zeros(len(images), len(rest))], dim=1)
        return Annotations((*kept, *rest), at_images)


def _from_labels(images: ImageSet, concepts: ConceptSet, class_names: Sequence[str]) -> Float[Tensor, "image concept"]:
    mask = concepts.class_mask(class_names)
    _require_classes(mask.any(dim=1), concepts, "labels")
    return mask.T[images.labels].float()


def _from_votes(votes: Annotations, concepts: ConceptSet, class_names: Sequence[str]) -> Float[Tensor, "image concept"]:
    concepts.class_mask(class_names)  # so that a misspelt class is reported with all of the data's class names
    voted = {class_key(name) for name in votes.names}
    mask = torch.zeros(len(concepts), len(votes.names))
    for row, name in enumerate(concepts.names):
        given = concepts.classes.get(name) or (name,)
        unvoted = [class_name for class_name in given if class_key(class_name) not in voted]
        if unvoted and concepts.classes.get(name):
            raise UserError(
                f"There are no votes for '{unvoted[0]}', a class of the concept '{name}'. "
                + nearest(unvoted[0], votes.names)
            )
        keys = {class_key(class_name) for class_name in given}
        mask[row] = torch.tensor([float(class_key(column) in keys) for column in votes.names])
    _require_classes(mask.any(dim=1), concepts, "votes")
    return votes.values.float() @ mask.T


def _columns(table: Annotations, concepts: ConceptSet, where: str) -> Float[Tensor, "image concept"]:
    column = {name_key(name): index for index, name in enumerate(table.names)}
    missing = [name for name in concepts.names if name_key(name) not in column]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(concepts):,} concepts are missing from {where}: "
            f"{listed(map(repr, missing))}. "
            f"{nearest(missing[0], table.names)} For concepts that are classes, scorer.source=labels needs no columns."
        )
    return table.values[:, [column[name_key(name)] for name in concepts.names]].float()


def _require_classes(has_class: Tensor, concepts: ConceptSet, source: str) -> None:
    without = [name for name, has in zip(concepts.names, has_class.tolist(), strict=True) if not has]
    if without:
        raise UserError(
            f"scorer.source={source} needs the classes of each concept; {len(without):,} of {len(concepts):,} "
            f"in {concepts.origin} have none: {listed(map(repr, without))}. "
            "Add them to the concept file (docs/concepts.md), or use scorer=clip, which needs none."
        )
