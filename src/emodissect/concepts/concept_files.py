"""Reads concept files (text, YAML, JSON, CSV and TSV) into (name, classes) rows."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from emodissect.core.errors import UserError, nearest, reason

log = logging.getLogger(__name__)

Row = tuple[str, tuple[str, ...]]

_LARGEST = 2**26  # bytes; 20,000 concepts take about a hundredth of it
_COMMENT = re.compile(r"^\s*(#|//).*|\s#\s.*$")
_BULLET = re.compile(r"^\s*[-*•·–]\s+")
_NUMBERED = re.compile(r"^\s*\(?(\d+)[.):\]]?\s+(?=\S)")


def read_rows(path: Path) -> tuple[list[Row], dict[str, int]]:
    """The file's rows (raw name, classes), and counts of what was removed, by kind.

    Raises:
        UserError: the file is missing, has an unknown format, or is malformed.
    """
    if not path.is_file():
        raise UserError(
            f"The concept file {path} does not exist. Set concepts=file concepts.path=<file>; "
            f"accepted formats: {', '.join(filter(None, _READERS))}."
        )
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = list(filter(None, _READERS))
        raise UserError(f"A concept file in the format '{path.suffix}' is not accepted. {nearest(path.suffix, known)}")
    if path.stat().st_size > _LARGEST:
        raise UserError(f"The concept file {path} has {path.stat().st_size / 2**20:,.0f} MiB: is it a word list?")
    notes: dict[str, int] = {}
    try:
        return reader(_decoded(path), notes), notes
    except RecursionError as error:
        raise UserError(f"The concept file {path} is nested too deeply for a word list.") from error
    except (yaml.YAMLError, ValueError) as error:  # JSON's errors are ValueErrors
        raise UserError(f"The concept file {path} cannot be read: {reason(error)}.") from error
    except _UnexpectedFormError as error:
        raise UserError(f"The concept file {path}: {error}") from error


class _UnexpectedFormError(Exception):
    """Raised where a file is well-formed but does not contain a concept set."""


def _decoded(path: Path) -> str:
    """The decoded text: UTF-8 with or without BOM, UTF-16 with BOM, or otherwise Windows-1252."""
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


def _from_text(text: str, notes: dict[str, int]) -> list[Row]:
    lines = _without_comments(text.splitlines(), notes)
    return [(name, ()) for name in _without_numbering(lines, notes)]


def _without_comments(lines: list[str], notes: dict[str, int]) -> list[str]:
    """Lines without comments; lines with only a comment are left out."""
    kept = [(line, _COMMENT.sub("", line)) for line in lines]
    notes["comments left out"] = sum(line != plain for line, plain in kept)
    return [plain for line, plain in kept if plain.strip() or not line.strip()]


def _without_numbering(names: list[str], notes: dict[str, int]) -> list[str]:
    """Names without bullets or consecutive numbers, if every name has one."""
    filled = [name for name in names if name.strip()]
    if len(filled) < 2:
        return names
    numbers = [int(found.group(1)) for name in filled if (found := _NUMBERED.match(name))]
    counted = numbers == list(range(numbers[0], numbers[0] + len(filled))) if numbers else False
    mark = _NUMBERED if counted else _BULLET
    if not all(mark.match(name) for name in filled):
        return names
    notes["numbers removed" if counted else "bullets removed"] = len(filled)
    return [mark.sub("", name) for name in names]


def _from_yaml(text: str, notes: dict[str, int]) -> list[Row]:
    # BaseLoader only builds strings, lists and mappings, so that concepts such as "no" or "1" stay strings.
    return _from_tree(yaml.load(text, Loader=yaml.BaseLoader), notes)


def _from_json(text: str, notes: dict[str, int]) -> list[Row]:
    return _from_tree(json.loads(text), notes) if text.strip() else []


def _from_tree(tree: Any, notes: dict[str, int]) -> list[Row]:
    """Rows from a list of names or ``{concept, classes}``, or ``{name: classes}``, optionally under ``concepts``."""
    if tree is None or tree == "":
        return []
    if isinstance(tree, Mapping) and "concepts" in tree and not isinstance(tree["concepts"], str):
        tree = tree["concepts"]
    if isinstance(tree, Mapping):
        if _counts_up(tree) and all(isinstance(name, str) and name for name in tree.values()):
            notes["numbers removed"] = len(tree)  # {"0": "smile", "1": "frown"}
            return [(name, ()) for name in tree.values()]
        return [(str(name), _classes(name, given)) for name, given in tree.items()]
    if not isinstance(tree, list):
        raise _UnexpectedFormError("it must contain a list of names or {name: classes}, not a single value.")
    rows: list[Row] = []
    for entry in tree:
        if isinstance(entry, Mapping):
            named = next((entry[key] for key in ("concept", "name") if key in entry), None)
            if named is not None:
                rows.append((str(named), _classes(named, entry.get("classes"))))
            else:
                rows += [(str(name), _classes(name, given)) for name, given in entry.items()]
        elif isinstance(entry, list):
            raise _UnexpectedFormError("it contains a list inside the list; write one name per entry.")
        else:
            rows.append(("" if entry is None else str(entry), ()))
    return rows


def _from_csv(text: str, notes: dict[str, int], delimiter: str | None = None) -> list[Row]:
    """Rows from a table: names in column ``concept``, ``name`` or the first, classes in ``classes`` or the second."""
    lines = text.splitlines(keepends=True)
    comments = [number for number, line in enumerate(lines) if line.lstrip().startswith("#")]
    notes["comments left out"] = len(comments)
    for number in comments:
        lines[number] = "\n"  # blanked, so that line numbers in messages stay correct
    first = next((line for line in lines if line.strip()), "")
    table = _table("".join(lines), delimiter or max(",;\t", key=first.count))
    if not table:
        return []
    header = [cell.strip().lower() for cell in table[0]]
    name_column, class_column = 0, 1
    titled = next((title for title in ("concept", "concepts", "name") if title in header), None)
    if titled is not None:
        name_column = header.index(titled)
        class_column = next((header.index(title) for title in ("classes", "class") if title in header), len(header))
        table = table[1:]
    elif len(table) > 1 and all(len(row) > 1 for row in table) and _counts_up([row[0].strip() for row in table]):
        notes["numbers removed"] = len(table)
        name_column, class_column = 1, 2
    rows: list[Row] = []
    for row in table:
        cells = row[class_column] if class_column < len(row) else ""
        # A quoted list ("angry, disgust") is split at commas as well, since no class name contains one.
        classes = tuple(part for part in re.split("[;|,]", cells) if part.strip())
        rows.append((row[name_column] if name_column < len(row) else "", classes))
    return rows


def _table(text: str, delimiter: str) -> list[list[str]]:
    """The non-empty rows. A cell with several lines is refused: it comes from an unclosed quote that swallows rows."""
    table: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begun = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return table
        except csv.Error as error:
            raise _UnexpectedFormError(f"the quote in line {begun} is not closed, or not before a comma.") from error
        if any("\n" in cell or "\r" in cell for cell in row):
            raise _UnexpectedFormError(f"the quote that opens in line {begun} is not closed on the same line.")
        if row:
            table.append(row)
        begun = reader.line_num + 1


def _from_tsv(text: str, notes: dict[str, int]) -> list[Row]:
    return _from_csv(text, notes, delimiter="\t")


def _counts_up(numbers: Iterable[str]) -> bool:
    """Whether these are 0, 1, 2, ... or 1, 2, 3, ..., at least two of them."""
    listed = list(numbers)
    return len(listed) > 1 and any(listed == [str(first + n) for n in range(len(listed))] for first in (0, 1))


def _classes(name: object, given: Any) -> tuple[str, ...]:
    if given is None or given == "":
        return ()
    if isinstance(given, str):
        return (given,)
    if isinstance(given, list) and all(isinstance(part, str) for part in given):
        return tuple(given)
    raise _UnexpectedFormError(f"the classes of '{name}' must be a word or a list of words, not {reprlib.repr(given)}.")


_READERS: dict[str, Callable[[str, dict[str, int]], list[Row]]] = {
    "": _from_text,
    ".txt": _from_text,
    ".yaml": _from_yaml,
    ".yml": _from_yaml,
    ".json": _from_json,
    ".csv": _from_csv,
    ".tsv": _from_tsv,
}
