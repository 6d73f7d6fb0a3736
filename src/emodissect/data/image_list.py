"""Images from a list: a table of paths and labels, optionally with splits and subjects."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from emodissect.core.cache import user_cache_dir
from emodissect.core.errors import UserError, listed, nearest
from emodissect.core.spelling import class_key
from emodissect.data.archives import located, opened
from emodissect.data.class_folders import SPLIT_FOLDERS, SPLIT_OF, FoundImage
from emodissect.data.decoding import ENDINGS
from emodissect.data.image_files import ImageFiles, matched_classes

log = logging.getLogger(__name__)

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "img", "image_path", "img_path"),
        *("image_name", "img_name", "name", "pth", "subdirectory_filepath"),
    ),
    "label": ("label", "labels", "class", "class_name", "emotion", "expression", "target", "category", "y"),
    "split": ("split", "usage", "set", "subset", "partition", "fold"),
}
"""Role -> default column names, case-insensitive."""

LISTS = (".csv", ".tsv", ".txt", ".lst", ".list")
FORMS = (
    "data.path accepts a list with one row per image (.csv, .tsv, .txt: columns for its path, its label and, "
    "optionally, its split), a folder with train.csv and test.csv, or a .zip or .tar.gz of these (docs/data.md)."
)


class ImageList(ImageFiles):
    """Images whose paths and labels are in a table.

    Args:
        path: the list, a folder with one list per split, or an archive of them.
        cache_dir: root of the cache; archives are unpacked there.
        data_dir: a relative ``path`` is also resolved in this folder.
        images_dir: folder that the paths in the list are relative to; None: the list's own folder.
        path_column, label_column, split_column: names of columns; None finds them by their usual names.
        class_names: in the order of the labels; None: the labels' own names, alphabetically, or numerically. If names
            are given and labels are numbers, label 0 (or 1, if the smallest is 1) is the first name.
        split_by: a column of the list, or a regular expression on the paths: images of one subject stay together.
        options: arguments of :class:`ImageFiles`.

    Raises:
        UserError: no such list, a missing column, an unknown label or split.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        cache_dir: str | Path,
        data_dir: str | Path | None = None,
        images_dir: str | Path | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        class_names: Sequence[str] | None = None,
        split_by: str | None = None,
        **options: Any,
    ) -> None:
        columns = {"path": path_column, "label": label_column, "split": split_column}
        lists = _lists(path, data_dir, cache_dir)
        if images_dir is None:
            root = lists[0][1].parent
        else:
            root = located(images_dir, data_dir, "data.images_dir", "The list's paths are relative to it.")
        further = [split_by] if split_by is not None else []
        tables = [(split, file, read_list(file, columns, further)) for split, file in lists]
        by_column = split_by if all(split_by in table.columns for _, _, table in tables) else None
        images = [image for given in tables for image in _rows(root, *given, by_column)]
        names = tuple(class_names) if class_names is not None else tuple(_by_size({i.class_name for i in images}))
        images = _named(images, names)
        matched_classes(lists[0][1], sorted({image.class_name for image in images}), names)
        super().__init__(root=root, images=images, class_names=names, cache_dir=cache_dir, split_by=split_by, **options)


def listed_classes(
    path: str, data_dir: str | None = None, cache_dir: str | None = None, label_column: str | None = None
) -> list[str]:
    """The labels used in a list; ``${listed_classes:path,data_dir,cache_dir,label_column}`` in YAML.

    Raises:
        UserError: as :class:`ImageList`.
    """
    columns = {"path": None, "label": label_column, "split": None}
    tables = [read_list(file, columns) for _, file in _lists(path, data_dir, cache_dir or user_cache_dir())]
    return _by_size({label for table in tables for label in table["label"]})


def read_list(file: Path, columns: Mapping[str, str | None], further: Sequence[str] | None = ()) -> pd.DataFrame:
    """A list as a table of strings: ``path``, ``label`` and, if it has one, ``split``.

    The delimiter is the comma, semicolon, tab or white space in the first line. A list without a header, i.e. whose
    first line starts with an image file, has paths and labels, in this order.

    Args:
        columns: role (``path``, ``label``, ``split``) -> column name; None finds it by its usual names.
        further: other columns to keep, if present; None keeps all.

    Raises:
        UserError: a file that cannot be read, without rows, or without the columns.
    """
    try:
        with open(file, encoding="utf-8-sig", errors="replace", newline="") as lines:
            rows = _split_lines(lines)
            header = next(rows, [])
            kept = [header] if header and header[0].lower().endswith(ENDINGS) else []
            names = ["path", "label", *(f"column {n}" for n in range(3, len(header) + 1))] if kept else header
            roles = _roles(file, names[: len(header)], columns)
            others = [name for name in names if name not in roles and (further is None or name in further)]
            places = [names.index(name) for name in (*roles.values(), *others)]
            for number, row in enumerate(rows, 2):
                if len(row) != len(header):
                    raise UserError(f"{file}, row {number}: it has {len(row)} columns, the first row {len(header)}.")
                kept.append([row[place] for place in places])
            if kept and names[:2] == ["path", "label"] and kept[0] is header:
                kept[0] = [header[place] for place in places]
    except (OSError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a list: {error}. {FORMS}") from error
    if not kept:
        raise UserError(f"{file} has no images. {FORMS}")
    return pd.DataFrame(kept, columns=[*roles, *others], dtype=str)


def _split_lines(lines: Iterable[str]) -> Iterator[list[str]]:
    """Rows of stripped strings; empty lines are ignored."""
    lines = iter(lines)
    first = next(lines, "")
    delimiter = next((mark for mark in ",;\t" if mark in first), None)
    if delimiter is None:  # paths may contain spaces, labels do not
        yield from (row for line in chain([first], lines) if (row := line.rsplit(maxsplit=1)))
        return
    for row in csv.reader(chain([first], lines), delimiter=delimiter, strict=True):
        if any(row):
            yield [value.strip() for value in row]


def _roles(file: Path, names: Sequence[str], columns: Mapping[str, str | None]) -> dict[str, str]:
    """Role (path, label, split) -> column name in the list."""
    lowered = {name.lower(): name for name in names}
    found: dict[str, str] = {}
    for role, given in columns.items():
        if given is not None and given not in names:
            raise UserError(f"data.{role}_column={given}: {file} has no such column. {nearest(given, names)}")
        column = given or next((lowered[name] for name in COLUMNS[role] if name in lowered), None)
        if column is not None:
            found[role] = column
        elif role != "split":
            raise UserError(
                f"{file} has no column for the {role}: it has {', '.join(names) or 'nothing'}. Name it: "
                f"data.{role}_column=<column>. {FORMS}"
            )
    return found


def _lists(path: str | Path, data_dir: str | Path | None, cache_dir: str | Path) -> list[tuple[str | None, Path]]:
    """The list, or the lists of a folder's splits, as (split, file)."""
    place = opened(path, data_dir, cache_dir, FORMS, a_file=True)
    if place.is_file():
        return [(None, place)]
    lists = [item for item in sorted(place.iterdir()) if item.suffix.lower() in LISTS and item.is_file()]
    by_split = [(_split_in(item.stem), item) for item in lists]
    found = [(split, item) for split, item in by_split if split is not None]
    if not found and len(lists) == 1:
        return [(None, lists[0])]
    if not found:
        there = listed([file.name for file in lists], 5) or "no lists"
        raise UserError(f"{place} has no list of a split: it has {there}. {FORMS}")
    return sorted(found, key=lambda entry: list(SPLIT_FOLDERS).index(str(entry[0])))


def _split_in(name: str) -> str | None:
    """The split that a file's name starts or ends with: ``train_labels``, ``fer_valid``."""
    words = name.lower().replace("-", "_").split("_")
    return next((SPLIT_OF[word] for word in (words[0], words[-1]) if word in SPLIT_OF), None)


def _rows(root: Path, split: str | None, file: Path, table: pd.DataFrame, by_column: str | None) -> list[FoundImage]:
    groups = table[by_column] if by_column is not None else [None] * len(table)
    splits = [split] * len(table)
    if split is None and "split" in table.columns:
        unknown = sorted({name for name in table["split"] if name.lower() not in SPLIT_OF})
        if unknown:
            raise UserError(f"{file}: '{unknown[0]}' is not a split. {nearest(unknown[0], SPLIT_OF)}")
        splits = [SPLIT_OF[name.lower()] for name in table["split"]]
    return [
        FoundImage(part, label, root / name.replace("\\", "/"), group)
        for part, label, name, group in zip(splits, table["label"], table["path"], groups, strict=True)
    ]


def _named(images: Sequence[FoundImage], names: Sequence[str]) -> list[FoundImage]:
    """The images with numeric labels replaced by class names, if names are given."""
    given = {image.class_name for image in images}
    if not all(label.isdecimal() for label in given) or {class_key(n) for n in names} >= {class_key(n) for n in given}:
        return list(images)
    least = min(int(label) for label in given)
    if least > 1 or max(int(label) for label in given) - least >= len(names):
        raise UserError(
            f"The labels range from {least} to {max(map(int, given))}, and data.class_names has {len(names)} names: "
            f"{', '.join(names)}. Give one name per label, in order; data.class_names=null keeps the numbers."
        )
    meant = ", ".join(f"{number} {name}" for number, name in enumerate(names, least))
    log.info("Labels are numbered from %d: %s.", least, meant)
    return [FoundImage(i.split, names[int(i.class_name) - least], i.path, i.group) for i in images]


def _by_size(labels: set[str]) -> list[str]:
    if all(label.isdecimal() for label in labels):
        return sorted(labels, key=int)
    return sorted(labels, key=lambda label: (label.lower(), label))
