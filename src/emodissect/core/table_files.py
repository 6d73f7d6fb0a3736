"""Tables in files: CSV files that people open in a spreadsheet, and Parquet files, those of others read with care."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emodissect.core.atomic_files import atomic_write
from emodissect.core.errors import reason

_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = r"[-+]?(\d+\.?\d*(e[-+]?\d+)?|inf|nan)"
_NUMBERS = re.compile(f"{_NUMBER}(;{_NUMBER})*")

MOST_VALUES = 2**28
"""Values that a table may hold, 2 GiB as numbers; repeated ones are stored once, so a small file may declare many."""

_PATIENCE = 120.0  # seconds; the largest accepted table takes a tenth of it
_TRIAL = f"""
import sys
from pyarrow.parquet import ParquetFile
try:
    with ParquetFile(sys.argv[1], page_checksum_verification=True) as file:
        about = file.metadata
        parts = [about.row_group(group) for group in range(about.num_row_groups)]
        stored = sum(part.column(place).num_values for part in parts for place in range(part.num_columns))
        values = max(stored, about.num_rows * about.num_columns)
        if values > {MOST_VALUES}:
            sys.exit(f"it unpacks to {{values:,}} values; at most {MOST_VALUES:,} are read")
        file.read()
except Exception as error:
    sys.exit(" ".join(str(error).split())[:300] or type(error).__name__)
"""


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Writes a table atomically; no text in it is a formula to a spreadsheet.

    A text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return gets a ``'`` before it, in cells and
    column names, unless it is a number or a list of numbers (OWASP, *CSV Injection*). So such a file is for people;
    what is read back is kept in another format. A list is one text, joined with semicolons.
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


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Writes a table without its index; each page carries a checksum."""
    frame.to_parquet(path, index=False, write_page_checksum=True)


def write_both(frame: pd.DataFrame, path: Path) -> Path:
    """Writes a table as Parquet, with its lists, and beside it as CSV for people, whose path is given."""
    with atomic_write(path) as unfinished:
        write_parquet(frame, unfinished)
    write_csv(frame, path.with_suffix(".csv"))
    return path.with_suffix(".csv")


def read_parquet(path: Path, sealed: bool = False) -> pd.DataFrame:
    """The table of a Parquet file; pages with a checksum are compared with it.

    Arrow's reader aborts its process, or hangs, on some damaged headers. So a file of unknown content is first
    read by another process (0.3 s).

    Args:
        sealed: its hash has been compared, as that of a cache entry.

    Raises:
        ValueError: damaged, not Parquet, or more values than :data:`MOST_VALUES`.
        OSError: it cannot be read.
    """
    with open(path, "rb"):
        pass
    if not sealed:
        _try(path)
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except Exception as error:  # of a damaged file: pyarrow's own, KeyError, TypeError, UnicodeDecodeError ...
        raise ValueError(reason(error)) from error


def _try(path: Path) -> None:
    command = [sys.executable, "-P", "-c", _TRIAL, str(path)]
    try:
        tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError("it is damaged: reading it does not finish") from error
    if tried.returncode < 0:
        raise ValueError("it is damaged: reading it crashes the process")
    if tried.returncode:
        raise ValueError((tried.stderr.decode(errors="replace").strip().splitlines() or ["it cannot be read"])[-1])
