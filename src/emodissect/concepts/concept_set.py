"""Concept sets: the concepts that neurons can be labelled with, and their classes."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from emodissect.concepts.concept_files import read_rows
from emodissect.core.errors import UserError, nearest
from emodissect.core.spelling import class_key, clean_name, name_key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConceptSet:
    """The concepts of one dissection, in the order of the score matrix's columns.

    Attributes:
        names: the concepts as displayed and as passed to CLIP; no two differ only in case and spaces.
        classes: by concept, the names of its classes (for neuron accuracy); concepts without classes may be missing.
        origin: where the set comes from, e.g. ``expressions25`` or a file's path.
    """

    names: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    origin: str = "given"

    def __len__(self) -> int:
        return len(self.names)

    def class_mask(self, class_names: Sequence[str]) -> Bool[Tensor, "concept class"]:
        """Mask of each concept's classes.

        Class names are compared ignoring case, spaces and punctuation, and common forms of an emotion are equal (angry,
        anger). A concept without classes belongs to the class of the same name, if there is one; otherwise its row is
        all False.

        Raises:
            UserError: a concept has a class that the data does not have.
        """
        column = {class_key(name): index for index, name in enumerate(class_names)}
        mask = torch.zeros(len(self.names), len(class_names), dtype=torch.bool)
        for row, name in enumerate(self.names):
            given = self.classes.get(name, ())
            for class_name in given:
                if class_key(class_name) not in column:
                    raise UserError(
                        f"Concept '{name}' of {self.origin} has the class '{class_name}', which the data does "
                        f"not have. {nearest(class_name, class_names)} Change the concept's classes or the data."
                    )
                mask[row, column[class_key(class_name)]] = True
            if not given and class_key(name) in column:
                mask[row, column[class_key(name)]] = True
        return mask

    def of_data(self, class_names: Sequence[str]) -> ConceptSet:
        """The set without classes that the data does not have, and without concepts that have only such classes.

        This only logs a warning, with the nearest class, since data sets differ (CK+ has no neutral faces).

        Raises:
            UserError: no concept is left.
        """
        known = {class_key(name) for name in class_names}
        lacking = {
            name: missing
            for name, given in self.classes.items()
            if (missing := [class_name for class_name in given if class_key(class_name) not in known])
        }
        if not lacking:
            return self
        kept = {name: tuple(c for c in given if class_key(c) in known) for name, given in self.classes.items()}
        names = tuple(name for name in self.names if kept.get(name) or name not in lacking)
        absent = {class_key(c): c for missing in lacking.values() for c in missing}.values()
        nearby = " ".join(f"'{name}': {nearest(name, class_names)}" for name in list(absent)[:3])
        if not names:
            raise UserError(
                f"Every concept of {self.origin} has only classes that the data does not have ({', '.join(absent)}). "
                f"{nearby} Change the concepts' classes, or choose concepts without classes."
            )
        dropped = [name for name in self.names if name not in names]
        log.warning(
            "The data has no class %s, which concepts of %s have. Dropped: %s. Kept with their other classes: %s. %s",
            *(", ".join(map(repr, absent)), self.origin, ", ".join(map(repr, dropped)) or "none"),
            *(", ".join(repr(name) for name in lacking if name in names) or "none", nearby),
        )
        return ConceptSet(names, {name: of for name, of in kept.items() if of and name in names}, self.origin)

    def fingerprint(self) -> dict[str, object]:
        """The content of the set as plain values, for cache keys: names in order, and classes."""
        return {"names": list(self.names), "classes": {name: list(of) for name, of in self.classes.items()}}


def concept_set(
    concepts: Mapping[str, str | Sequence[str] | None] | Iterable[str], origin: str = "given"
) -> ConceptSet:
    """A concept set from names, or from names with classes.

    Args:
        concepts: ``{name: class, classes or None}``, or names only.
        origin: where they come from, for messages and manifests.

    Raises:
        UserError: no concept is left after dropping blank ones.
    """
    if isinstance(concepts, Mapping):
        rows = [(str(name), _listed(classes)) for name, classes in concepts.items()]
    else:
        rows = [(str(name), ()) for name in concepts]
    return tidied(rows, origin)


def read_concepts(path: str | Path) -> ConceptSet:
    """A concept set from a file: text (``.txt`` or no suffix), ``.yaml``/``.yml``, ``.json``, ``.csv`` or ``.tsv``.

    Text files have one concept per line. YAML and JSON files contain a list of names or ``{name: classes}``. Tables
    have one concept per row and, in a second column, its classes separated by ``;`` (a header ``concept,classes`` is
    recognised). Comments (``# ...``), numbering and bullets are removed, and the log says how many.

    Raises:
        UserError: the file is missing, has another format, is malformed, or contains no concepts.
    """
    path = Path(path).expanduser()
    rows, notes = read_rows(path)
    return tidied(rows, str(path), notes)


def tidied(
    rows: Iterable[tuple[str, tuple[str, ...]]], origin: str, notes: Mapping[str, int] | None = None
) -> ConceptSet:
    """A concept set with cleaned, distinct names; the log says what was dropped or changed.

    Whitespace is trimmed and collapsed, byte-order marks and zero-width characters are removed, letters are composed
    (Unicode NFC). Names that differ only in case, spaces or compatibility forms are one concept: the first spelling is
    kept, the classes are merged. ``notes``: counts of what was removed when reading a file.
    """
    classes: dict[str, tuple[str, ...]] = {}
    spelled: dict[str, str] = {}
    blank = spaced = doubled = foreign = 0
    for raw, given in rows:
        name = clean_name(raw)
        if not name:
            blank += 1
            continue
        spaced += name != unicodedata.normalize("NFC", raw)
        key = name_key(name)
        if key in spelled:
            doubled += 1
        else:
            foreign += not name.isascii()
        kept = spelled.setdefault(key, name)
        known = classes.setdefault(kept, ())
        classes[kept] = known + tuple(dict.fromkeys(c for c in map(clean_name, given) if c and c not in known))
    if not classes:
        raise UserError(
            f"The concept set {origin} contains no concepts. Write one per line (.txt), or a list or {{name: classes}} "
            "(.yaml, .json), or choose a set: concepts=expressions25 or concepts=fer7."
        )
    counts = {"blank left out": blank, "duplicate left out": doubled, "tidied": spaced, "not ASCII": foreign}
    reported = "".join(f", {count:,} {what}" for what, count in {**counts, **(notes or {})}.items() if count)
    of_class = sum(map(bool, classes.values()))
    summary = f"{of_class:,} of them with classes" if of_class else "none with classes, so neurons have no accuracy"
    log.info("%s concepts from %s, %s%s.", f"{len(classes):,}", origin, summary, reported)
    return ConceptSet(tuple(classes), {name: of for name, of in classes.items() if of}, origin)


def _listed(classes: str | Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        return ()
    return (classes,) if isinstance(classes, str) else tuple(str(name) for name in classes)
