"""Concept sets: the words neurons may be labelled with, and the classes of each."""

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
        names: the concepts as they are shown and as they are given to CLIP; no two alike but for case and spaces.
        classes: by concept, the class names it counts as correct for (neuron accuracy); a concept may be missing.
        origin: where the set comes from, e.g. ``expressions25`` or a file's path.
    """

    names: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    origin: str = "given"

    def __len__(self) -> int:
        return len(self.names)

    def class_mask(self, class_names: Sequence[str]) -> Bool[Tensor, "concept class"]:
        """The classes of each concept.

        Classes are compared without case, spaces and punctuation, and the usual forms of the emotions are one class
        (angry, anger). A concept that is given without classes belongs to the class of the same name, if there is
        one, and else for none: its row is all False.

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
        """The set without what the data lack: classes that they do not have, and concepts that have only these.

        Data sets differ (CK+ has no neutral faces), so this is a warning, which names the nearest class.

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
                f"Every concept of {self.origin} has only classes that the data do not have ({', '.join(absent)}). "
                f"{nearby} Change the concepts' classes, or choose concepts without classes."
            )
        dropped = [name for name in self.names if name not in names]
        log.warning(
            "The data have no class %s, which concepts of %s name. Dropped: %s. Kept with their other classes: %s. %s",
            *(", ".join(map(repr, absent)), self.origin, ", ".join(map(repr, dropped)) or "none"),
            *(", ".join(repr(name) for name in lacking if name in names) or "none", nearby),
        )
        return ConceptSet(names, {name: of for name, of in kept.items() if of and name in names}, self.origin)

    def fingerprint(self) -> dict[str, object]:
        """The content of the set as plain values: names in order, and classes."""
        return {"names": list(self.names), "classes": {name: list(of) for name, of in self.classes.items()}}


def concept_set(
    concepts: Mapping[str, str | Sequence[str] | None] | Iterable[str], origin: str = "given"
) -> ConceptSet:
    """A set from names, or from names with their classes.

    Args:
        concepts: ``{name: class or classes or nothing}`` or names alone.
        origin: where they come from, for messages and manifests.

    Raises:
        UserError: no concept is left after blank ones are dropped.
    """
    if isinstance(concepts, Mapping):
        rows = [(str(name), _listed(classes)) for name, classes in concepts.items()]
    else:
        rows = [(str(name), ()) for name in concepts]
    return tidied(rows, origin)


def read_concepts(path: str | Path) -> ConceptSet:
    """A set from a file: ``.txt`` or no ending (one concept a line), ``.yaml``/``.yml``, ``.json``, ``.csv``, ``.tsv``.

    YAML and JSON hold a list of names or ``{name: classes}``; tables hold one concept a row and, in a second column,
    its classes with ``;`` between them (a header ``concept,classes`` is recognised). Comments (``# ...``), numbering
    and bullets are removed. A log line says what was removed.

    Raises:
        UserError: the file is missing, of another kind, malformed, or holds no concept.
    """
    path = Path(path).expanduser()
    rows, notes = read_rows(path)
    return tidied(rows, str(path), notes)


def tidied(
    rows: Iterable[tuple[str, tuple[str, ...]]], origin: str, notes: Mapping[str, int] | None = None
) -> ConceptSet:
    """A set of clean, distinct names; one log line says what was dropped or changed.

    Spaces are trimmed and runs of them made one, byte-order marks and zero-width characters removed, letters composed
    (Unicode NFC). Names that differ only in case, spaces or compatible forms are one concept: the first spelling
    stays, the classes are joined. ``notes`` are counts of what reading a file took off.
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
            f"The concept set {origin} holds no concept. Write one a line (.txt), or a list or {{name: classes}} "
            "(.yaml, .json), or choose a set: concepts=expressions25 or concepts=fer7."
        )
    counts = {"blank left out": blank, "duplicate left out": doubled, "tidied": spaced, "not ASCII": foreign}
    reported = "".join(f", {count:,} {what}" for what, count in {**counts, **(notes or {})}.items() if count)
    of_class = sum(map(bool, classes.values()))
    standing = f"{of_class:,} of them with classes" if of_class else "none with classes, so neurons have no accuracy"
    log.info("%s concepts from %s, %s%s.", f"{len(classes):,}", origin, standing, reported)
    return ConceptSet(tuple(classes), {name: of for name, of in classes.items() if of}, origin)


def _listed(classes: str | Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        return ()
    return (classes,) if isinstance(classes, str) else tuple(str(name) for name in classes)
