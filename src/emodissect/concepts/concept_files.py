"""Concepts as people write them down: text, YAML, JSON and CSV files read into (name, classes) rows."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from emodissect.core.errors import UserError, nearest

log = logging.getLogger(__name__)

Row = tuple[str, tuple[str, ...]]


def read_rows(path: Path) -> list[Row]:
    """The file's rows as they stand: untidied names, each with its classes.

    Raises:
        UserError: the file is missing, of an unknown kind, or malformed.
    """
    if not path.is_file():
        raise UserError(
            f"The concept file {path} does not exist. Give one with concepts=file concepts.path=<file>; "
            f"taken: {', '.join(_READERS)}."
        )
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"A concept file of the kind '{path.suffix}' is not taken. {nearest(path.suffix, _READERS)}")
    try:
        return reader(_decoded(path))
    except (yaml.YAMLError, json.JSONDecodeError, csv.Error) as error:
        raise UserError(f"The concept file {path} cannot be read: {' '.join(str(error).split())}") from error
    except _UnexpectedFormError as error:
        raise UserError(f"The concept file {path}: {error}") from error


class _UnexpectedFormError(Exception):
    """What stands in the file is well-formed but is no concept set."""


def _decoded(path: Path) -> str:
    """The text, whatever wrote it: UTF-8 with or without mark, UTF-16 with mark, else Windows' western code page."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    if b"\0" in content:
        raise UserError(f"The concept file {path} is not a text file.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        log.warning("The concept file %s is not UTF-8; it is read as Windows-1252.", path)
        return content.decode("cp1252", errors="replace")


def _from_text(text: str) -> list[Row]:
    return [(line, ()) for line in text.splitlines()]


def _from_yaml(text: str) -> list[Row]:
    # BaseLoader leaves every scalar a string: a concept called "no" or "1" stays that word.
    return _from_tree(yaml.load(text, Loader=yaml.BaseLoader))


def _from_json(text: str) -> list[Row]:
    return _from_tree(json.loads(text)) if text.strip() else []


def _from_tree(tree: Any) -> list[Row]:
    """A list of names (or of ``{concept, classes}``), or ``{name: classes}``, also below a key ``concepts``."""
    if tree is None or tree == "":
        return []
    if isinstance(tree, Mapping) and "concepts" in tree and not isinstance(tree["concepts"], str):
        tree = tree["concepts"]
    if isinstance(tree, Mapping):
        return [(str(name), _classes(name, given)) for name, given in tree.items()]
    if not isinstance(tree, list):
        raise _UnexpectedFormError("a list of names or {name: classes} is taken, not a single value.")
    rows: list[Row] = []
    for entry in tree:
        if isinstance(entry, Mapping):
            named = next((entry[key] for key in ("concept", "name") if key in entry), None)
            if named is not None:
                rows.append((str(named), _classes(named, entry.get("classes"))))
            else:
                rows += [(str(name), _classes(name, given)) for name, given in entry.items()]
        elif isinstance(entry, list):
            raise _UnexpectedFormError("a list inside the list; write one name an entry.")
        else:
            rows.append(("" if entry is None else str(entry), ()))
    return rows


def _from_csv(text: str) -> list[Row]:
    """Concept in the column ``concept`` or ``name`` or the first one, classes in ``classes`` or the second one."""
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    table = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]
    if not table:
        return []
    header = [cell.strip().lower() for cell in table[0]]
    name_column, class_column = 0, 1
    titled = next((title for title in ("concept", "concepts", "name") if title in header), None)
    if titled is not None:
        name_column = header.index(titled)
        class_column = next((header.index(title) for title in ("classes", "class") if title in header), len(header))
        table = table[1:]
    separator = r"[;|]" if delimiter == "," else r"[,|]"
    rows: list[Row] = []
    for row in table:
        cells = row[class_column] if class_column < len(row) else ""
        # A quoted list ("angry, disgust") is split at commas as well: no class name holds one.
        classes = tuple(part for part in re.split(f"{separator}|,", cells) if part.strip())
        rows.append((row[name_column] if name_column < len(row) else "", classes))
    return rows


def _classes(name: object, given: Any) -> tuple[str, ...]:
    if given is None or given == "":
        return ()
    if isinstance(given, str):
        return (given,)
    if isinstance(given, list) and all(isinstance(part, str) for part in given):
        return tuple(given)
    raise _UnexpectedFormError(f"the classes of '{name}' are to be a word or a list of words, not {given!r:.60}.")


_READERS: dict[str, Callable[[str], list[Row]]] = {
    ".txt": _from_text,
    ".yaml": _from_yaml,
    ".yml": _from_yaml,
    ".json": _from_json,
    ".csv": _from_csv,
}
