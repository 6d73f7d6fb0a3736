"""CSV files that people open in a spreadsheet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emodissect.core.atomic_files import atomic_write

_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = r"[-+]?(\d+\.?\d*(e[-+]?\d+)?|inf|nan)"
_NUMBERS = re.compile(f"{_NUMBER}(;{_NUMBER})*")


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Writes a table, whole or not at all, in which no text is a formula to a spreadsheet.

    A text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return gets a ``'`` before it, in cells and
    column names, unless it is a number or a list of numbers (OWASP, *CSV Injection*). So such a file is for people;
    what is read back is kept in another form. A list is one text, joined with semicolons.
    """
    shown = joined_lists(frame).rename(columns=_inert)
    texts = [place for place, kind in enumerate(shown.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    for place in texts:
        shown.isetitem(place, [_inert(value) for value in shown.iloc[:, place]])
    with atomic_write(path) as unfinished:
        shown.to_csv(unfinished, index=False)


def joined_lists(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with each cell that is a list as one text, joined with semicolons."""
    texts = {
        name: [";".join(map(str, cell)) if _is_list(cell) else cell for cell in column]
        for name, column in frame.items()
        if column.map(_is_list).any()
    }
    return frame.assign(**{str(name): text for name, text in texts.items()}) if texts else frame


def _is_list(cell: Any) -> bool:
    return isinstance(cell, list | tuple | np.ndarray)


def _inert(value: Any) -> Any:
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBERS.fullmatch(value):
        return f"'{value}"
    return value
